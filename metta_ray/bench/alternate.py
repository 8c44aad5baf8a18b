"""Two or more ways of doing the same work take turns, so that whatever else the machine does meets all alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Collection, Mapping

Work = Callable[[], object]
Clock = Callable[[Work, int], float]
"""Seconds that so many calls take."""

ROUND_S = 0.1
MIN_ROUNDS = 3
HOPELESS = 2.0


def wall_clock(work: Work, calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        work()
    return time.perf_counter() - began


def alternate(
    sides: Mapping[str, Work], seconds: float, *, keep: Collection[str] = (), clock: Clock = wall_clock
) -> dict[str, list[float]]:
    """Seconds per call of each side, one number a round; takes about ``seconds``, at least three rounds.

    The first calls are off the record. Sides that are not in ``keep`` and take more than twice as long as the fastest
    by then are left with that one number: they cannot win, and would take most of the time.
    """
    began = time.monotonic()
    first = {name: _first_time(work, clock) for name, work in sides.items()}
    limit = HOPELESS * min(first.values())
    times: dict[str, list[float]] = {name: [] for name, taken in first.items() if taken <= limit or name in keep}
    calls = {name: max(1, math.ceil(ROUND_S / first[name])) for name in times}
    rounds = 0
    while rounds < MIN_ROUNDS or time.monotonic() - began < seconds:
        for name, taken in times.items():
            taken.append(clock(sides[name], calls[name]) / calls[name])
        rounds += 1
    return times | {name: [taken] for name, taken in first.items() if name not in times}


def medians(times: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in times.items()}


def fastest(middle: Mapping[str, float], prefix: str) -> str:
    """The side with the smallest median among those whose names begin so."""
    return min((name for name in middle if name.startswith(prefix)), key=middle.__getitem__)


def _first_time(work: Work, clock: Clock) -> float:
    """Of the second call: the first one allocates and compiles."""
    clock(work, 1)
    return clock(work, 1)
