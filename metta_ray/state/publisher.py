"""Tells a store about one run from a thread of its own, so that who has news never waits for the store.

After a failure the store is left alone for a moment, twice as long after each further one: a server that does not
answer costs one call now and then. When it answers again it is told what it does not know: the newest record, and all
events that are not there. So too when it has forgotten what it was told (emptied, or restarted from an older copy).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from metta_ray.common.errors import StateStoreError
from metta_ray.state.base import MAX_EVENTS_PER_RUN, StateStore
from metta_ray.state.records import EventRecord, RunRecord

logger = logging.getLogger(__name__)

MAX_TEXT = 16_384
"""Characters of an event that are told; the whole of it is in the run's directory."""
FIRST_REST_S = 0.5
LONGEST_REST_S = 4.0
"""What was missed is told again at most this, one call and one record's interval after the store is back."""


class Publisher:
    """store: used, and closed, by this object's thread alone. on_trouble: told once per outage, and when it is over.

    An event may be there twice after an outage: a store that took it without saying so is not told from one that did
    not.
    """

    def __init__(
        self, store: StateStore, run: str, on_trouble: Callable[[str], None], *, first_rest_s: float = FIRST_REST_S
    ) -> None:
        self._store = store
        self._run = run
        self._on_trouble = on_trouble
        self._news = threading.Condition()
        self._record: RunRecord | None = None
        self._events: deque[EventRecord] = deque(maxlen=MAX_EVENTS_PER_RUN)  # told or not
        self._untold = 0  # of these, the last ones
        self._is_closing = False
        self._deadline = float("inf")
        self._first_rest_s = self._rest_s = first_rest_s
        self._is_in_trouble = self._is_replaced = False
        self._thread = threading.Thread(target=self._live, name="publisher", daemon=True)
        self._thread.start()

    def put_run(self, record: RunRecord) -> None:
        """Takes the place of a record that has not been told yet."""
        with self._news:
            self._record = record
            self._news.notify()

    def add_event(self, event: EventRecord) -> None:
        with self._news:
            self._events.append(replace(event, text=event.text[:MAX_TEXT]))
            self._untold = min(self._untold + 1, len(self._events))
            self._news.notify()

    def close(self, timeout_s: float) -> bool:
        """Tells what is left, for at most about ``timeout_s``; whether all of it was told."""
        with self._news:
            self._is_closing = True
            self._deadline = time.monotonic() + timeout_s
            self._news.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive() and not self._has_news

    # --- the thread --------------------------------------------------------------------------------------

    @property
    def _has_news(self) -> bool:
        return self._record is not None or self._untold > 0

    def _live(self) -> None:
        while self._wait_for_news():
            try:
                self._tell()
            except StateStoreError as error:
                self._rest(str(error))
            except Exception as error:  # the thread must outlive what nobody has thought of
                logger.exception("run %s could not be told to its store", self._run)
                self._rest(f"{type(error).__name__}: {error}")
        self._store.close()

    def _wait_for_news(self) -> bool:
        """False when it is time to end."""
        with self._news:
            self._news.wait_for(lambda: self._has_news or self._is_closing)
            return self._has_news and time.monotonic() < self._deadline

    def _tell(self) -> None:
        if self._is_in_trouble or self._has_forgotten():
            self._find_out_what_is_there()
        while (event := self._next_event()) is not None:
            self._store.add_event(event)
            self._was_told(event)
        with self._news:
            record, self._record = self._record, None
        if record is not None:
            try:
                self._notice_replacement(is_written=self._store.put_run(record))
            except BaseException:
                with self._news:
                    self._record = self._record or record
                raise
        if self._is_in_trouble:
            self._is_in_trouble, self._rest_s = False, self._first_rest_s
            self._on_trouble("the store of run records is back")

    def _next_event(self) -> EventRecord | None:
        with self._news:
            return self._events[-self._untold] if self._untold else None

    def _was_told(self, event: EventRecord) -> None:
        with self._news:
            # Unless so many came meanwhile that it was pushed out.
            if self._untold and self._events[-self._untold] is event:
                self._untold -= 1

    def _has_forgotten(self) -> bool:
        with self._news:
            last = self._events[-self._untold - 1] if len(self._events) > self._untold else None
        return last is not None and self._store.events(self._run, 1) != [last]

    def _find_out_what_is_there(self) -> None:
        """All that follows the last event that the store has is to be told, again if need be."""
        there = set(self._store.events(self._run, MAX_EVENTS_PER_RUN))
        with self._news:
            missing = 0
            while missing < len(self._events) and self._events[-missing - 1] not in there:
                missing += 1
            self._untold = missing

    def _notice_replacement(self, *, is_written: bool) -> None:
        if not is_written and not self._is_replaced:
            self._on_trouble(
                f"warning: the store of run records has a newer generation of run {self._run}; this one is not shown"
            )
        self._is_replaced = not is_written

    def _rest(self, reason: str) -> None:
        if not self._is_in_trouble:
            self._is_in_trouble = True
            self._on_trouble(f"warning: {reason}; the run goes on and is shown again when its store is back")
        logger.warning("not told to the store: %s", reason)
        with self._news:
            self._news.wait_for(lambda: self._is_closing, self._rest_s)
        if self._is_closing:
            time.sleep(self._first_rest_s)  # what is left of the time is for trying
        self._rest_s = min(2 * self._rest_s, LONGEST_REST_S)
