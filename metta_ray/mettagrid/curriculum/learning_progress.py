"""Bidirectional learning progress: practise where the success rate moves, up or down.

After Kanitscheider et al. 2021, "Multi-task curriculum learning in a complex, visual, hard-exploration
domain: Minecraft", in the form of the 2025 Metta trainer. Per task i, letters as in the code:

    s        success rate: mean of the stored scores, each clamped to [0, 1]; 0 where there is none
    b        baseline: min(s, 0.75) at the first recompute
    q        = max(s - b, 0) / (1 - b)
    fast     ← α q + (1 - α) fast           (first recompute: q)
    slow     ← α fast + (1 - α) slow        (first recompute: q)
    true     ← α s + (1 - α) true           (first recompute: s)
    w(p)     = p (1 - ε) / (p + ε (1 - 2p)), which stretches differences near 0
    progress = |w(fast) - w(slow)|

Candidates are tasks with progress > 0 or true > 0. Their progress becomes a z-score (population standard
deviation; only centred where that is 0), goes through a sigmoid and is normalised to sum 1; other tasks get
0. Without candidates all tasks get the same.

With each recompute a few tasks become *active*: each is drawn uniformly with probability
``rand_task_rate``, else by the new weights. Only active tasks enter the averages of the next recompute, which
is due when one of them has ``sample_threshold`` new scores. All tasks are active at first. What is sampled is
not restricted to active tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from metta_ray.common.util.typed_config import StrictModel
from metta_ray.envs.tasks import TaskTemplate
from metta_ray.mettagrid.curriculum.core import Curriculum

_MAX_BASELINE = 0.75
# Scores stored per task between two recomputes, as a multiple of the memory; beyond it the oldest go.
_HEADROOM = 8


class LearningProgressConfig(StrictModel):
    """Defaults are the reference's; they suit runs of millions of episodes."""

    ema_timescale: float = Field(
        default=0.001, gt=0, le=1, description="α; short runs need more, e.g. 0.1 for thousands of episodes"
    )
    progress_smoothing: float = Field(
        default=0.05, gt=0, lt=0.5, description="ε; smaller stretches low success rates more"
    )
    num_active_tasks: int = Field(default=16, ge=1, description="draws per recompute, repetitions allowed")
    rand_task_rate: float = Field(default=0.25, ge=0, le=1, description="share of uniformly drawn active tasks")
    sample_threshold: int = Field(default=10, ge=1, description="scores of one active task until a recompute")
    memory: int = Field(default=25, ge=1, description="latest scores of a task that outlive a recompute")
    uniform_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of episodes drawn uniformly, mixed into the weights; above 0 no task is given up "
        "for ever because its first scores were 0",
    )


class LearningProgress:
    """The averages and weights of ``num_tasks`` tasks. Feed ``add``; it says when the weights changed."""

    def __init__(self, num_tasks: int, config: LearningProgressConfig, rng: np.random.Generator) -> None:
        self.config = config
        self.num_tasks = num_tasks
        self.weights: NDArray[np.float64] = np.full(num_tasks, 1.0 / num_tasks)
        self.recomputes = 0
        self._rng = rng
        self._scores = np.zeros((num_tasks, _HEADROOM * config.memory))  # row i: first _counts[i] columns
        self._counts = np.zeros(num_tasks, dtype=np.int64)
        self._new_counts = np.zeros(num_tasks, dtype=np.int64)  # since the last recompute
        self._is_active = np.ones(num_tasks, dtype=np.bool_)
        self._baseline = np.zeros(num_tasks)
        self._fast = np.zeros(num_tasks)
        self._slow = np.zeros(num_tasks)
        self._true = np.zeros(num_tasks)

    def add(self, task: int, score: float) -> bool:
        """Stores a score; True if the weights were recomputed."""
        if self._counts[task] == self._scores.shape[1]:
            self._scores[task, :-1] = self._scores[task, 1:]
            self._counts[task] -= 1
        self._scores[task, self._counts[task]] = min(max(score, 0.0), 1.0)
        self._counts[task] += 1
        self._new_counts[task] += 1
        if not (self._is_active[task] and self._new_counts[task] >= self.config.sample_threshold):
            return False
        self._recompute()
        return True

    @property
    def success_rates(self) -> NDArray[np.float64]:
        """s: mean of the stored scores, 0 where there is none."""
        filled = np.arange(self._scores.shape[1]) < self._counts[:, None]
        sums = np.where(filled, self._scores, 0.0).sum(axis=1)
        return np.asarray(sums / np.maximum(self._counts, 1), dtype=np.float64)

    @property
    def progress(self) -> NDArray[np.float64]:
        """|w(fast) - w(slow)|"""
        return np.abs(self._reweight(self._fast) - self._reweight(self._slow))

    @property
    def is_candidate(self) -> NDArray[np.bool_]:
        return (self.progress > 0) | (self._true > 0)

    def state_dict(self) -> dict[str, Any]:
        used = int(self._counts.max())
        return {
            "weights": self.weights.copy(),
            "recomputes": self.recomputes,
            "scores": self._scores[:, :used].copy(),
            "counts": self._counts.copy(),
            "new_counts": self._new_counts.copy(),
            "is_active": self._is_active.copy(),
            "baseline": self._baseline.copy(),
            "fast": self._fast.copy(),
            "slow": self._slow.copy(),
            "true": self._true.copy(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weights = np.array(state["weights"], dtype=np.float64)
        self.recomputes = int(state["recomputes"])
        # Under a smaller memory than the saved one the latest scores are kept.
        saved_counts = np.asarray(state["counts"], dtype=np.int64)
        self._counts = np.minimum(saved_counts, self._scores.shape[1])
        self._scores[:] = 0.0
        for task, (kept, saved) in enumerate(zip(self._counts, saved_counts, strict=True)):
            self._scores[task, :kept] = state["scores"][task, saved - kept : saved]
        self._new_counts = np.array(state["new_counts"], dtype=np.int64)
        self._is_active = np.array(state["is_active"], dtype=np.bool_)
        self._baseline = np.array(state["baseline"], dtype=np.float64)
        self._fast = np.array(state["fast"], dtype=np.float64)
        self._slow = np.array(state["slow"], dtype=np.float64)
        self._true = np.array(state["true"], dtype=np.float64)

    def _recompute(self) -> None:
        self._update_averages(self.success_rates)
        self._forget_old_scores()
        by_progress = self._weights_by_progress()
        self._choose_active_tasks(by_progress)
        share = self.config.uniform_share
        self.weights = (1.0 - share) * by_progress + share / self.num_tasks
        self.recomputes += 1

    def _update_averages(self, s: NDArray[np.float64]) -> None:
        if self.recomputes == 0:
            self._baseline = np.minimum(s, _MAX_BASELINE)
        q = np.maximum(s - self._baseline, 0.0) / (1.0 - self._baseline)
        if self.recomputes == 0:
            self._fast, self._slow, self._true = q.copy(), q.copy(), s.copy()
            return
        alpha, active = self.config.ema_timescale, self._is_active
        self._fast[active] = alpha * q[active] + (1.0 - alpha) * self._fast[active]
        self._slow[active] = alpha * self._fast[active] + (1.0 - alpha) * self._slow[active]
        self._true[active] = alpha * s[active] + (1.0 - alpha) * self._true[active]

    def _forget_old_scores(self) -> None:
        memory = self.config.memory
        first_kept = np.maximum(self._counts - memory, 0)
        columns = first_kept[:, None] + np.arange(memory)
        self._scores[:, :memory] = np.take_along_axis(self._scores, columns, axis=1)
        self._counts = np.minimum(self._counts, memory)

    def _weights_by_progress(self) -> NDArray[np.float64]:
        candidates = self.is_candidate
        if not candidates.any():
            return np.full(self.num_tasks, 1.0 / self.num_tasks)
        progress = self.progress[candidates]
        spread = progress.std()
        z = (progress - progress.mean()) / (spread if spread > 0 else 1.0)
        sigmoid = 1.0 / (1.0 + np.exp(-z))
        weights = np.zeros(self.num_tasks)
        weights[candidates] = sigmoid / sigmoid.sum()
        return weights

    def _choose_active_tasks(self, weights: NDArray[np.float64]) -> None:
        draws = self.config.num_active_tasks
        uniform = self._rng.integers(self.num_tasks, size=draws)
        weighted = self._rng.choice(self.num_tasks, size=draws, p=weights)
        is_uniform = self._rng.random(draws) < self.config.rand_task_rate
        self._is_active = np.zeros(self.num_tasks, dtype=np.bool_)
        self._is_active[np.where(is_uniform, uniform, weighted)] = True
        self._new_counts[:] = 0

    def _reweight(self, p: NDArray[np.float64]) -> NDArray[np.float64]:
        eps = self.config.progress_smoothing
        return p * (1.0 - eps) / (p + eps * (1.0 - 2.0 * p))


class LearningProgressCurriculum(Curriculum):
    """Chooses among tasks by learning progress."""

    def __init__(
        self,
        templates: Sequence[TaskTemplate],
        config: LearningProgressConfig | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(templates, seed=seed)
        self.learning_progress = LearningProgress(len(self._templates), config or LearningProgressConfig(), self._rng)

    @property
    def outcomes_to_move(self) -> int | None:
        """Of each task, on average, before the weights move; None once they may have. The first recompute, when the
        luckiest task has its ``sample_threshold``, only sets the averages; the second comes about as late again."""
        lp = self.learning_progress
        return lp.config.sample_threshold if lp.recomputes < 2 else None

    def get_curriculum_stats(self) -> dict[str, float]:
        lp = self.learning_progress
        probabilities = self._table.probabilities
        return {
            **super().get_curriculum_stats(),
            "lp/recomputes": float(lp.recomputes),
            "lp/candidates": float(lp.is_candidate.sum()),
            "lp/mean_progress": float(lp.progress.mean()),
            "lp/mean_success_rate": float(lp.success_rates.mean()),
            "lp/max_task_probability": float(probabilities.max()),
            "lp/min_task_probability": float(probabilities.min()),
        }

    def _learn(self, index: int, score: float) -> None:
        if self.learning_progress.add(index, score):
            self._set_probabilities(self.learning_progress.weights)

    def _progress(self) -> NDArray[np.float64]:
        return self.learning_progress.progress

    def _learner_state(self) -> dict[str, Any]:
        return self.learning_progress.state_dict()

    def _load_learner_state(self, state: dict[str, Any]) -> None:
        self.learning_progress.load_state_dict(state)
