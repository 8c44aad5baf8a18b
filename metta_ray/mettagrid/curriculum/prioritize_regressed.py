"""Practise what was once known better: the further a task's average fell below its best, the more it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from metta_ray.common.util.typed_config import StrictModel
from metta_ray.envs.tasks import TaskTemplate
from metta_ray.mettagrid.curriculum.core import Curriculum

_TINY = 1e-6


class PrioritizeRegressedConfig(StrictModel):
    moving_average_decay: float = Field(
        default=0.01, gt=0, le=1, description="weight of a new score in a task's average; larger forgets sooner"
    )
    uniform_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of episodes drawn uniformly; above 0 tasks that were never tried are tried, too",
    )


class PrioritizeRegressedCurriculum(Curriculum):
    """The 2025 Metta rule. Per task, all starting at 0, d the decay:

        average ← (1 - d) average + d score
        best    ← max(best, score)
        weight  = 1e-6 + best / (average + 1e-6)

    Once one task has scored, tasks that never did (weight 1e-6) are hardly drawn unless ``uniform_share`` is above 0.
    """

    def __init__(
        self, templates: Sequence[TaskTemplate], config: PrioritizeRegressedConfig | None = None, seed: int = 0
    ) -> None:
        super().__init__(templates, seed=seed)
        self.config = config or PrioritizeRegressedConfig()
        self._average = np.zeros(len(self._templates))
        self._best = np.zeros(len(self._templates))

    def _learn(self, index: int, score: float) -> None:
        score, decay = max(score, 0.0), self.config.moving_average_decay
        self._average[index] = (1 - decay) * self._average[index] + decay * score
        self._best[index] = max(self._best[index], score)
        weights = _TINY + self._best / (self._average + _TINY)
        share = self.config.uniform_share
        self._set_probabilities((1 - share) * weights / weights.sum() + share / len(weights))

    def _progress(self) -> NDArray[np.float64]:
        """How far below its best each task is."""
        return self._best - self._average

    def _learner_state(self) -> dict[str, Any]:
        return {"average": self._average.copy(), "best": self._best.copy()}

    def _load_learner_state(self, state: dict[str, Any]) -> None:
        self._average = np.array(state["average"], dtype=np.float64)
        self._best = np.array(state["best"], dtype=np.float64)
