"""How many rollout workers a run wants: a number, or what the load asks for between two bounds."""

from __future__ import annotations

from typing import Any

from metta_ray.control.scaling import Observation, Resize, ScalingLimits, ScalingState, decide
from metta_ray.service.run_config import RunConfig, parse_workers
from metta_ray.service.sizes import Sizes, too_many_workers


class WorkerCount:
    """wanted: the number now."""

    def __init__(self, config: RunConfig, sizes: Sizes) -> None:
        self.wanted = config.rollout.initial_workers
        self._config = config
        self._sizes = sizes
        self._limits: ScalingLimits | None = None
        self._state = ScalingState(self.wanted)
        self._observations: list[Observation] = []

    @property
    def configured(self) -> str:
        """What the configuration asks for, as ``ask`` takes it."""
        rollout = self._config.rollout
        return f"{rollout.min_workers}:{rollout.max_workers}" if rollout.is_automatic else str(rollout.num_workers)

    def ask(self, text: str) -> str:
        """``8``, or ``2:16``; returns a warning where more than can be useful are asked for. ConfigError for others."""
        target, useful = parse_workers(text), self._sizes.useful_workers
        if target.min_workers is None or target.max_workers is None:
            assert target.num_workers is not None
            self._limits, self.wanted, most = None, target.num_workers, target.num_workers
        else:
            self._limits = ScalingLimits(target.min_workers, target.max_workers, useful)
            self.wanted, most = self._limits.clamp(self.wanted), target.max_workers
        self._state, self._observations = ScalingState(self.wanted), []
        return too_many_workers(most, self._config, self._sizes) if most > useful else ""

    def observe(self, epoch: dict[str, Any], ready: int) -> Resize | None:
        """One epoch's record; a decision where the automatic number changes."""
        shares = epoch["shares"]
        if self._limits is None or not shares:
            return None
        self._observations.append(Observation(ready, shares["no_data"], shares["no_ticket"], epoch["queue_age"]))
        del self._observations[: -2 * self._limits.consecutive]
        decision = decide(self._observations, self._limits, self._state)
        self._state = self._state.after(decision)
        if not isinstance(decision, Resize):
            return None
        self.wanted = decision.num_workers
        return decision
