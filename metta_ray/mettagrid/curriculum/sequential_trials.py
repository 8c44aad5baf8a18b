"""A course of trials: the next begins when one is passed, the one before comes back when one is failed badly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from metta_ray.common.errors import ConfigError
from metta_ray.common.util.typed_config import StrictModel
from metta_ray.mettagrid.curriculum.core import Curriculum, SampledTask, parse_param
from metta_ray.mettagrid.task_spec import TaskSpec


class SequentialTrialsConfig(StrictModel):
    advancement_threshold: float = Field(default=0.5, description="a trial's score from which the next one begins")
    regression_threshold: float | None = Field(
        default=None, description="a trial's score below which the one before comes back; None: never"
    )
    max_trials: int | None = Field(default=None, ge=1, description="trials after which the course ends; None: no limit")
    episodes_per_trial: int = Field(
        default=1, ge=1, description="episodes whose mean is a trial's score; more than 1 where many run at once"
    )


class SequentialTrialsCurriculum(Curriculum):
    """One course for the whole run, since environments report to one curriculum. It ends past the last trial or
    after ``max_trials``; then it starts again, and ``course_scores`` has the sum of its trials' scores.

    trials: for each, TaskSpec field → value, list of choices or range.
    """

    def __init__(
        self,
        base: TaskSpec,
        trials: Sequence[Mapping[str, Any]],
        config: SequentialTrialsConfig | None = None,
        seed: int = 0,
    ) -> None:
        self.config = config or SequentialTrialsConfig()
        lower, upper = self.config.regression_threshold, self.config.advancement_threshold
        if lower is not None and lower > upper:
            raise ConfigError(f"regression_threshold={lower} is above advancement_threshold={upper}")
        templates = [
            SampledTask(f"trial={number}", base, {name: parse_param(value) for name, value in changes.items()})
            for number, changes in enumerate(trials)
        ]
        for template in templates:
            template.draw(np.random.default_rng(0))  # refuses unknown fields and impossible values now
        super().__init__(templates, seed=seed)
        self.course_scores: list[float] = []  # of the last courses
        self._scores: list[float] = []  # of the present trial's episodes
        self._trials_done, self._sum = 0, 0.0
        self._go_to(0)

    def get_curriculum_stats(self) -> dict[str, float]:
        last = {"sequential/last_course_score": self.course_scores[-1]} if self.course_scores else {}
        return {**super().get_curriculum_stats(), "sequential/trial": float(self.trial), **last}

    def _go_to(self, trial: int) -> None:
        self.trial = trial
        self._set_probabilities(np.eye(len(self._templates))[trial])

    def _learn(self, index: int, score: float) -> None:
        if index != self.trial:
            return  # an episode that began before the trial changed
        self._scores.append(score)
        if len(self._scores) == self.config.episodes_per_trial:
            self._finish_trial(float(np.mean(self._scores)))

    def _finish_trial(self, score: float) -> None:
        config = self.config
        self._scores = []
        self._trials_done += 1
        self._sum += score
        following = self.trial
        if score >= config.advancement_threshold:
            following += 1
        elif config.regression_threshold is not None and score < config.regression_threshold:
            following = max(following - 1, 0)
        if following == len(self._templates) or self._trials_done == config.max_trials:
            self.course_scores = [*self.course_scores, self._sum][-100:]
            self._trials_done, self._sum, following = 0, 0.0, 0
        if following != self.trial:
            self._go_to(following)

    def _learner_state(self) -> dict[str, Any]:
        return {
            "trial": self.trial,
            "scores": list(self._scores),
            "trials_done": self._trials_done,
            "sum": self._sum,
            "course_scores": list(self.course_scores),
        }

    def _load_learner_state(self, state: dict[str, Any]) -> None:
        self.trial = int(state["trial"])
        self._scores = [float(score) for score in state["scores"]]
        self._trials_done, self._sum = int(state["trials_done"]), float(state["sum"])
        self.course_scores = [float(score) for score in state["course_scores"]]
