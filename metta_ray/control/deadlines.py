"""Deadlines that follow what is usual: a call is overdue after several times its own 95th percentile."""

from __future__ import annotations

import math
from collections import deque

DEADLINE_FACTOR = 5.0
WINDOW = 100


class Durations:
    """The last durations of one kind of call."""

    def __init__(self, window: int = WINDOW) -> None:
        self._seconds: deque[float] = deque(maxlen=window)

    def __len__(self) -> int:
        return len(self._seconds)

    def add(self, seconds: float) -> None:
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ValueError(f"{seconds} is not a duration in seconds")
        self._seconds.append(seconds)

    def add_missed(self, deadline_s: float) -> None:
        """A call that ran into its deadline. Once one call in twenty does (so at once while little is known) the
        deadline doubles: a real slow-down is not taken for a hang for ever, and a hang is soon found again."""
        self.add(2 * deadline_s / DEADLINE_FACTOR)

    def p95(self) -> float | None:
        """The smallest duration that 95 % of the window do not exceed (nearest rank); None before the first."""
        if not self._seconds:
            return None
        rank = -(-95 * len(self._seconds) // 100)
        return sorted(self._seconds)[rank - 1]

    def deadline(self, minimum_s: float, factor: float = DEADLINE_FACTOR) -> float:
        """max(minimum, factor × p95) in seconds; the minimum while nothing is known."""
        return max(minimum_s, factor * (self.p95() or 0.0))
