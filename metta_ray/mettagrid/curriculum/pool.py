"""A pool of generated tasks: what teaches stays, what does not makes room for a new one, without end.

A task is a number; a ``TaskGenerator`` turns it into the same task in every process. So what travels of a pool's
table is a row of numbers, and what a checkpoint keeps of it, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from metta_ray.common.errors import CheckpointError, ConfigError
from metta_ray.common.util.typed_config import StrictModel
from metta_ray.envs.tasks import TaskTable, TaskTemplate, TaskWeights
from metta_ray.mettagrid.curriculum.core import Curriculum, shares
from metta_ray.mettagrid.task_spec import FixedTask, TaskSpec

_MAP_ENTROPY = 905  # maps of generated tasks are none of any evaluation's
_SEPARATOR = "#"


class TaskGenerator:
    """Number → task, the same one everywhere.

    families: what a task is drawn from, by ``weights``. fixed_maps: a task also has one map, not one per episode.
    """

    def __init__(
        self,
        families: Sequence[TaskTemplate],
        weights: Sequence[float] | None = None,
        *,
        seed: int = 0,
        fixed_maps: bool = False,
    ) -> None:
        if not families:
            raise ConfigError("a pool of tasks needs at least one family of tasks")
        self.families = tuple(families)
        self._shares = None if weights is None else shares(weights, len(families))
        self._seed = seed
        self._has_fixed_maps = fixed_maps
        self._made: dict[int, FixedTask] = {}

    def tasks(self, numbers: NDArray[np.int64]) -> tuple[FixedTask, ...]:
        """The tasks of these numbers; they are kept until other ones are asked for."""
        self._made = {number: self._made.get(number) or self._make(number) for number in numbers.tolist()}
        return tuple(self._made.values())

    def _make(self, number: int) -> FixedTask:
        words = (_MAP_ENTROPY, self._seed, number)
        rng = np.random.default_rng(words)
        family = self.families[rng.choice(len(self.families), p=self._shares)]
        spec: TaskSpec = family.draw(rng)
        if self._has_fixed_maps:
            spec = spec.model_copy(update={"map_seed": words})
        return FixedTask(spec, f"{family.task_id}{_SEPARATOR}{number}")


@dataclass(frozen=True)
class PoolTable(TaskTable):
    """numbers: of the tasks in ``templates``."""

    generator: TaskGenerator
    numbers: NDArray[np.int64]

    @classmethod
    def of(cls, generator: TaskGenerator, weights: TaskWeights) -> PoolTable:
        assert weights.numbers is not None
        templates = generator.tasks(weights.numbers)
        return cls(weights.version, templates, weights.probabilities, generator, weights.numbers)

    @property
    def weights(self) -> TaskWeights:
        return TaskWeights(self.version, self.probabilities, self.numbers)

    def with_weights(self, weights: TaskWeights) -> PoolTable:
        return PoolTable.of(self.generator, weights)


class TaskPoolConfig(StrictModel):
    num_active_tasks: int = Field(default=64, ge=1, description="tasks in the pool at any time")
    min_attempts: int = Field(default=5, ge=1, description="episodes of a task before it may be evicted")
    evictable_share: float = Field(
        default=0.4, gt=0, le=1, description="only a task among this share with the lowest scores may be evicted"
    )
    ema_timescale: float = Field(
        default=0.1, gt=0, le=1, description="weight of a new score in the fast average; a fifth of it in the slow one"
    )
    progress_smoothing: float = Field(default=0.05, gt=0, lt=0.5, description="stretches differences near 0 and 1")
    success_bonus: float = Field(default=0.1, ge=0, description="what a mastered task is worth beside its progress")
    least_score: float = Field(default=0.1, gt=0, description="of a task that shows no progress, or is new")
    recompute_every: int = Field(default=10, ge=1, description="episodes between two changes of the table")


class TaskPoolCurriculum(Curriculum):
    """Draws by learning progress from ``num_active_tasks`` generated tasks. Per task, s a score clamped to [0, 1]:

        fast  ← α s + (1 - α) fast          (first score: s)
        slow  ← α/5 s + (1 - α/5) slow      (first score: s)
        score = max(|w(fast) - w(slow)| + bonus · w(fast), least)       (least before the second attempt)

    w as in ``learning_progress``. Probabilities: z-scores of the scores (where there are more than two tasks),
    through a sigmoid, normalised. Every ``recompute_every`` episodes they are computed anew; before that the task of
    the lowest score leaves (of equal ones the oldest) if it has ``min_attempts`` and is among the lowest
    ``evictable_share``, and the generator's next one takes its place. Results of tasks that left are counted only.

    The reference shifts s by one half, which puts it on a pole of w; here it is not shifted.
    """

    def __init__(self, generator: TaskGenerator, config: TaskPoolConfig | None = None, seed: int = 0) -> None:
        self.config = config or TaskPoolConfig()
        self.generator = generator
        size = self.config.num_active_tasks
        numbers = np.arange(size)
        super().__init__(generator.tasks(numbers), seed=seed)
        self._table = PoolTable.of(generator, TaskWeights(0, self._table.probabilities, numbers))
        self._numbers = numbers
        self._fast, self._slow = np.zeros(size), np.zeros(size)
        self.evicted = 0
        self.late = 0
        self._attempts_of_evicted = 0
        self._since = 0

    @property
    def generated(self) -> int:
        """Tasks so far: those of the pool and those that left it."""
        return len(self._numbers) + self.evicted

    def complete_task(self, task_id: str, score: float) -> None:
        number = task_id.rpartition(_SEPARATOR)[2]
        if task_id not in self._index and number.isdecimal() and int(number) < self.generated:
            self.late += 1
            return
        super().complete_task(task_id, score)

    def get_curriculum_stats(self) -> dict[str, float]:
        stats = super().get_curriculum_stats()
        return {
            **stats,
            "completions": stats["completions"] + self._attempts_of_evicted,
            "pool/generated": float(self.generated),
            "pool/evicted": float(self.evicted),
            "pool/late": float(self.late),
            "pool/mean_progress": float(self._progress().mean()),
        }

    def _learn(self, index: int, score: float) -> None:
        score, alpha = min(max(score, 0.0), 1.0), self.config.ema_timescale
        if self._completions[index] == 1:
            self._fast[index] = self._slow[index] = score
        else:
            self._fast[index] += alpha * (score - self._fast[index])
            self._slow[index] += alpha / 5 * (score - self._slow[index])
        self._since += 1
        if self._since >= self.config.recompute_every:
            self._since = 0
            self._evict()
            self._set_probabilities(self._by_score())

    def _evict(self) -> None:
        is_ready = self._completions >= self.config.min_attempts
        order = np.lexsort((self._numbers, ~is_ready, self._scores()))
        lowest = order[: max(int(self.config.evictable_share * len(order)), 1)]
        ready = lowest[is_ready[lowest]]
        if not len(ready):
            return
        place, number = int(ready[0]), self.generated
        self._numbers = self._numbers.copy()  # tables that were handed out keep theirs
        self._numbers[place] = number
        self.evicted += 1
        self._attempts_of_evicted += int(self._completions[place])
        self._use_numbers()
        self._completions[place] = 0
        self._score_sums[place] = self._fast[place] = self._slow[place] = 0.0
        self._recent_scores[place] = np.nan
        self._recent = type(self._recent)((i for i in self._recent if i != place), self._recent.maxlen)

    def _use_numbers(self) -> None:
        self._templates = self.generator.tasks(self._numbers)
        self._index = {template.task_id: index for index, template in enumerate(self._templates)}

    def _set_probabilities(self, probabilities: NDArray[np.float64]) -> None:
        self._table = PoolTable.of(self.generator, TaskWeights(self._table.version + 1, probabilities, self._numbers))

    def _by_score(self) -> NDArray[np.float64]:
        scores = self._scores()
        if len(scores) > 2 and scores.std() > 0:
            scores = (scores - scores.mean()) / scores.std()
        weights = 1 / (1 + np.exp(-scores))
        return np.asarray(weights / weights.sum(), dtype=np.float64)

    def _scores(self) -> NDArray[np.float64]:
        config = self.config
        scores = np.maximum(self._progress() + config.success_bonus * self._stretched(self._fast), config.least_score)
        return np.where(self._completions < 2, config.least_score, scores)

    def _progress(self) -> NDArray[np.float64]:
        return np.abs(self._stretched(self._fast) - self._stretched(self._slow))

    def _stretched(self, p: NDArray[np.float64]) -> NDArray[np.float64]:
        eps = self.config.progress_smoothing
        return p * (1 - eps) / (p + eps * (1 - 2 * p))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "task_ids": [family.task_id for family in self.generator.families]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        families, learner = [family.task_id for family in self.generator.families], state["learner"]
        if list(state["task_ids"]) != families or len(learner.get("numbers", ())) != len(self._numbers):
            raise CheckpointError(
                f"the saved curriculum is no pool of {len(self._numbers)} tasks generated from {families}; "
                f"resume with the saved one"
            )
        self._numbers = np.array(learner["numbers"], dtype=np.int64)
        self._use_numbers()
        super().load_state_dict({**state, "task_ids": list(self.task_ids)})
        weights = TaskWeights(self._table.version, self._table.probabilities, self._numbers)
        self._table = PoolTable.of(self.generator, weights)

    def _learner_state(self) -> dict[str, Any]:
        return {
            "numbers": self._numbers.copy(),
            "fast": self._fast.copy(),
            "slow": self._slow.copy(),
            "evicted": self.evicted,
            "late": self.late,
            "attempts_of_evicted": self._attempts_of_evicted,
            "since": self._since,
        }

    def _load_learner_state(self, state: dict[str, Any]) -> None:
        self._fast = np.array(state["fast"], dtype=np.float64)
        self._slow = np.array(state["slow"], dtype=np.float64)
        self.evicted, self.late, self._since = int(state["evicted"]), int(state["late"]), int(state["since"])
        self._attempts_of_evicted = int(state["attempts_of_evicted"])
