"""From easy to hard: tasks in order, or one task whose map grows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from metta_ray.common.errors import ConfigError
from metta_ray.common.util.typed_config import StrictModel
from metta_ray.envs.tasks import TaskTemplate
from metta_ray.mettagrid.curriculum.core import Curriculum, SampledTask
from metta_ray.mettagrid.task_spec import TaskSpec


class ProgressiveConfig(StrictModel):
    """Defaults are the reference's."""

    mode: Literal["performance", "time"] = Field(
        default="performance", description="what advances: a smoothed score above the threshold, or each episode"
    )
    performance_threshold: float = Field(default=0.8, gt=0, description="smoothed score that counts as mastered")
    smoothing: float = Field(default=0.1, gt=0, le=1, description="weight of a new score in the smoothed score")
    progression_rate: float = Field(default=0.01, gt=0, le=1, description="progress per episode; 1 is the whole way")
    blending: Literal["logistic", "linear"] = Field(default="logistic", description="shape of the window's edges")
    blending_smoothness: float = Field(default=0.5, gt=0, description="width of the window's edges in tasks")


class ProgressiveCurriculum(Curriculum):
    """A window that moves along the tasks. With K tasks and progress from 0 to 1, its centre is progress · (K - 1):

        weight of task i ∝ gate(centre - (i - 1/2)) · gate((i + 1/2) - centre)

    gate is a logistic function of x / smoothness, or a line from 0 at -smoothness to 1 at +smoothness. The smoothed
    score starts at 0 and is of all tasks together.
    """

    def __init__(
        self, templates: Sequence[TaskTemplate], config: ProgressiveConfig | None = None, seed: int = 0
    ) -> None:
        super().__init__(templates, seed=seed)
        self.config = config or ProgressiveConfig()
        self.progress = 0.0
        self.smoothed_score = 0.0
        self._set_probabilities(self._window())

    def get_curriculum_stats(self) -> dict[str, float]:
        return {
            **super().get_curriculum_stats(),
            "progressive/progress": self.progress,
            "progressive/smoothed_score": self.smoothed_score,
        }

    def _learn(self, index: int, score: float) -> None:
        config, before = self.config, self.progress
        self.smoothed_score = config.smoothing * score + (1 - config.smoothing) * self.smoothed_score
        if config.mode == "time":
            self.progress = min(config.progression_rate * int(self._completions.sum()), 1.0)
        elif self.smoothed_score >= config.performance_threshold:
            self.progress = min(self.progress + config.progression_rate, 1.0)
        if self.progress != before:
            self._set_probabilities(self._window())

    def _window(self) -> NDArray[np.float64]:
        places = np.arange(len(self._templates), dtype=np.float64)
        centre = self.progress * (len(places) - 1)
        weights = self._gate(centre - places + 0.5) * self._gate(places + 0.5 - centre)
        return np.asarray(weights / weights.sum(), dtype=np.float64)

    def _gate(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        x = x / self.config.blending_smoothness
        gate = np.clip((x + 1) / 2, 0, 1) if self.config.blending == "linear" else 1 / (1 + np.exp(-x))
        return np.asarray(gate, dtype=np.float64)

    def _learner_state(self) -> dict[str, Any]:
        return {"progress": self.progress, "smoothed_score": self.smoothed_score}

    def _load_learner_state(self, state: dict[str, Any]) -> None:
        self.progress = float(state["progress"])
        self.smoothed_score = float(state["smoothed_score"])


class GrowingMapConfig(StrictModel):
    first_side: int = Field(default=10, ge=5, le=200, description="side of the first room in cells")
    largest_side: int = Field(default=100, ge=5, le=200)
    growth: float = Field(default=2.0, gt=1, description="factor of one step")
    threshold: float = Field(default=0.5, description="score above which the next size begins")


class GrowingMapCurriculum(Curriculum):
    """One task in ever larger rooms: a score above the threshold on the present size moves on to the next."""

    def __init__(self, base: TaskSpec, config: GrowingMapConfig | None = None, seed: int = 0) -> None:
        self.config = config or GrowingMapConfig()
        super().__init__([_room_of(base, side) for side in _sides(self.config)], seed=seed)
        self._go_to(0)

    def _go_to(self, stage: int) -> None:
        self.stage = stage
        self._set_probabilities(np.eye(len(self._templates))[stage])

    def _learn(self, index: int, score: float) -> None:
        # Episodes of a smaller size may still be under way elsewhere; they say nothing about this one.
        is_last = self.stage == len(self._templates) - 1
        if index == self.stage and score > self.config.threshold and not is_last:
            self._go_to(self.stage + 1)

    def _learner_state(self) -> dict[str, Any]:
        return {"stage": self.stage}

    def _load_learner_state(self, state: dict[str, Any]) -> None:
        self.stage = int(state["stage"])


def _sides(config: GrowingMapConfig) -> list[int]:
    """``10, 20, 40, 80, 100``"""
    if config.largest_side < config.first_side:
        raise ConfigError(f"largest_side={config.largest_side} is below first_side={config.first_side}")
    sides = [config.first_side]
    while sides[-1] < config.largest_side:
        sides.append(min(max(int(sides[-1] * config.growth), sides[-1] + 1), config.largest_side))
    return sides


def _room_of(base: TaskSpec, side: int) -> SampledTask:
    return SampledTask(f"side={side}", base, {"width": side, "height": side})
