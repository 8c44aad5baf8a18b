"""Curricula written down: what YAML files, ``library`` and scripts say, and how it becomes a curriculum.

type: learning_progress
tasks:                      # name: path, or a curriculum written down like this one
  easy: /env/mettagrid/smoke
  hard: {type: sampled, task: {kind: navigation}, params: {altars: {range: [2, 6], want_int: true}}}
settings: {ema_timescale: 0.1}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from metta_ray.common.errors import ConfigError
from metta_ray.common.util.typed_config import StrictModel
from metta_ray.envs.tasks import TaskTemplate
from metta_ray.mettagrid.curriculum.bucketed import BucketedCurriculum
from metta_ray.mettagrid.curriculum.core import (
    Curriculum,
    RandomCurriculum,
    SampledTask,
    SampledTaskCurriculum,
    SingleTaskCurriculum,
    parse_param,
    with_fields,
)
from metta_ray.mettagrid.curriculum.learning_progress import LearningProgressConfig, LearningProgressCurriculum
from metta_ray.mettagrid.curriculum.nested import NamedTask, NestedCurriculum
from metta_ray.mettagrid.curriculum.pool import TaskGenerator, TaskPoolConfig, TaskPoolCurriculum
from metta_ray.mettagrid.curriculum.prioritize_regressed import PrioritizeRegressedConfig, PrioritizeRegressedCurriculum
from metta_ray.mettagrid.curriculum.progressive import (
    GrowingMapConfig,
    GrowingMapCurriculum,
    ProgressiveConfig,
    ProgressiveCurriculum,
)
from metta_ray.mettagrid.curriculum.sequential_trials import SequentialTrialsConfig, SequentialTrialsCurriculum
from metta_ray.mettagrid.task_spec import TaskSpec, num_tokens

Type = Literal[
    "single",
    "sampled",
    "bucketed",
    "random",
    "learning_progress",
    "prioritize_regressed",
    "progressive",
    "growing_map",
    "sequential_trials",
    "pool",
]
OF_ONE_TASK = {"single", "sampled", "bucketed", "growing_map", "sequential_trials"}
OF_TASKS = {"random", "learning_progress", "prioritize_regressed", "progressive", "pool"}
_SETTINGS: dict[str, type[StrictModel]] = {
    "bucketed": LearningProgressConfig,
    "learning_progress": LearningProgressConfig,
    "prioritize_regressed": PrioritizeRegressedConfig,
    "progressive": ProgressiveConfig,
    "growing_map": GrowingMapConfig,
    "sequential_trials": SequentialTrialsConfig,
    "pool": TaskPoolConfig,
}
Resolve = Callable[..., Curriculum]


class CurriculumConfig(StrictModel):
    """One curriculum. Which fields a type needs is said with each."""

    type: Type
    task: dict[str, Any] = Field(
        default_factory=dict,
        description="fields of TaskSpec, of " + ", ".join(sorted(OF_ONE_TASK)) + "; and of a pool with params",
    )
    params: dict[str, Any] = Field(
        default_factory=dict,
        description="sampled, pool: field → {range: [low, high], want_int: true}, list of choices, or value",
    )
    buckets: dict[str, Any] = Field(
        default_factory=dict,
        description="bucketed: field of TaskSpec → list of values, or {range: [low, high], bins: n}",
    )
    labels: dict[str, str] = Field(default_factory=dict, description="bucketed: field → its name in task ids")
    trials: list[dict[str, Any]] = Field(
        default_factory=list, description="sequential_trials: for each trial the fields that it changes"
    )
    tasks: dict[str, Any] = Field(
        default_factory=dict,
        description="of " + ", ".join(sorted(OF_TASKS)) + ": name → path, or a curriculum written down",
    )
    weights: dict[str, float] = Field(default_factory=dict, description="random, pool: name of a task → its weight")
    seed: int = Field(default=0, ge=0, description="pool: of the tasks that are generated")
    fixed_maps: bool = Field(default=False, description="pool: each task has one map instead of one per episode")
    settings: dict[str, Any] = Field(default_factory=dict, description="of the type's own rule; see its class")

    @model_validator(mode="after")
    def _has_what_its_type_needs(self) -> CurriculumConfig:
        if self.type in OF_TASKS and not self.tasks and not (self.type == "pool" and self.params):
            raise ValueError(f"a {self.type} curriculum needs tasks: {{name: path or curriculum}}")
        for field in ("buckets", "trials"):
            if field == {"bucketed": "buckets", "sequential_trials": "trials"}.get(self.type) and not getattr(
                self, field
            ):
                raise ValueError(f"a {self.type} curriculum needs {field}")
        if self.settings and self.type not in _SETTINGS:
            raise ValueError(f"a {self.type} curriculum has no settings")
        return self


def build_curriculum(
    config: CurriculumConfig, name: str, resolve: Resolve, *, seed: int = 0, overrides: Mapping[str, Any] | None = None
) -> Curriculum:
    """The curriculum that is written down. name: for messages, and id of a single task. resolve: path → curriculum.

    overrides: fields of TaskSpec for every task. ConfigError for one that the curriculum itself varies, for tasks
    that do not fit together, and for whatever cannot be built.
    """
    overrides = dict(overrides or {})
    if config.type in OF_ONE_TASK or (config.type == "pool" and not config.tasks):
        _refuse_varied(name, config, overrides)
        base = with_fields(with_fields(TaskSpec(), config.task), overrides)
        return _of_one_task(config, name, base, seed)
    children = {child: _child(what, child, name, resolve, seed, overrides) for child, what in config.tasks.items()}
    curriculum = _of_tasks(config, children, seed)
    _check_that_tasks_agree(name, curriculum.task_table().templates)
    return curriculum


def _of_one_task(config: CurriculumConfig, name: str, base: TaskSpec, seed: int) -> Curriculum:
    settings = _settings(config)
    match config.type:
        case "single":
            return SingleTaskCurriculum(name, base)
        case "sampled":
            return SampledTaskCurriculum(name, base, config.params, seed)
        case "bucketed":
            assert isinstance(settings, LearningProgressConfig)
            return BucketedCurriculum(base, config.buckets, settings, config.labels, seed)
        case "growing_map":
            assert isinstance(settings, GrowingMapConfig)
            return GrowingMapCurriculum(base, settings, seed)
        case "sequential_trials":
            assert isinstance(settings, SequentialTrialsConfig)
            return SequentialTrialsCurriculum(base, config.trials, settings, seed)
    family = SampledTask(name, base, {field: parse_param(value) for field, value in config.params.items()})
    family.draw(np.random.default_rng(0))  # refuses unknown fields and impossible values now
    return _pool(config, [family], None, seed)


def _of_tasks(config: CurriculumConfig, children: dict[str, Curriculum], seed: int) -> Curriculum:
    if unknown := set(config.weights) - set(children):
        raise ConfigError(f"weights of {', '.join(sorted(unknown))}, which are none of the tasks {', '.join(children)}")
    weights = [config.weights.get(child, 1.0) for child in children] if config.weights else None
    if config.type == "pool":
        families = [
            NamedTask(f"{name}/{template.task_id}" if len(child.task_ids) > 1 else name, template)
            for name, child in children.items()
            for template in child.task_table().templates
        ]
        each = [
            weight * probability
            for weight, child in zip(weights or [1.0] * len(children), children.values(), strict=True)
            for probability in child.task_table().probabilities
        ]
        return _pool(config, families, each, seed)
    is_flat = all(len(child.task_ids) == 1 for child in children.values())
    templates = [NamedTask(name, child.task_table().templates[0]) for name, child in children.items()]
    chooser = _chooser(config, templates, weights, seed)
    return chooser if is_flat else NestedCurriculum(chooser, children, seed)


def _chooser(
    config: CurriculumConfig, templates: list[NamedTask], weights: list[float] | None, seed: int
) -> Curriculum:
    settings = _settings(config)
    match config.type:
        case "learning_progress":
            assert isinstance(settings, LearningProgressConfig)
            return LearningProgressCurriculum(templates, settings, seed)
        case "prioritize_regressed":
            assert isinstance(settings, PrioritizeRegressedConfig)
            return PrioritizeRegressedCurriculum(templates, settings, seed)
        case "progressive":
            assert isinstance(settings, ProgressiveConfig)
            return ProgressiveCurriculum(templates, settings, seed)
    return RandomCurriculum(templates, weights, seed)


def _pool(config: CurriculumConfig, families: list[Any], weights: list[float] | None, seed: int) -> TaskPoolCurriculum:
    settings = _settings(config)
    assert isinstance(settings, TaskPoolConfig)
    generator = TaskGenerator(families, weights, seed=config.seed, fixed_maps=config.fixed_maps)
    return TaskPoolCurriculum(generator, settings, seed)


def _settings(config: CurriculumConfig) -> StrictModel | None:
    model = _SETTINGS.get(config.type)
    return None if model is None else model.from_mapping(config.settings)


def _child(what: Any, name: str, parent: str, resolve: Resolve, seed: int, overrides: Mapping[str, Any]) -> Curriculum:
    if isinstance(what, str):
        return resolve(what, seed=seed, **overrides)
    return build_curriculum(
        CurriculumConfig.from_mapping(what), f"{parent}/{name}", resolve, seed=seed, overrides=overrides
    )


def _refuse_varied(name: str, config: CurriculumConfig, overrides: Mapping[str, Any]) -> None:
    varied = {*config.params, *config.buckets, *(field for trial in config.trials for field in trial)}
    if config.type == "growing_map":
        varied |= {"width", "height"}
    if config.type != "single":
        varied |= {"kind"}
    for field in sorted(varied & set(overrides)):
        raise ConfigError(f"{field}={overrides[field]!r} cannot be set for {name}, which varies it")


def _check_that_tasks_agree(name: str, templates: tuple[TaskTemplate, ...]) -> None:
    """Environments keep their arrays: all tasks need the same agents, window and tokens."""
    first: tuple[tuple[int, int, int], str] | None = None
    for template in templates:
        spec: TaskSpec = template.draw(np.random.default_rng(0))
        shape = spec.num_agents, spec.window, num_tokens(spec)
        if first is None:
            first = shape, template.task_id
        if shape != first[0]:
            raise ConfigError(
                f"{name}: {first[1]} has (agents, window, tokens) = {first[0]}, but {template.task_id} {shape}; "
                f"tasks of one curriculum must agree on them: override num_agents or window"
            )
