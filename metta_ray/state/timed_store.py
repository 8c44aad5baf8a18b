"""A store whose calls are timed: latency and errors are worth a look where the store is on another machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from metta_ray.state.base import StateStore
from metta_ray.state.records import EventRecord, RunRecord

_T = TypeVar("_T")


class TimedStore:
    """Does what ``store`` does. on_call: told after each call how many seconds it took, and whether it failed."""

    def __init__(self, store: StateStore, on_call: Callable[[float, bool], None]) -> None:
        self._store = store
        self._on_call = on_call

    def put_run(self, record: RunRecord) -> bool:
        return self._timed(lambda: self._store.put_run(record))

    def get_run(self, name: str) -> RunRecord | None:
        return self._timed(lambda: self._store.get_run(name))

    def list_runs(self) -> list[RunRecord]:
        return self._timed(self._store.list_runs)

    def add_event(self, event: EventRecord) -> None:
        self._timed(lambda: self._store.add_event(event))

    def events(self, run: str, limit: int = 20) -> list[EventRecord]:
        return self._timed(lambda: self._store.events(run, limit))

    def close(self) -> None:
        self._store.close()

    def _timed(self, call: Callable[[], _T]) -> _T:
        began, is_failed = time.perf_counter(), True
        try:
            value = call()
            is_failed = False
        finally:
            self._on_call(time.perf_counter() - began, is_failed)
        return value
