"""``Environment(...)``: a started vecenv from a few arguments.

env = Environment(num_agents=4, width=32, height=32)
env = Environment(curriculum_path="/env/mettagrid/curriculum/navigation/bucketed", num_envs=64)
env = Environment(env_config="gym:CartPole-v1", num_envs=8)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from metta_ray.common.errors import ConfigError
from metta_ray.envs.grouped_vecenv import GroupedVecEnv
from metta_ray.envs.registry import EnvFactory, resolve_env
from metta_ray.envs.tasks import Curriculum
from metta_ray.mettagrid.curriculum.core import SingleTaskCurriculum, with_fields
from metta_ray.mettagrid.curriculum.resolve import resolve_curriculum
from metta_ray.mettagrid.task_spec import TaskSpec
from metta_ray.rl.distributed import setup_distributed_vars
from metta_ray.rl.vecenv import VECTORIZATIONS, VecEnvSizes, make_vecenv

EnvConfig = TaskSpec | Mapping[str, Any] | EnvFactory | str

CUSTOM_TASK = "custom_env"


def Environment(  # noqa: N802 - the name that scripts call
    curriculum_path: str | None = None,
    env_config: EnvConfig | None = None,
    device: str | torch.device = "cuda",
    seed: int | None = None,
    num_envs: int = 1,
    num_workers: int = 1,
    batch_size: int = 1,
    async_factor: int = 1,
    zero_copy: bool = True,
    is_training: bool = True,
    vectorization: str = "serial",
    num_agents: int | None = None,
    width: int | None = None,
    height: int | None = None,
) -> GroupedVecEnv:
    """A vecenv whose environments have been started with ``seed`` (None draws one).

    curriculum_path: who chooses the tasks; unknown ones raise ConfigError with the known ones.
    env_config: without a curriculum the one task, as ``TaskSpec`` or its fields, or any environment as a name
        (``gym:CartPole-v1``) or factory; with a curriculum the fields that are changed in each of its tasks.
    num_agents, width, height: fields of the task, or of each task of the curriculum. Alone they ask for one
        navigation room of this size that all agents share; without any, 4 agents navigate in rooms of their
    own. device: where the policy will live (``vecenv.device``; the CPU if CUDA is asked for but absent).
        Environments run on the CPU and hand out numpy arrays; the rollout moves them.
    num_envs, batch_size, async_factor: environments in total, environments per ``recv``, and groups in
        flight: num_envs = batch_size · async_factor. What is left at 1 follows from the others. Serial
        vectorization receives all environments at once: async_factor 1, and always copies (zero_copy False).
    num_workers: processes; one means serial.
    is_training: False starts every environment at the beginning of a full episode, instead of staggering.

    Under torchrun each rank gets seeds of its own.
    """
    environment = _choose_environment(
        curriculum_path, env_config, {"num_agents": num_agents, "width": width, "height": height}
    )
    is_serial = vectorization == "serial" or (vectorization in VECTORIZATIONS and num_workers == 1)
    sizes = _sizes(num_envs, batch_size, 1 if is_serial else async_factor, is_serial)
    policy_device = _policy_device(device)
    vecenv = make_vecenv(
        environment,
        vectorization,
        sizes.num_envs,
        sizes.batch_size,
        num_workers,
        is_training=is_training,
        zero_copy=zero_copy,
        rank=setup_distributed_vars()[2],
    )
    vecenv.device = policy_device
    try:
        vecenv.async_reset(seed)
    except BaseException:
        vecenv.close()
        raise
    return vecenv


def _choose_environment(
    curriculum_path: str | None, env_config: EnvConfig | None, room: dict[str, int | None]
) -> Curriculum | EnvFactory:
    asked = {name: value for name, value in room.items() if value is not None}
    if isinstance(env_config, (str, EnvFactory)):
        unusable = [*asked, *(["curriculum_path"] if curriculum_path else [])]
        if unusable:
            raise ConfigError(
                f"{', '.join(unusable)} cannot be combined with env_config={_name_of(env_config)!r}: they "
                f"are about MettaGrid tasks; drop them, or give the task's fields as env_config"
            )
        return resolve_env(env_config) if isinstance(env_config, str) else env_config
    changes = {**_fields_of(env_config), **asked}
    if curriculum_path:
        return resolve_curriculum(curriculum_path, **changes)
    if asked and env_config is None:
        changes["shared_room"] = True
    return SingleTaskCurriculum(CUSTOM_TASK, with_fields(TaskSpec(), changes))


def _fields_of(env_config: TaskSpec | Mapping[str, Any] | None) -> dict[str, Any]:
    if env_config is None:
        return {}
    if isinstance(env_config, TaskSpec):
        return {name: getattr(env_config, name) for name in env_config.model_fields_set}
    if isinstance(env_config, Mapping) or hasattr(env_config, "items"):  # omegaconf's DictConfig among them
        return {str(name): value for name, value in env_config.items()}
    raise ConfigError(
        f"env_config is a {type(env_config).__name__}; give a TaskSpec, a dict of its fields, a name such as "
        f"'gym:CartPole-v1', or an EnvFactory"
    )


def _name_of(env_config: str | EnvFactory) -> str:
    return env_config if isinstance(env_config, str) else env_config.name


def _sizes(num_envs: int, batch_size: int, async_factor: int, is_serial: bool) -> VecEnvSizes:
    """Total and per ``recv``; 1 is the default of each and means that it follows from the others."""
    for name, value in (("num_envs", num_envs), ("batch_size", batch_size), ("async_factor", async_factor)):
        if value < 1:
            raise ConfigError(f"{name}={value} leaves nothing to step; use at least 1")
    total = num_envs if num_envs > 1 else batch_size * async_factor
    if is_serial:
        return VecEnvSizes(total, total)
    if batch_size == 1 and total > 1:
        if total % async_factor:
            below = total // async_factor * async_factor
            raise ConfigError(
                f"num_envs={total} cannot be split into async_factor={async_factor} equal groups; "
                f"nearest num_envs: {max(below, async_factor)} or {below + async_factor}"
            )
        return VecEnvSizes(total, total // async_factor)
    if async_factor > 1 and batch_size * async_factor != total:
        raise ConfigError(
            f"num_envs={total} is not batch_size={batch_size} times async_factor={async_factor}; "
            f"use num_envs={batch_size * async_factor}, or leave one of the three at 1"
        )
    return VecEnvSizes(total, batch_size)


def _policy_device(device: str | torch.device) -> str:
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"device={device!r} is not a torch device; use 'cpu', 'cuda' or 'cuda:N'") from error
    if wanted.type == "cuda" and not torch.cuda.is_available():
        return "cpu"  # `Agent` and `setup_device_and_distributed` warn; nothing here computes on it
    return str(wanted)
