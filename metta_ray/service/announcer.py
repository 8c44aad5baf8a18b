"""What a run says: its state, lines for whoever watches, events for whoever asks later.

Written by the pipeline's thread, read by the threads in which Ray calls the coordinator.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

from metta_ray.control.run_state import RunState, may_follow
from metta_ray.state.publisher import Publisher
from metta_ray.state.records import EventRecord, RunRecord

logger = logging.getLogger(__name__)

EVENTS_FILE = "events.jsonl"
KEPT_LINES = 5000
KEPT_EVENTS = 200
TOLD = {"ready": 0, "left": 0, "dropped": 5}
"""How many events of these kinds a person is shown; the others are only kept."""


class Announcer:
    """state: of the run. message: why it failed. result: what came of it, once it has ended.

    publisher: tells events and the run's record to a store, once there is one; a run trains without one too.
    events_file: where events are kept in the run's directory, once there is one, one JSON object per line.
    """

    def __init__(self, run: str) -> None:
        self.state = RunState.STARTING
        self.message = ""
        self.result: dict[str, Any] = {}
        self.publisher: Publisher | None = None
        self.events_file: Path | None = None
        self._run = run
        self._news = threading.Condition()
        self._lines: deque[dict[str, Any]] = deque(maxlen=KEPT_LINES)
        self._next_line = int(time.time() * 1000)  # numbers go on growing over a restart
        self._events: deque[str] = deque(maxlen=KEPT_EVENTS)
        self._counts: Counter[str] = Counter()

    def progress(self, after: int, timeout_s: float) -> dict[str, Any]:
        """Lines with numbers above ``after``, waiting for one; the state; at the end, the result."""

        def is_news() -> bool:
            return self.state.is_final or bool(self._lines and self._lines[-1]["number"] > after)

        with self._news:
            self._news.wait_for(is_news, timeout_s)
            lines = [line for line in self._lines if line["number"] > after]
            return {"lines": lines, "state": self.state.value, "result": self.result}

    def enter(self, state: RunState, text: str = "") -> None:
        """The state from now on, where it may follow the present one."""
        if state is self.state or not may_follow(self.state, state):
            return
        with self._news:
            if text:
                self._append({"text": f"{state.value}: {text}"})
            self.state = state
            self._news.notify_all()

    def tell(self, line: dict[str, Any]) -> None:
        """A line for people; with ``epoch`` in it, a step of progress."""
        with self._news:
            self._append(line)
            self._news.notify_all()

    def note(self, text: str) -> None:
        self.tell({"text": text})

    def event(self, kind: str, text: str) -> None:
        """Something happened: kept, counted, and told as long as it is not the hundredth of its kind."""
        logger.info("%s: %s", kind, text)
        self._events.append(f"{time.strftime('%H:%M:%S')} {text.splitlines()[0]}")
        self._counts[kind] += 1
        most = TOLD.get(kind)
        if most is None or self._counts[kind] <= most:
            self.note(text)
        elif self._counts[kind] == most + 1 > 1:
            self.note(f"further events of the kind {kind!r} are only counted: see metta-ray status {self._run}")
        self._keep(EventRecord(self._run, time.time(), kind, text))

    def _keep(self, event: EventRecord) -> None:
        """In both places, as far as each takes it: a full disk does not keep events from the store."""
        try:
            if self.events_file is not None:
                with self.events_file.open("a") as file:
                    file.write(json.dumps({"at": event.at, "kind": event.kind, "text": event.text}) + "\n")
        except OSError as error:
            logger.warning("event not written: %s", error)
        if self.publisher is not None:
            self.publisher.add_event(event)

    def put_record(self, record: RunRecord) -> None:
        if self.publisher is not None:
            self.publisher.put_run(record)

    def close(self, timeout_s: float) -> None:
        """Waits so long at most until the store has been told all."""
        if self.publisher is not None and not self.publisher.close(timeout_s):
            logger.warning("the store of run records could not be told how run %s ended", self._run)

    @property
    def events(self) -> list[str]:
        """The last ones, oldest first."""
        return list(self._events)[-20:]

    def _append(self, line: dict[str, Any]) -> None:
        self._lines.append({"number": self._next_line, **line})
        self._next_line += 1
