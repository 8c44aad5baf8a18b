"""What a store of run records can do. Stores are never on the training path: nothing waits for them to train."""

from __future__ import annotations

from typing import Protocol

from metta_ray.state.records import EventRecord, RunRecord

MAX_EVENTS_PER_RUN = 1000


class StateStore(Protocol):
    """Shared by several processes. Every method raises StateStoreError where the store cannot be used."""

    def put_run(self, record: RunRecord) -> bool:
        """Writes the record of a run, in the place of the one before.

        False, and nothing is written, where a newer generation of the run has written: this writer has been
        replaced and does not know it yet.
        """
        ...

    def get_run(self, name: str) -> RunRecord | None: ...

    def list_runs(self) -> list[RunRecord]:
        """Last updated first."""
        ...

    def add_event(self, event: EventRecord) -> None:
        """Keeps the last MAX_EVENTS_PER_RUN of each run."""
        ...

    def events(self, run: str, limit: int = 20) -> list[EventRecord]:
        """The last events of a run in the order in which they were added."""
        ...

    def close(self) -> None:
        """Safe to call twice."""
        ...
