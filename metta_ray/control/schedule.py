"""When to issue tickets, what to train on, what is due.

Pacing: what is issued and not yet committed stays within (target_staleness + 1) batches. One batch is with the
learner while ``target_staleness`` others are collected, so a fragment is about that many versions old when it is
trained on. 0 means that collecting and training take turns.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from metta_ray.common.errors import ConfigError


@dataclass(frozen=True)
class Queued:
    """A fragment that can be trained on: its ticket's number, its policy version, its agent steps."""

    ticket: int
    version: int
    steps: int


def fragments_per_batch(batch_steps: int, fragment_steps: int) -> int:
    """Whole fragments, rounded up: a batch that ends within a fragment trains on all of it."""
    return -(-batch_steps // fragment_steps)


def useful_workers(batch_steps: int, fragment_steps: int, target_staleness: int) -> int:
    """How many workers pacing can keep busy with one ticket each; more would only wait."""
    return (target_staleness + 1) * fragments_per_batch(batch_steps, fragment_steps)


def tickets_to_issue(
    *,
    outstanding_steps: int,
    batch_steps: int,
    fragment_steps: int,
    target_staleness: int,
    bytes_outstanding: int,
    fragment_bytes: int,
    byte_budget: int,
    paused: bool,
) -> int:
    """Credits: how many tickets may be issued now. Outstanding = issued and not yet committed or closed.

    ``fragment_bytes`` 0 = not known yet, ``byte_budget`` 0 = no limit. ConfigError for a budget that cannot hold
    one batch: its last fragments would never be issued, and the learner would wait for them for ever.
    """
    if paused:
        return 0
    outstanding_fragments = -(-outstanding_steps // fragment_steps)
    credits = useful_workers(batch_steps, fragment_steps, target_staleness) - outstanding_fragments
    if byte_budget and fragment_bytes:
        _check_that_a_batch_fits(fragments_per_batch(batch_steps, fragment_steps), fragment_bytes, byte_budget)
        credits = min(credits, (byte_budget - bytes_outstanding) // fragment_bytes)
    return max(0, credits)


def _check_that_a_batch_fits(fragments: int, fragment_bytes: int, byte_budget: int) -> None:
    if fragments * fragment_bytes > byte_budget:
        raise ConfigError(
            f"byte_budget={byte_budget} does not hold one batch: {fragments} fragments of {fragment_bytes} bytes are "
            f"{fragments * fragment_bytes}; raise the budget (or the object store), or make batch_size smaller"
        )


def choose_batch(
    queued: Iterable[Queued], *, batch_steps: int, synchronous: bool = False, in_flight: Collection[int] = ()
) -> list[int]:
    """Ticket numbers of the next batch in the order they are trained on; empty while there is not enough.

    Oldest policy version first, so that nothing grows stale in the queue. In synchronous mode by ticket number,
    and only when no earlier ticket is still in flight: the batch is the same whoever was faster.
    """
    ordered = sorted(queued, key=lambda entry: entry.ticket if synchronous else (entry.version, entry.ticket))
    batch: list[int] = []
    steps = 0
    for entry in ordered:
        if synchronous and any(ticket < entry.ticket for ticket in in_flight):
            return []
        batch.append(entry.ticket)
        steps += entry.steps
        if steps >= batch_steps:
            return batch
    return []


def is_due(value: int, previous: int, interval: int) -> bool:
    """Has a counter reached or jumped over a multiple of ``interval`` since ``previous``? Interval 0: never."""
    return interval > 0 and value // interval > previous // interval
