"""From a curriculum or an environment's name to a vecenv of the right kind and size."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from metta_ray.common.errors import ConfigError
from metta_ray.envs.grouped_vecenv import GroupedVecEnv
from metta_ray.envs.multiprocess_vecenv import MultiprocessVecEnv, check_sizes
from metta_ray.envs.registry import EnvFactory, MettaGridFactory, resolve_env
from metta_ray.envs.serial_vecenv import SerialVecEnv
from metta_ray.envs.tasks import Curriculum
from metta_ray.rl.trainer_config import TrainerConfig

VECTORIZATIONS = ("serial", "multiprocessing")


class VecEnvSizes(NamedTuple):
    """num_envs: environments in total. batch_size: environments per ``recv``."""

    num_envs: int
    batch_size: int


def make_vecenv(
    environment: Curriculum | EnvFactory | str,
    vectorization: str = "serial",
    num_envs: int = 1,
    batch_size: int | None = None,
    num_workers: int = 1,
    *,
    curriculum: Curriculum | None = None,
    is_training: bool = False,
    zero_copy: bool = True,
    in_fixed_order: bool = True,
    rank: int = 0,
    step_timeout_s: float = 120.0,
) -> GroupedVecEnv:
    """A vecenv that waits for ``async_reset``.

    environment: a MettaGrid curriculum, a factory, or a name for ``resolve_env``.
    vectorization: ``serial`` steps all ``num_envs`` in this process and hands out copies; it is also used
        when ``num_workers`` is 1. ``multiprocessing`` has ``num_envs / batch_size`` groups over the workers.
    num_envs, batch_size: environments in total and per ``recv`` (None: all).
    curriculum: who hears of finished episodes; by default the one given, or the environment's own.
    is_training: first episodes of MettaGrid are staggered.
    rank: keeps the seeds of several processes apart.
    """
    if vectorization not in VECTORIZATIONS:
        raise ConfigError(f"vectorization={vectorization!r} is unknown; known: {', '.join(VECTORIZATIONS)}")
    factory, curriculum = _factory_and_curriculum(environment, curriculum)
    if not is_training:
        factory = factory.as_evaluated()
    if vectorization == "serial" or num_workers == 1:
        return SerialVecEnv(factory, num_envs, curriculum=curriculum, rank=rank)
    return MultiprocessVecEnv(
        factory,
        num_envs,
        num_workers=num_workers,
        batch_size=batch_size,
        curriculum=curriculum,
        rank=rank,
        zero_copy=zero_copy,
        in_fixed_order=in_fixed_order,
        step_timeout_s=step_timeout_s,
    )


def vecenv_sizes(
    forward_pass_minibatch_target_size: int,
    agents_per_env: int,
    num_workers: int = 1,
    async_factor: int = 2,
    vectorization: str = "multiprocessing",
) -> VecEnvSizes:
    """Sizes for which one inference call sees about ``forward_pass_minibatch_target_size`` agents.

    Environments per ``recv`` are the target over the agents of one environment, at least one per worker,
    rounded down to a multiple of the workers; there are ``async_factor`` such groups (serial: one).
    """
    is_serial = vectorization == "serial" or num_workers == 1
    workers = 1 if is_serial else num_workers
    groups = 1 if is_serial else async_factor
    target = forward_pass_minibatch_target_size // agents_per_env
    if target < max(2, workers):
        target = workers
    batch_size = target // workers * workers
    sizes = VecEnvSizes(num_envs=batch_size * groups, batch_size=batch_size)
    check_sizes(sizes.num_envs, sizes.batch_size, workers)
    return sizes


def training_factory(trainer: TrainerConfig) -> EnvFactory:
    """The environment that a trainer's settings name; ConfigError for an unknown name or settings that do not fit."""
    name = trainer.curriculum_or_env
    return resolve_env(f"mettagrid:{name}" if name.startswith("/") else name, **trainer.env_overrides)


def _factory_and_curriculum(
    environment: Curriculum | EnvFactory | str, curriculum: Curriculum | None
) -> tuple[EnvFactory, Curriculum | None]:
    if isinstance(environment, str):
        environment = resolve_env(environment)
    if not isinstance(environment, EnvFactory):
        return MettaGridFactory("mettagrid:curriculum", table=environment.task_table()), curriculum or environment
    curriculum = curriculum or environment.curriculum()
    if curriculum is not None and isinstance(environment, MettaGridFactory):
        environment = replace(environment, table=curriculum.task_table())
    return environment, curriculum
