"""The states of a run, and which may follow which.

    STARTING ─▶ WAITING ⇄ RUNNING ⇄ PAUSED        WAITING: for workers, that is for resources of the cluster
                   │         ⇅         │          EVALUATING: also at any time between updates
                   │     EVALUATING    │
                   └────▶ DRAINING ◀───┘          DRAINING: no new tickets; what is in flight is finished
                             │
                   DONE · STOPPED · FAILED        DONE: all agent steps; STOPPED: on request; FAILED: with a cause

A run may fail in any state. The final states have no followers: whoever goes on with the run starts a new
generation of it, at STARTING.
"""

from __future__ import annotations

from enum import StrEnum

from metta_ray.common.errors import UsageError


class RunState(StrEnum):
    STARTING = "starting"
    WAITING = "waiting"
    RUNNING = "running"
    PAUSED = "paused"
    DRAINING = "draining"
    EVALUATING = "evaluating"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def is_final(self) -> bool:
        return not FOLLOWERS[self]


_S = RunState
FOLLOWERS: dict[RunState, frozenset[RunState]] = {
    _S.STARTING: frozenset({_S.WAITING, _S.RUNNING, _S.DRAINING, _S.EVALUATING, _S.DONE, _S.STOPPED, _S.FAILED}),
    _S.WAITING: frozenset({_S.RUNNING, _S.PAUSED, _S.DRAINING, _S.STOPPED, _S.FAILED}),
    _S.RUNNING: frozenset({_S.WAITING, _S.PAUSED, _S.EVALUATING, _S.DRAINING, _S.FAILED}),
    _S.PAUSED: frozenset({_S.WAITING, _S.RUNNING, _S.EVALUATING, _S.DRAINING, _S.FAILED}),
    _S.EVALUATING: frozenset({_S.WAITING, _S.RUNNING, _S.PAUSED, _S.DRAINING, _S.DONE, _S.STOPPED, _S.FAILED}),
    _S.DRAINING: frozenset({_S.EVALUATING, _S.DONE, _S.STOPPED, _S.FAILED}),
    _S.DONE: frozenset(),
    _S.STOPPED: frozenset(),
    _S.FAILED: frozenset(),
}
"""A run that is resumed after its last step goes from STARTING to EVALUATING or DONE without collecting."""


def may_follow(state: RunState, following: RunState) -> bool:
    """Staying is no transition, and always allowed."""
    return following is state or following in FOLLOWERS[state]


def advance(state: RunState, following: RunState) -> RunState:
    """``following``, or UsageError where it cannot come after ``state``."""
    if not may_follow(state, following):
        allowed = ", ".join(sorted(FOLLOWERS[state])) or "nothing: it is final"
        raise UsageError(f"a run cannot go from {state} to {following}; what may follow is {allowed}")
    return following
