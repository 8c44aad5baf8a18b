"""How many rollout workers a run should have, when it may choose between bounds.

Additive increase, multiplicative decrease, as in network congestion control: while the learner waits for data a
few workers are added at a time; where fragments pile up before it, a share of the workers goes at once. Three
things keep the number from swinging:

- a decision needs several observations in a row that agree, all made at the present size, and a pause after the
  last change (workers take epochs to start and to end);
- between "the learner waits" and "data piles up" lies a band in which nothing changes;
- neither step goes beyond the size at which supply would meet demand. Of n workers that wait for tickets a share
  i of their time, n × (1 - i) are needed; where the learner waits a share w of its time, n / (1 - w) are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Observation:
    """One epoch as seen by the coordinator. Shares are of the time of all replicas, or of all workers."""

    num_workers: int
    """workers that were ready"""
    learner_waiting: float
    """share of its time that the learner waited for a batch"""
    worker_waiting: float
    """share of their time that workers waited for a ticket"""
    queue_age: float
    """mean number of updates that were committed while a trained fragment lay in the queue"""


@dataclass(frozen=True)
class ScalingLimits:
    """Bounds and thresholds. What pacing can keep busy bounds the number too, but never below ``min_workers``."""

    min_workers: int
    max_workers: int
    useful_workers: int
    waiting_high: float = 0.10
    """add workers where the learner waits more than this"""
    waiting_low: float = 0.02
    """remove workers only where it waits less than this …"""
    age_high: float = 0.5
    """… and fragments lie in the queue for longer than this"""
    consecutive: int = 3
    """observations in a row that a decision needs"""
    cool_down: int = 3
    """observations after a change before the next"""
    increase: int = 2
    """workers added at a time"""
    decrease: float = 0.75
    """share of the workers that stays at a decrease"""
    headroom: float = 0.10
    """share of workers kept beyond those that are busy now"""

    @property
    def upper(self) -> int:
        return max(self.min_workers, min(self.max_workers, self.useful_workers))

    def clamp(self, num_workers: int) -> int:
        return min(max(num_workers, self.min_workers), self.upper)


@dataclass(frozen=True)
class Keep:
    reason: str


@dataclass(frozen=True)
class Resize:
    num_workers: int
    reason: str


Decision = Keep | Resize


@dataclass(frozen=True)
class ScalingState:
    """The size that is wanted, and how many observations were made since it last changed."""

    num_workers: int
    since_resize: int = 0

    def after(self, decision: Decision) -> ScalingState:
        """The state for the next observation."""
        if isinstance(decision, Resize):
            return ScalingState(decision.num_workers)
        return ScalingState(self.num_workers, self.since_resize + 1)


def decide(observations: Sequence[Observation], limits: ScalingLimits, state: ScalingState) -> Decision:
    """Asked once per epoch; ``observations`` are the last ones, oldest first, at least ``limits.consecutive``.

    Bounds come first: a size outside them changes at once.
    """
    within = limits.clamp(state.num_workers)
    if within != state.num_workers:
        return Resize(within, f"{state.num_workers} workers are outside {limits.min_workers} to {limits.upper}")
    recent = observations[-limits.consecutive :]
    if len(recent) < limits.consecutive or state.since_resize < limits.cool_down:
        return Keep("too few observations since the last change")
    if any(seen.num_workers != state.num_workers for seen in recent):
        return Keep(f"not all {state.num_workers} workers were ready all the time")

    if all(seen.learner_waiting > limits.waiting_high for seen in recent):
        return _grow(recent, limits, state.num_workers)
    if all(seen.learner_waiting < limits.waiting_low and seen.queue_age > limits.age_high for seen in recent):
        return _shrink(recent, limits, state.num_workers)
    return Keep("supply and demand agree")


def _grow(recent: Sequence[Observation], limits: ScalingLimits, num_workers: int) -> Decision:
    waiting = min(seen.learner_waiting for seen in recent)
    needed = math.ceil(num_workers / max(1.0 - waiting, 0.01))
    wanted = limits.clamp(min(num_workers + limits.increase, needed))
    if wanted <= num_workers:
        return Keep(f"learner waited {waiting:.0%} of the time; {num_workers} workers are the most allowed or useful")
    return Resize(wanted, f"learner waited {waiting:.0%} of the time")


def _shrink(recent: Sequence[Observation], limits: ScalingLimits, num_workers: int) -> Decision:
    idle = min(seen.worker_waiting for seen in recent)
    busy = math.ceil(num_workers * (1.0 - idle) * (1.0 + limits.headroom))
    wanted = limits.clamp(max(math.floor(num_workers * limits.decrease), busy))
    if wanted >= num_workers:
        return Keep(f"fragments waited, but all {num_workers} workers are busy or the fewest allowed")
    return Resize(wanted, f"fragments waited for the learner, workers waited {idle:.0%} of the time")
