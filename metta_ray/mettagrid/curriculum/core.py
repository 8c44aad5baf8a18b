"""Curricula: who chooses tasks, and what they learn from finished episodes.

    curriculum = SingleTaskCurriculum("smoke", TaskSpec(kind="smoke"))
    task = curriculum.get_task()           # a handle, for scripts that step environments themselves
    task.complete_trial(score)             # = curriculum.complete_task(task.id(), score)
    curriculum.task_table()                # what vecenvs draw from: (version, templates, probabilities)

One instance serves a whole run, however many processes step environments: they draw from the table it hands
out and their results all come back to it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from metta_ray.common.errors import CheckpointError, ConfigError, UsageError
from metta_ray.common.util.typed_config import did_you_mean, format_validation_error
from metta_ray.envs.tasks import TaskTable, TaskTemplate
from metta_ray.mettagrid.task_spec import FixedTask, TaskSpec

COMPLETION_WINDOW = 500
"""Completion rates are shares of this many latest episodes."""

RECENT = 20
"""Scores of a task that its recent mean is of."""


@dataclass(frozen=True)
class Range:
    """A parameter drawn uniformly from ``[low, high)``; ``want_int`` cuts off the fraction.

    So integer ends with ``want_int`` draw ``low … high - 1``, each equally often.
    """

    low: float
    high: float
    want_int: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ConfigError(f"range=({self.low}, {self.high}) is empty; the second value must be larger")

    def draw(self, rng: np.random.Generator) -> float | int:
        if self.want_int and self.low == int(self.low) and self.high == int(self.high):
            return int(rng.integers(int(self.low), int(self.high)))
        value = float(rng.uniform(self.low, self.high))
        return int(value) if self.want_int else value


@dataclass(frozen=True)
class Choice:
    """A parameter drawn uniformly from a few values."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ConfigError("a list of parameter values is empty; give at least one")

    def draw(self, rng: np.random.Generator) -> Any:
        return self.values[int(rng.integers(len(self.values)))]


@dataclass(frozen=True)
class SampledTask:
    """A template whose parameters are drawn anew for every episode.

    params: names of TaskSpec fields → Range, Choice, or a fixed value.
    """

    task_id: str
    base: TaskSpec
    params: Mapping[str, Any] = field(default_factory=dict)

    def draw(self, rng: np.random.Generator) -> TaskSpec:
        drawn = {
            name: param.draw(rng) if isinstance(param, Range | Choice) else param for name, param in self.params.items()
        }
        return with_fields(self.base, drawn)


def parse_param(param: Any) -> Any:
    """Range, Choice or scalar from ``{"range": (2, 6), "want_int": True}``, a list, or a value."""
    if isinstance(param, Mapping):
        unknown = set(param) - {"range", "want_int"}
        if unknown or "range" not in param or len(param["range"]) != 2:
            raise ConfigError(f"parameter {dict(param)!r} is not like {{range: [low, high], want_int: true}}")
        low, high = param["range"]
        return Range(low, high, bool(param.get("want_int", False)))
    if isinstance(param, list | tuple):
        return Choice(tuple(param))
    return param


def with_fields(spec: TaskSpec, changes: Mapping[str, Any]) -> TaskSpec:
    """The spec with some fields changed, validated. ConfigError names an unknown field or a bad value."""
    for name in changes:
        if name not in TaskSpec.model_fields:
            raise ConfigError(f"a task has no setting {name!r}{did_you_mean(name, TaskSpec.model_fields)}")
    try:
        return TaskSpec.model_validate({**spec.model_dump(), **changes})
    except ValidationError as error:
        raise ConfigError(f"task setting {format_validation_error(error)}") from None


def shares(weights: Sequence[float], count: int) -> NDArray[np.float64]:
    """Weights made to sum up to 1. ConfigError unless there is one ≥ 0 for each of ``count`` tasks, and one > 0."""
    given = np.asarray(weights, dtype=np.float64)
    if given.shape != (count,) or not np.isfinite(given).all() or (given < 0).any() or given.sum() == 0:
        raise ConfigError(
            f"weights={list(weights)} of {count} tasks; give one number ≥ 0 for each, one of them above 0"
        )
    return np.asarray(given / given.sum(), dtype=np.float64)


class TaskRow(TypedDict):
    """score: mean over all attempts; recent_score: over the last ``RECENT``. None where there is nothing to tell."""

    task: str
    probability: float
    attempts: int
    score: float | None
    recent_score: float | None
    learning_progress: float | None


class Task:
    """A handle on one drawn task. It is complete after one trial."""

    def __init__(self, curriculum: Curriculum, task_id: str, spec: TaskSpec) -> None:
        self._curriculum = curriculum
        self._id = task_id
        self._spec = spec
        self._is_complete = False

    def id(self) -> str:
        return self._id

    def short_name(self) -> str:
        """The last part of the id: ``a/b/c`` → ``c``; ids of buckets stay whole."""
        return self._id if "=" in self._id else self._id.rsplit("/", 1)[-1]

    def env_cfg(self) -> TaskSpec:
        """What to build the environment from."""
        return self._spec

    def is_complete(self) -> bool:
        return self._is_complete

    def complete_trial(self, score: float) -> bool:
        """Reports the episode's score to the curriculum. Returns True: the task is now complete."""
        if self._is_complete:
            raise UsageError(f"task {self._id!r} is complete already; call get_task for another one")
        self._is_complete = True
        self._curriculum.complete_task(self._id, score)
        return True


class Curriculum:
    """Tasks, their sampling probabilities, and statistics of finished episodes. Not thread-safe.

    This class draws by fixed probabilities (uniform unless given) and learns nothing.
    Subclasses that learn override ``_learn`` (and call ``_set_probabilities`` when something changed), the two
    ``_…_state`` methods, and ``_progress`` where they measure one.
    """

    def __init__(
        self,
        templates: Sequence[TaskTemplate],
        probabilities: NDArray[np.float64] | None = None,
        seed: int = 0,
    ) -> None:
        if not templates:
            raise ConfigError("a curriculum needs at least one task")
        self._templates = tuple(templates)
        self._index = {template.task_id: index for index, template in enumerate(self._templates)}
        if len(self._index) != len(self._templates):
            raise ConfigError("a curriculum has two tasks of the same id; ids must differ")
        count = len(self._templates)
        weights = np.full(count, 1.0 / count) if probabilities is None else probabilities
        self._table = TaskTable(0, self._templates, weights)
        self._rng = np.random.default_rng(seed)
        self._recent: deque[int] = deque(maxlen=COMPLETION_WINDOW)
        self._completions = np.zeros(count, dtype=np.int64)
        self._score_sums = np.zeros(count)
        self._recent_scores = np.full((count, RECENT), np.nan)  # a ring per task

    @property
    def task_ids(self) -> tuple[str, ...]:
        return tuple(self._index)

    def task_table(self) -> TaskTable:
        """The same object until the probabilities change; then one with a higher version."""
        return self._table

    def get_task(self) -> Task:
        """Draws a task with the curriculum's own randomness."""
        task_id, spec = self._table.draw(self._rng)
        return Task(self, task_id, spec)

    def complete_task(self, task_id: str, score: float) -> None:
        """Learns from one finished episode. UsageError for an unknown id or a score that is not finite."""
        if task_id not in self._index:
            raise UsageError(f"task {task_id!r} is not of this curriculum{did_you_mean(task_id, self._index)}")
        if not math.isfinite(score):
            raise UsageError(f"task {task_id!r} reports score={score}; scores must be finite numbers")
        index = self._index[task_id]
        self._recent.append(index)
        self._recent_scores[index, self._completions[index] % RECENT] = score
        self._completions[index] += 1
        self._score_sums[index] += score
        self._learn(index, float(score))

    def get_task_probs(self) -> dict[str, float]:
        return dict(zip(self.task_ids, self._table.probabilities.tolist(), strict=True))

    def get_completion_rates(self) -> dict[str, float]:
        """Share of each task among the last ``COMPLETION_WINDOW`` finished episodes; 0 before the first."""
        counts = np.bincount(np.array(self._recent, dtype=np.int64), minlength=len(self._templates))
        rates = counts / max(len(self._recent), 1)
        return dict(zip(self.task_ids, rates.tolist(), strict=True))

    def task_rows(self) -> list[TaskRow]:
        """How every task stands, for tables and pages."""
        progress = self._progress()
        return [
            TaskRow(
                task=task_id,
                probability=float(self._table.probabilities[index]),
                attempts=int(self._completions[index]),
                score=float(self._score_sums[index] / self._completions[index]) if self._completions[index] else None,
                recent_score=float(np.nanmean(self._recent_scores[index])) if self._completions[index] else None,
                learning_progress=None if progress is None else float(progress[index]),
            )
            for index, task_id in enumerate(self.task_ids)
        ]

    def get_curriculum_stats(self) -> dict[str, float]:
        """A few numbers for monitoring."""
        return {
            "num_tasks": float(len(self._templates)),
            "completions": float(self._completions.sum()),
            "table_version": float(self._table.version),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything later draws and probabilities depend on: JSON values and numpy arrays."""
        return {
            "task_ids": list(self.task_ids),
            "rng": self._rng.bit_generator.state,
            "version": self._table.version,
            "probabilities": self._table.probabilities.copy(),
            "recent": np.array(self._recent, dtype=np.int32),
            "completions": self._completions.copy(),
            "score_sums": self._score_sums.copy(),
            "recent_scores": self._recent_scores.copy(),
            "learner": self._learner_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The exact inverse. CheckpointError if the state is that of another set of tasks."""
        if list(state["task_ids"]) != list(self.task_ids):
            raise CheckpointError(
                f"the saved curriculum has {len(state['task_ids'])} tasks ({state['task_ids'][0]!r}, …), "
                f"this one {len(self.task_ids)} ({self.task_ids[0]!r}, …); resume with the saved one"
            )
        self._rng.bit_generator.state = state["rng"]
        probabilities = np.array(state["probabilities"], dtype=np.float64)
        self._table = TaskTable(int(state["version"]), self._templates, probabilities)
        self._recent = deque(np.asarray(state["recent"]).tolist(), maxlen=COMPLETION_WINDOW)
        self._completions = np.array(state["completions"], dtype=np.int64)
        if "score_sums" in state:  # what older checkpoints lack only concerns the tables
            self._score_sums = np.array(state["score_sums"], dtype=np.float64)
            self._recent_scores = np.array(state["recent_scores"], dtype=np.float64)
        self._load_learner_state(state["learner"])

    def _set_probabilities(self, probabilities: NDArray[np.float64]) -> None:
        self._table = TaskTable(self._table.version + 1, self._templates, probabilities)

    def _learn(self, index: int, score: float) -> None:
        """Hook: task number ``index`` scored ``score``."""

    def _progress(self) -> NDArray[np.float64] | None:
        """Hook: learning progress of each task, where the curriculum measures it."""
        return None

    def _learner_state(self) -> dict[str, Any]:
        return {}

    def _load_learner_state(self, state: dict[str, Any]) -> None:
        del state


class RandomCurriculum(Curriculum):
    """Tasks by fixed weights, e.g. ``[5, 3, 2]``; all alike without."""

    def __init__(
        self, templates: Sequence[TaskTemplate], weights: Sequence[float] | None = None, seed: int = 0
    ) -> None:
        super().__init__(templates, None if weights is None else shares(weights, len(templates)), seed)


class SingleTaskCurriculum(Curriculum):
    """Always the same task."""

    def __init__(self, task_id: str, spec: TaskSpec) -> None:
        super().__init__([FixedTask(spec, task_id)])


class PreBuiltConfigCurriculum(SingleTaskCurriculum):
    """One ready task under the name ``prebuilt(<env>)``, as evaluations use it."""

    def __init__(self, env_name: str, pre_built_config: TaskSpec) -> None:
        super().__init__(f"prebuilt({env_name})", pre_built_config)


class SampledTaskCurriculum(Curriculum):
    """One task whose parameters are drawn anew for every episode.

    params: TaskSpec field → ``{"range": (low, high), "want_int": True}``, list of choices, or fixed value.
    """

    def __init__(self, task_id: str, base: TaskSpec, params: Mapping[str, Any], seed: int = 0) -> None:
        template = SampledTask(task_id, base, {name: parse_param(param) for name, param in params.items()})
        template.draw(np.random.default_rng(0))  # refuses unknown names and impossible values now
        super().__init__([template], seed=seed)
