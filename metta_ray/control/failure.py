"""What follows when a process of the run ends: a replacement, one slot less, or the end of the run. Whatever happens to
evaluators, the run goes on: in the end without them.

Every cause has a budget of its own, counted within a window of time, so that a night of preemptions does not use
up what crashes may cost. The first failure of a slot is replaced at once. A slot that fails again within the
window waits, twice as long each time: a fault that repeats must not become a loop of restarts, and a fault that
does not should cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

MAX_DOUBLINGS = 32  # 2.0**1024 overflows; back-off is at its maximum long before this


class Cause(StrEnum):
    """Why a process of the run ended. Also a metric label."""

    CRASH = "crash"
    PREEMPTED = "preempted"
    """its node was taken away with notice"""
    OUT_OF_MEMORY = "out_of_memory"
    ENVIRONMENT = "environment"
    """its environments cannot be made or go on failing"""
    HANG = "hang"
    """alive, but past the deadline of a call"""
    NODE_LOST = "node_lost"
    DRAINED = "drained"
    """retired on purpose"""


@dataclass(frozen=True)
class Budget:
    """Failures of one cause that are replaced within ``window_s``: by slot, and in the whole run. None: any number.

    ``Budget(backoff_s=0)`` is that of preemptions and drains: nobody is to blame, so no limit and no delay.
    """

    slot_limit: int | None = None
    run_limit: int | None = None
    window_s: float = 300.0
    backoff_s: float = 1.0
    """Delay after the second failure of a slot; doubled with each further one. 0: never a delay."""
    max_backoff_s: float = 60.0


@dataclass(frozen=True)
class Replace:
    """Start another process in the slot after ``delay_s``."""

    delay_s: float
    reason: str


@dataclass(frozen=True)
class GiveUp:
    """Leave the slot empty; the run goes on with the others."""

    slot: int
    reason: str


@dataclass(frozen=True)
class Raise:
    """The run cannot go on: fail with this reason (and the first error's own text, which the caller has)."""

    reason: str


@dataclass(frozen=True)
class GoWithout:
    """Start no further process of this kind; the run goes on without."""

    reason: str


Decision = Replace | GiveUp | Raise
NOBODYS_FAULT = (Cause.PREEMPTED, Cause.DRAINED)
"""Causes that use up no budget."""


def decide(
    cause: Cause,
    history: tuple[float, ...],
    run_history: tuple[float, ...],
    now: float,
    budget: Budget,
    *,
    slot: int,
    other_slots: int,
) -> Decision:
    """What to do about a failure that happened ``now``.

    ``history`` and ``run_history`` are the times of earlier failures of the same cause, in this slot and in the
    whole run; neither contains this one. ``other_slots`` is how many are in use besides this one: the last one
    is not given up, the run fails instead, for nothing would ever be collected again.
    """
    in_slot = 1 + _within(history, now, budget.window_s)
    in_run = 1 + _within(run_history, now, budget.window_s)
    if budget.run_limit is not None and in_run > budget.run_limit:
        return Raise(
            f"{cause}: {in_run} failures in {budget.window_s:g} s, the run's limit is {budget.run_limit}; "
            "find the common cause in the log of the first one"
        )
    if budget.slot_limit is not None and in_slot > budget.slot_limit:
        reason = f"{cause}: {in_slot} failures of slot {slot} in {budget.window_s:g} s, limit {budget.slot_limit}"
        return GiveUp(slot, reason) if other_slots > 0 else Raise(f"{reason}; no other slot is left")
    delay_s = backoff(in_slot, budget)
    count = "first failure" if in_slot == 1 else f"failure {in_slot} in {budget.window_s:g} s"
    return Replace(delay_s, f"{cause}: {count} of slot {slot}, replaced {_after(delay_s)}")


def decide_evaluator(
    cause: Cause, history: tuple[float, ...], now: float, budget: Budget, setting: str
) -> Replace | GoWithout:
    """What to do about an evaluator that was lost ``now``. ``history``: times of earlier losses, this one not among
    them; all causes count together, for all cost the same: an evaluation's try. ``setting``: the limit's name."""
    if cause in NOBODYS_FAULT:
        return Replace(0.0, f"{cause}: replaced at once")
    lost = 1 + _within(history, now, budget.window_s)
    count = f"{lost} evaluators lost in {budget.window_s:g} s"
    if budget.run_limit is not None and lost > budget.run_limit:
        return GoWithout(f"{count} ({setting}={budget.run_limit}), the last by {cause}")
    delay_s = backoff(lost, budget)
    return Replace(delay_s, f"{cause}: {'first evaluator lost' if lost == 1 else count}, replaced {_after(delay_s)}")


def backoff(failures: int, budget: Budget) -> float:
    """0 for the first failure, then backoff_s × 2^(failures - 2), at most max_backoff_s."""
    if failures < 2:
        return 0.0
    doublings = min(failures - 2, MAX_DOUBLINGS)
    return float(min(budget.max_backoff_s, budget.backoff_s * 2.0**doublings))


def _within(history: tuple[float, ...], now: float, window_s: float) -> int:
    return sum(now - time < window_s for time in history)


def _after(delay_s: float) -> str:
    return f"after {delay_s:g} s" if delay_s else "at once"
