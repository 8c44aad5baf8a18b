"""What one agent step costs each part of a training on one core, measured once per machine, and the floor that follows.

times.floor(cores=2, rows=256, minibatch=4096, update_epochs=1)  # agent steps/s if those two cores never waited
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self


@dataclass(frozen=True)
class Curve:
    """Seconds per item of calls of several sizes: ``((size, seconds), …)``, sizes growing.

    Between two measured sizes the time of a whole call is linear in its size, so what a call costs however small it
    is counts for less as it grows.
    """

    points: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, points: Iterable[Iterable[float]]) -> Self:
        return cls(tuple(sorted((int(size), float(seconds)) for size, seconds in points)))

    def at(self, size: float) -> float:
        """Seconds per item in calls of ``size`` items."""
        first, last = self.points[0], self.points[-1]
        if len(self.points) == 1:
            return first[1]
        below = max((point for point in self.points[:-1] if point[0] <= size), default=first)
        above = self.points[self.points.index(below) + 1]
        slope = (above[0] * above[1] - below[0] * below[1]) / (above[0] - below[0])
        fixed = below[0] * below[1] - slope * below[0]
        if size < first[0] and fixed < 0:
            return first[1]  # larger calls were slower per item: nothing is known of a cost per call
        if size > last[0] and slope <= 0:
            return last[1]
        return fixed / size + slope


@dataclass(frozen=True)
class ServiceTimes:
    """Processor time of one thread, in seconds; per agent step where nothing else is said.

    environment, inference: by rows (agents) that step together. training: of one pass over the batch (forward,
    backward, losses, optimiser) by agent steps of a minibatch in one replica. look_again: what data of an older
    policy cost beside that. advantage: of the whole batch, once per update. transport: packing a fragment and copying
    it into an object store. staging: reading it and copying it into a learner's batch.
    thread_gains: how many times as fast a replica trains with so many threads, ``((threads, times), …)``.
    publish_s: weights and optimiser state, per update. load_s: new weights, per worker and update.
    step_bytes: of one agent step in a fragment. weights_bytes: of the policy.
    """

    environment: Curve
    inference: Curve
    training: Curve
    look_again: float
    advantage: float
    transport: float
    staging: float
    publish_s: float
    load_s: float
    step_bytes: float
    weights_bytes: int
    thread_gains: tuple[tuple[int, float], ...] = ((1, 1.0),)

    def collecting(self, rows: float) -> float:
        """Of a rollout worker that steps so many agents together, without what its fragments cost on the way."""
        return self.environment.at(rows) + self.inference.at(rows)

    def learning(self, minibatch: float, update_epochs: int, *, is_off_policy: bool = False, threads: int = 1) -> float:
        """Of the learner, without what it has to say and to hear. minibatch, threads: of one replica."""
        again = self.look_again if is_off_policy else 0.0
        return (update_epochs * self.training.at(minibatch) + self.advantage + again) / self.thread_gain(threads)

    def thread_gain(self, threads: int) -> float:
        """Of so many threads, or of the most below that were measured."""
        return max((gain for count, gain in self.thread_gains if count <= threads), default=1.0)

    def floor(
        self, cores: float, *, rows: float, minibatch: float, update_epochs: int, is_off_policy: bool = False
    ) -> float:
        """Agent steps per second if ``cores`` did nothing but step, infer and train, all at the same time."""
        return cores / (self.collecting(rows) + self.learning(minibatch, update_epochs, is_off_policy=is_off_policy))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``to_json``. KeyError, TypeError or ValueError for anything else."""
        read: dict[str, Any] = {
            name: Curve.of(values[name]["points"]) for name in ("environment", "inference", "training")
        }
        gains = values.get("thread_gains", ((1, 1.0),))  # older records have none
        read["thread_gains"] = tuple((int(count), float(gain)) for count, gain in gains)
        return cls(**{field.name: read.get(field.name, values[field.name]) for field in fields(cls)})
