"""The sizes of a run that follow from its configuration and from the environment's number of agents.

sizes = resolved_sizes(config, agents_per_env=4)
sizes.num_envs  # 16 environments per rollout worker make fragments of 4,096 agent steps
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from metta_ray.common.errors import ConfigError
from metta_ray.control.schedule import useful_workers
from metta_ray.service.run_config import RunConfig, nearest_multiples

TARGET_FRAGMENT_STEPS = 4096


@dataclass(frozen=True)
class Sizes:
    """Counts are per rollout worker, steps are agent steps; ``minibatch_steps`` is the share of one learner replica."""

    num_envs: int
    agents_per_worker: int
    fragment_steps: int
    fragments_per_batch: int
    batch_steps: int
    minibatch_steps: int
    useful_workers: int


def resolved_sizes(config: RunConfig, agents_per_env: int, *, agent_step_bytes: int = 0) -> Sizes:
    """Sizes that fit together, or ConfigError with the value and the nearest that would.

    agent_step_bytes: size of one agent step in a fragment; 0 leaves the byte budget unchecked.
    """
    trainer, replicas = config.trainer, max(1, config.learner.replicas)
    steps_per_env = agents_per_env * trainer.bptt_horizon
    num_envs = _given_envs(config, steps_per_env) or _chosen_envs(config, steps_per_env)
    fragment_steps = num_envs * steps_per_env
    _check_batch(config, num_envs, fragment_steps)
    _check_bytes(config, agent_step_bytes)
    return Sizes(
        num_envs=num_envs,
        agents_per_worker=num_envs * agents_per_env,
        fragment_steps=fragment_steps,
        fragments_per_batch=trainer.batch_size // fragment_steps,
        batch_steps=trainer.batch_size,
        minibatch_steps=trainer.minibatch_size // replicas,
        useful_workers=useful_workers(trainer.batch_size, fragment_steps, config.pacing.target_staleness),
    )


def advice(config: RunConfig, sizes: Sizes) -> list[str]:
    """What is allowed and probably not meant, one sentence each."""
    rollout = config.rollout
    most = rollout.max_workers or rollout.num_workers
    if most <= sizes.useful_workers:
        return []
    return [too_many_workers(most, config, sizes)]


def too_many_workers(wanted: int, config: RunConfig, sizes: Sizes) -> str:
    """Why more than the useful number of workers would idle, and what to change."""
    return (
        f"{wanted} rollout workers, but at most {sizes.useful_workers} can be busy: "
        f"(target_staleness {config.pacing.target_staleness} + 1) × batch_size {sizes.batch_steps} / "
        f"{sizes.fragment_steps} steps per fragment; raise trainer.batch_size or pacing.target_staleness, "
        f"or lower rollout.num_envs from {sizes.num_envs}"
    )


def _given_envs(config: RunConfig, steps_per_env: int) -> int:
    """Environments per worker that the configuration asks for; 0 where it leaves the choice."""
    num_envs, fragment_steps = config.rollout.num_envs, config.rollout.fragment_steps
    if fragment_steps and fragment_steps % steps_per_env:
        nearest = nearest_multiples(fragment_steps, steps_per_env)
        raise ConfigError(
            f"rollout.fragment_steps={fragment_steps} is not a multiple of {steps_per_env} "
            f"({_environments_horizon(config, steps_per_env)}); nearest: {nearest}"
        )
    if num_envs and fragment_steps and num_envs * steps_per_env != fragment_steps:
        raise ConfigError(
            f"rollout.fragment_steps={fragment_steps} does not fit rollout.num_envs={num_envs}, which makes "
            f"{num_envs * steps_per_env}; leave one of them 0"
        )
    given, processes = num_envs or fragment_steps // steps_per_env, config.trainer.num_workers
    if given % processes:
        raise ConfigError(
            f"{given} environments per rollout worker are not a multiple of trainer.num_workers={processes}; "
            f"nearest: rollout.num_envs={nearest_multiples(given, processes)}"
        )
    return given


def _chosen_envs(config: RunConfig, steps_per_env: int) -> int:
    """Environments per worker for fragments near the target that divide every replica's share of the batch."""
    batch, replicas = config.trainer.batch_size, max(1, config.learner.replicas)
    processes = config.trainer.num_workers
    smallest = steps_per_env * processes * replicas
    if batch % smallest:
        parts = [_environments_horizon(config, steps_per_env)]
        parts += [f"{processes} environment processes"] if processes > 1 else []
        parts += [f"{replicas} learner replicas"] if replicas > 1 else []
        raise ConfigError(
            f"trainer.batch_size={batch} is not a multiple of {smallest} ({' × '.join(parts)}), so it cannot be made "
            f"of whole fragments; nearest: {nearest_multiples(batch, smallest)}"
        )
    target = min(TARGET_FRAGMENT_STEPS, batch / (2 * replicas))
    return processes * min(
        _divisors(batch // smallest), key=lambda count: abs(math.log(count * steps_per_env * processes / target))
    )


def _check_batch(config: RunConfig, num_envs: int, fragment_steps: int) -> None:
    batch, replicas = config.trainer.batch_size, max(1, config.learner.replicas)
    if batch % (fragment_steps * replicas) == 0:
        return
    times = f" × {replicas} learner replicas" if replicas > 1 else ""
    raise ConfigError(
        f"trainer.batch_size={batch} is not a multiple of {fragment_steps} steps per fragment{times} "
        f"({num_envs} environments per worker); nearest: {nearest_multiples(batch, fragment_steps * replicas)}, "
        f"or rollout.num_envs=0 to have it chosen"
    )


def _check_bytes(config: RunConfig, agent_step_bytes: int) -> None:
    budget, needed = config.pacing.byte_budget, config.trainer.batch_size * agent_step_bytes
    if budget and budget < needed:
        raise ConfigError(
            f"pacing.byte_budget={budget} does not hold one batch of {needed} bytes, so training would never start; "
            f"use at least {needed}, a smaller trainer.batch_size, or 0 for a share of the object store"
        )


def _environments_horizon(config: RunConfig, steps_per_env: int) -> str:
    horizon = config.trainer.bptt_horizon
    return f"{steps_per_env // horizon} agents per environment × bptt_horizon {horizon}"


def _divisors(number: int) -> list[int]:
    return [count for count in range(1, number + 1) if number % count == 0]
