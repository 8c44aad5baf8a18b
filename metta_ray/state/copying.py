"""All records of runs from one store to another, as from a machine's SQLite to the Redis of a cluster, or back.

Copying twice is copying once, and what broke off is completed by the next time: of each run come first those events
that are not there yet, and the record last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from metta_ray.state.base import MAX_EVENTS_PER_RUN, StateStore
from metta_ray.state.records import RunRecord


class Outcome(StrEnum):
    COPIED = "copied"
    THERE = "there already"
    NEWER = "newer there, and left as it is"
    GOES_ON = "not copied: it goes on, and would go on writing to the store that it has"
    OTHER = "not copied: a run of that name with another directory is there"

    @property
    def is_refusal(self) -> bool:
        return self in (Outcome.GOES_ON, Outcome.OTHER)


@dataclass(frozen=True)
class Copied:
    """What became of one run. events: how many were not there yet."""

    run: str
    outcome: Outcome
    events: int = 0


def copy_runs(source: StateStore, target: StateStore, has_ended: Callable[[RunRecord], bool]) -> Iterator[Copied]:
    """Each run of ``source``, the oldest first, and what became of it. Two runs are one if their directory is.

    StateStoreError where one of the stores cannot be used; what was copied until then stays.
    """
    for record in reversed(source.list_runs()):
        yield _copy_run(record, source, target) if has_ended(record) else Copied(record.name, Outcome.GOES_ON)


def _copy_run(record: RunRecord, source: StateStore, target: StateStore) -> Copied:
    there = target.get_run(record.name)
    if there is not None and there.run_dir != record.run_dir:
        return Copied(record.name, Outcome.OTHER)
    if there is not None and (there.generation, there.updated) > (record.generation, record.updated):
        return Copied(record.name, Outcome.NEWER)
    told = Counter(target.events(record.name, MAX_EVENTS_PER_RUN))
    events = 0
    for event in source.events(record.name, MAX_EVENTS_PER_RUN):
        told[event] -= 1
        if told[event] < 0:  # what was said twice comes twice
            target.add_event(event)
            events += 1
    if record == there:
        return Copied(record.name, Outcome.COPIED if events else Outcome.THERE, events)
    is_written = target.put_run(record)  # not, if the run has been started again meanwhile
    return Copied(record.name, Outcome.COPIED if is_written else Outcome.NEWER, events)
