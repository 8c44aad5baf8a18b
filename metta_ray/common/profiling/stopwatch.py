"""Named timers with laps: where the time of a training epoch goes.

    timer = Stopwatch()
    timer.start()                          # the global timer
    with timer("_rollout"):                # a named one, created when first used
        ...
    timer.lap_all(agent_step)              # {name: seconds since the last lap}
    timer.get_lap_rate(agent_step)         # agent steps per second since the last lap

Elapsed time is that of a monotonic clock. A timer keeps its last few checkpoints only, so memory is bounded.
All methods may be called from any thread.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")

GLOBAL_TIMER = "global"


class Checkpoint(NamedTuple):
    """A mark on a timer: its name, seconds on the timer, and the steps counted by then."""

    name: str
    elapsed_s: float
    steps: int


@dataclass
class _Timer:
    checkpoints: deque[Checkpoint]
    started_at_s: float | None = None  # None while stopped
    finished_s: float = 0.0  # of all stretches that have been stopped
    last_elapsed_s: float = 0.0  # of the latest stretch that has been stopped
    laps: int = 0
    started_in: set[str] = field(default_factory=set)  # paths of source files that used this timer

    def elapsed_s(self, now_s: float) -> float:
        return self.finished_s + (0.0 if self.started_at_s is None else now_s - self.started_at_s)


class TimedBlock(AbstractContextManager["Stopwatch"]):
    """One run of a timer, as a ``with`` block. (A generator would cost a rollout step several microseconds.)"""

    __slots__ = ("_log_level", "_name", "_stopwatch")

    def __init__(self, stopwatch: Stopwatch, name: str | None, log_level: int | None) -> None:
        self._stopwatch, self._name, self._log_level = stopwatch, name, log_level

    def __enter__(self) -> Stopwatch:
        self._stopwatch.start(self._name)
        return self._stopwatch

    def __exit__(self, *error: object) -> None:
        elapsed = self._stopwatch.stop(self._name)
        if self._log_level is not None:
            self._stopwatch._logger.log(self._log_level, "%s took %.3f s", self._name or GLOBAL_TIMER, elapsed)


class Stopwatch:
    """Timers by name; the name None means the global timer.

    max_laps: laps that are remembered per timer. clock: seconds, monotonic.
    """

    def __init__(
        self,
        logger: logging.Logger | None = None,
        max_laps: int = 4,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_laps = max_laps
        self._logger = logger or logging.getLogger(__name__)
        self._clock = clock
        self._lock = threading.RLock()
        self._timers: dict[str, _Timer] = {GLOBAL_TIMER: self._new_timer()}

    # --- start and stop ----------------------------------------------------------------------------------

    def start(self, name: str | None = None) -> None:
        """Starts a timer; warns if it runs already."""
        with self._lock:
            timer = self._timer(name)
            if timer.started_at_s is not None:
                self._logger.warning("timer %r is running already", name or GLOBAL_TIMER)
                return
            timer.started_at_s = self._clock()
            timer.started_in.add(_calling_file())

    def stop(self, name: str | None = None) -> float:
        """Stops a timer; returns the seconds since its start. Warns and returns 0 if it does not run."""
        with self._lock:
            timer = self._timer(name)
            if timer.started_at_s is None:
                self._logger.warning("timer %r is not running", name or GLOBAL_TIMER)
                return 0.0
            timer.last_elapsed_s = self._clock() - timer.started_at_s
            timer.finished_s += timer.last_elapsed_s
            timer.started_at_s = None
            return timer.last_elapsed_s

    def reset(self, name: str | None = None) -> None:
        """Sets a timer back to 0, stopped, without laps."""
        with self._lock:
            self._timers[name or GLOBAL_TIMER] = self._new_timer()

    def reset_all(self) -> None:
        with self._lock:
            for name in self._timers:
                self._timers[name] = self._new_timer()

    def time(self, name: str | None = None, log_level: int | None = None) -> TimedBlock:
        """Runs a timer inside a ``with`` block; ``log_level`` also logs the block's duration."""
        return TimedBlock(self, name, log_level)

    __call__ = time

    # --- laps --------------------------------------------------------------------------------------------

    def checkpoint(self, steps: int | None = None, checkpoint_name: str | None = None, name: str | None = None) -> None:
        """Marks the present time and step count; the stretch since the mark before becomes a lap.

        ``steps`` None keeps the count of the mark before.
        """
        with self._lock:
            timer = self._timer(name)
            timer.laps += 1
            count = timer.checkpoints[-1].steps if steps is None else steps
            label = checkpoint_name or f"_lap_{timer.laps}"
            timer.checkpoints.append(Checkpoint(label, timer.elapsed_s(self._clock()), count))

    def checkpoint_all(self, steps: int | None = None, checkpoint_name: str | None = None) -> None:
        with self._lock:
            for name in list(self._timers):
                self.checkpoint(steps, checkpoint_name, name)

    def lap(self, steps: int | None = None, name: str | None = None) -> float:
        """Marks a checkpoint; returns the timer's seconds since the one before."""
        with self._lock:
            before = self._timer(name).checkpoints[-1]
            self.checkpoint(steps, name=name)
            return self._timer(name).checkpoints[-1].elapsed_s - before.elapsed_s

    def lap_all(self, steps: int | None = None, exclude_global: bool = True) -> dict[str, float]:
        """Laps every timer, the global one too; returns {name: seconds of the lap}."""
        with self._lock:
            laps = {name: self.lap(steps, name) for name in list(self._timers)}
            return {name: s for name, s in laps.items() if not (exclude_global and name == GLOBAL_TIMER)}

    def get_lap_time(self, lap_index: int = -1, name: str | None = None) -> float | None:
        """Seconds of a finished lap, -1 the latest … -max_laps; None if there is no such lap."""
        lap = self._lap(lap_index, name)
        return None if lap is None else lap[1].elapsed_s - lap[0].elapsed_s

    def get_lap_steps(self, lap_index: int = -1, name: str | None = None) -> int | None:
        """Steps of a finished lap; None if there is no such lap."""
        lap = self._lap(lap_index, name)
        return None if lap is None else lap[1].steps - lap[0].steps

    # --- reading -----------------------------------------------------------------------------------------

    def get_elapsed(self, name: str | None = None) -> float:
        """Seconds over all stretches, the running one included; 0 for a timer that was never used."""
        with self._lock:
            timer = self._timers.get(name or GLOBAL_TIMER)
            return 0.0 if timer is None else timer.elapsed_s(self._clock())

    def get_last_elapsed(self, name: str | None = None) -> float:
        """Seconds of the running stretch, or else of the latest finished one."""
        with self._lock:
            timer = self._timers.get(name or GLOBAL_TIMER)
            if timer is None:
                return 0.0
            if timer.started_at_s is None:
                return timer.last_elapsed_s
            return self._clock() - timer.started_at_s

    def get_all_elapsed(self, exclude_global: bool = True) -> dict[str, float]:
        with self._lock:
            names = [name for name in self._timers if not (exclude_global and name == GLOBAL_TIMER)]
            return {name: self.get_elapsed(name) for name in names}

    def get_rate(self, current_steps: int, name: str | None = None) -> float:
        """Steps per second since the timer's start; 0 before any time has passed."""
        elapsed = self.get_elapsed(name)
        return current_steps / elapsed if elapsed > 0 else 0.0

    def get_lap_rate(self, current_steps: int | None = None, name: str | None = None) -> float:
        """Steps per second since the last checkpoint, or, without ``current_steps``, of the last lap."""
        with self._lock:
            if current_steps is None:
                seconds, steps = self.get_lap_time(-1, name) or 0.0, self.get_lap_steps(-1, name) or 0
            else:
                last = self._timer(name).checkpoints[-1]
                seconds, steps = self.get_elapsed(name) - last.elapsed_s, current_steps - last.steps
            return steps / seconds if seconds > 0 else 0.0

    def estimate_remaining(self, current_steps: int, total_steps: int, name: str | None = None) -> tuple[float, str]:
        """(seconds, text) to ``total_steps`` at the rate so far; infinity before there is a rate."""
        rate = self.get_rate(current_steps, name)
        if rate <= 0:
            return float("inf"), "unknown"
        seconds = max(total_steps - current_steps, 0) / rate
        return seconds, self.format_time(seconds)

    def log_progress(
        self, current_steps: int, total_steps: int, name: str | None = None, prefix: str = "Progress"
    ) -> None:
        share = 100.0 * current_steps / total_steps if total_steps else 100.0
        remaining = self.estimate_remaining(current_steps, total_steps, name)[1]
        self._logger.info(
            "%s: %d/%d (%.1f%%), %.0f steps/s, %s remaining",
            *(prefix, current_steps, total_steps, share, self.get_rate(current_steps, name), remaining),
        )

    def get_summary(self, name: str | None = None) -> dict[str, Any]:
        with self._lock:
            timer = self._timer(name)
            return {
                "name": name or GLOBAL_TIMER,
                "is_running": timer.started_at_s is not None,
                "total_elapsed": self.get_elapsed(name),
                "last_elapsed": self.get_last_elapsed(name),
                "laps": timer.laps,
                "checkpoints": [mark._asdict() for mark in timer.checkpoints],
            }

    def get_all_summaries(self) -> dict[str, dict[str, Any]]:
        with self._lock:
            return {name: self.get_summary(name) for name in list(self._timers)}

    def get_filename(self, name: str | None = None) -> str:
        """The source file that started the timer, ``multifile`` if several did, ``unknown`` if none."""
        with self._lock:
            timer = self._timers.get(name or GLOBAL_TIMER)
            files = set() if timer is None else set(map(os.path.basename, timer.started_in))
            return next(iter(files)) if len(files) == 1 else ("multifile" if files else "unknown")

    @staticmethod
    def format_time(seconds: float) -> str:
        """``45 sec``, ``12.5 min``, ``3.2 hours``, ``2.1 days``."""
        if seconds < 60:
            return f"{seconds:.0f} sec"
        if seconds < 3600:
            return f"{seconds / 60:.1f} min"
        if seconds < 86400:
            return f"{seconds / 3600:.1f} hours"
        return f"{seconds / 86400:.1f} days"

    # --- saving ------------------------------------------------------------------------------------------

    def save_state(self) -> dict[str, Any]:
        """All timers as JSON values. The running stretch of a timer is counted as finished."""
        with self._lock:
            now = self._clock()
            return {
                name: {
                    "elapsed_s": timer.elapsed_s(now),
                    "last_elapsed_s": timer.last_elapsed_s,
                    "is_running": timer.started_at_s is not None,
                    "laps": timer.laps,
                    "started_in": sorted(set(map(os.path.basename, timer.started_in))),
                    "checkpoints": [list(mark) for mark in timer.checkpoints],
                }
                for name, timer in self._timers.items()
            }

    def load_state(self, state: dict[str, Any], resume_running: bool = True) -> None:
        """Replaces all timers. Those that ran when saved run on, unless ``resume_running`` is False."""
        with self._lock:
            now = self._clock()
            self._timers = {GLOBAL_TIMER: self._new_timer()}
            for name, saved in state.items():
                timer = self._timer(name)
                timer.finished_s = saved["elapsed_s"]
                timer.last_elapsed_s = saved["last_elapsed_s"]
                timer.laps = saved["laps"]
                timer.started_in = set(saved["started_in"])
                timer.checkpoints.extend(Checkpoint(*mark) for mark in saved["checkpoints"])
                timer.started_at_s = now if saved["is_running"] and resume_running else None

    def _new_timer(self) -> _Timer:
        return _Timer(deque([Checkpoint("_start", 0.0, 0)], maxlen=self.max_laps + 1))

    def _timer(self, name: str | None) -> _Timer:
        key = name or GLOBAL_TIMER
        if key not in self._timers:
            self._timers[key] = self._new_timer()
        return self._timers[key]

    def _lap(self, lap_index: int, name: str | None) -> tuple[Checkpoint, Checkpoint] | None:
        if lap_index >= 0:
            raise ValueError(f"lap_index={lap_index} must be negative: -1 is the latest lap")
        with self._lock:
            marks = self._timer(name).checkpoints
            if -lap_index >= len(marks):
                return None
            return marks[lap_index - 1], marks[lap_index]


def with_timer(
    timer: Stopwatch, name: str | None = None, log_level: int | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator: times every call, under the function's own name unless one is given."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            with timer.time(name or function.__name__, log_level):
                return function(*args, **kwargs)

        return timed

    return decorate


def with_instance_timer(
    name: str | None = None, log_level: int | None = None, timer_attr: str = "timer"
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator for methods: times every call on the object's own stopwatch, ``self.<timer_attr>``."""

    def decorate(method: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(method)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            timer = cast(Stopwatch, getattr(args[0], timer_attr))
            with timer.time(name or method.__name__, log_level):
                return method(*args, **kwargs)

        return timed

    return decorate


def _calling_file() -> str:
    """Path of the nearest file on the stack that is not this one."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return "unknown" if frame is None else frame.f_code.co_filename
