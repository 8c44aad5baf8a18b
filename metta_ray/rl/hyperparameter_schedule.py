"""Hyperparameters that move during training.

Values depend on the agent step alone, so a resumed run needs no state for them. With progress
p = min(agent step / total, 1), initial value v0 and end value m (default v0 / 10):

    constant      v0
    linear        v0 + (m - v0) p
    cosine        m + (v0 - m) (1 + cos πp) / 2
    exponential   max(v0 · rate^p, m)                            rate 0.95
    logarithmic   v0 + (m - v0) · log(1 + rate p) / log(1 + rate)    rate 0.1
"""

from __future__ import annotations

import math
from typing import Any, Protocol

from metta_ray.rl.trainer_config import ScheduleConfig, TrainerConfig

_DEFAULT_RATES = {"exponential": 0.95, "logarithmic": 0.1}


class HasParamGroups(Protocol):
    """A torch optimiser, or whatever wraps one."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...


def scheduled_value(schedule: ScheduleConfig, initial_value: float, progress: float) -> float:
    """The value at ``progress`` (clamped to [0, 1]); ``initial_value`` serves where the schedule has none."""
    v0 = initial_value if schedule.initial_value is None else schedule.initial_value
    m = 0.1 * v0 if schedule.min_value is None else schedule.min_value
    rate = schedule.rate if schedule.rate is not None else _DEFAULT_RATES.get(schedule.type, 1.0)
    p = min(max(progress, 0.0), 1.0)
    if schedule.type == "linear":
        return v0 + (m - v0) * p
    if schedule.type == "cosine":
        return m + (v0 - m) * 0.5 * (1.0 + math.cos(math.pi * p))
    if schedule.type == "exponential":
        return max(v0 * math.pow(rate, p), m)
    if schedule.type == "logarithmic":
        return v0 + (m - v0) * math.log1p(rate * p) / math.log1p(rate)
    return v0


class HyperparameterScheduler:
    """Writes scheduled values where they act: ``trainer_config`` and, for ``optimizer.…``, the param groups.

    The values found in ``trainer_config`` at construction are the initial ones, so construct it from the
    configuration as given, also when a run is resumed. A param group may carry ``lr_scale``, a factor on the
    learning rate. The learning rate in ``trainer_config`` stays the initial one.
    """

    def __init__(
        self,
        trainer_config: TrainerConfig,
        optimizer: HasParamGroups | None = None,
        total_timesteps: int | None = None,
    ) -> None:
        self._config = trainer_config
        self._optimizer = optimizer
        self._total = total_timesteps or trainer_config.total_timesteps
        self._schedules = trainer_config.hyperparameter_scheduler.schedules
        self._initial = {path: _get(trainer_config, path) for path in self._schedules}

    def step(self, agent_step: int) -> dict[str, float]:
        """Sets every scheduled value for ``agent_step``; returns {dotted name: value}."""
        progress = agent_step / self._total
        values = {
            path: scheduled_value(schedule, self._initial[path], progress) for path, schedule in self._schedules.items()
        }
        for path, value in values.items():
            self._apply(path, value)
        return values

    def _apply(self, path: str, value: float) -> None:
        section, field = path.split(".")
        if section != "optimizer":
            setattr(getattr(self._config, section), field, value)
        elif self._optimizer is not None:
            for group in self._optimizer.param_groups:
                _set_in_group(group, field, value)


def _set_in_group(group: dict[str, Any], field: str, value: float) -> None:
    if field == "learning_rate":
        group["lr"] = value * group.get("lr_scale", 1.0)
    elif field in ("beta1", "beta2") and "betas" in group:
        beta1, beta2 = group["betas"]
        group["betas"] = (value, beta2) if field == "beta1" else (beta1, value)
    elif field in group:  # eps, weight_decay; not every kind of group has them
        group[field] = value


def _get(config: TrainerConfig, path: str) -> float:
    section, field = path.split(".")
    return float(getattr(getattr(config, section), field))
