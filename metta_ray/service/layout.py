"""How a run is spread over processes: what its configuration leaves open is chosen once, for the whole life of the run.

config = recorded_choices(config, run_dir)           # a run that is continued keeps what it has
config = chosen_layout(config, times, ...)           # a new one gets the one that is fastest on these cores
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel

from metta_ray.common.errors import ConfigError
from metta_ray.control.plan import AS_GOOD, Job, Layout, Resources, best_layout, floor_of, next_lever, predict
from metta_ray.control.rates import ServiceTimes
from metta_ray.service.run_config import RunConfig
from metta_ray.service.sizes import Sizes, resolved_sizes

DEFAULT_WORKERS, DEFAULT_REPLICAS, DEFAULT_STALENESS = 2, 1, 1
"""Where nothing could be measured."""
NO_LEVER = "no single change of the layout would gain 3 %"


def is_open(config: RunConfig) -> bool:
    """Whether something is left to choose."""
    return config.rollout.num_workers == 0 or config.learner.replicas == 0


def recorded_choices(config: RunConfig, run_dir: Path) -> RunConfig:
    """What is open, as the run that is continued has it; the same configuration where none is there."""
    try:
        record = yaml.safe_load((run_dir / "config.yaml").read_text())
        workers, replicas = record["rollout"]["num_workers"], record["learner"]["replicas"]
        num_envs, autocast = record["rollout"]["num_envs"], record["trainer"]["autocast"]
        threads, staleness = record["learner"]["threads"], record["pacing"]["target_staleness"]
        same_batch = record["trainer"]["batch_size"] == config.trainer.batch_size
        gather_conv = record["agent"].get("gather_conv")
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return config
    config = with_formulation(config, autocast, gather_conv)
    return _completed(config, workers, replicas, num_envs if same_batch else 0, threads, staleness)


def with_formulation(config: RunConfig, autocast: str, gather_conv: bool | None) -> RunConfig:
    """The configuration with a definite way to compute the policy; what it says outright stays."""
    changes: dict[str, Any] = {}
    if config.trainer.autocast == "auto":
        changes["trainer"] = config.trainer.model_copy(update={"autocast": autocast})
    if gather_conv is not None and config.agent.get("gather_conv") is None:
        changes["agent"] = config.agent | {"gather_conv": gather_conv}
    return config.model_copy(update=changes)


def chosen_layout(
    config: RunConfig, times: ServiceTimes | None, agents_per_env: int, resources: Resources, max_processes: int
) -> RunConfig:
    """The configuration with nothing open. times: None where nothing could be measured.

    Where workers may become more later (in a cluster, or between bounds) fragments stay as short as usual: long ones
    would leave few workers useful. Where all processes share the same cores, collecting and training in turn can be
    faster than both at once (``pacing.target_staleness`` 0): a learner's threads are not disturbed then, and nothing
    need be looked at again. ConfigError where no layout makes whole fragments of the batch.
    """
    if times is None:
        return _completed(config, DEFAULT_WORKERS, DEFAULT_REPLICAS, 0)
    rollout = config.rollout
    envs = rollout.num_envs or rollout.fragment_steps // (agents_per_env * config.trainer.bptt_horizon)
    if not envs and (resources.cores is None or rollout.is_automatic):
        envs = resolved_sizes(config, agents_per_env).num_envs
    job = job_of(config, agents_per_env)

    def fastest(job: Job) -> tuple[Layout, float]:
        layout = best_layout(
            times,
            job,
            resources,
            workers=rollout.num_workers or None,
            replicas=config.learner.replicas or None,
            rows=envs * agents_per_env or None,
            threads=config.learner.threads if _says(config.learner, "threads") else None,
            max_processes=max_processes,
        )
        return layout, predict(times, job, layout, resources).agent_steps_per_second

    layout, rate = fastest(job)
    if resources.cores is not None and not rollout.is_automatic and not _says(config.pacing, "target_staleness"):
        in_turn = replace(job, target_staleness=0)
        other, other_rate = fastest(in_turn)
        if other_rate > (1.0 + AS_GOOD) * rate:
            job, layout = in_turn, other
    return _completed(
        config, layout.workers, layout.replicas, layout.rows // agents_per_env, layout.threads, job.target_staleness
    )


def job_of(config: RunConfig, agents_per_env: int) -> Job:
    trainer = config.trainer
    return Job(
        batch_steps=trainer.batch_size,
        minibatch_steps=trainer.minibatch_size,
        horizon=trainer.bptt_horizon,
        agents_per_env=agents_per_env,
        update_epochs=trainer.update_epochs,
        target_staleness=config.pacing.target_staleness,
    )


class Speed:
    """How fast a run could be, for its epoch lines: the floor of the cores it uses, and what would gain most."""

    @classmethod
    def of_session(cls, config: RunConfig, sizes: Sizes, session: Mapping[str, Any]) -> Self:
        """From what the starting process found out: ``service_times`` (JSON) or None, and the ``cores`` that all
        processes share, None for a cluster."""
        measured = session.get("service_times")
        times = ServiceTimes.from_json(measured) if measured else None
        return cls(config, sizes, times, Resources(cores=session.get("cores")))

    def __init__(self, config: RunConfig, sizes: Sizes, times: ServiceTimes | None, resources: Resources) -> None:
        self._times = times
        self._resources = resources
        self._job = job_of(config, sizes.agents_per_worker // sizes.num_envs)
        self._sizes = sizes
        self._threads = config.learner.threads
        self._levers: dict[Layout, str | None] = {}

    def efficiency(self, agent_steps_per_second: float, workers: int, replicas: int) -> float | None:
        """Share of the floor. None where nothing was measured, or while nobody works."""
        if self._times is None or not workers or not replicas:
            return None
        return agent_steps_per_second / floor_of(
            self._times, self._job, self._layout(workers, replicas), self._resources
        )

    def next_lever(self, workers: int, replicas: int) -> str | None:
        """What to change first and what it would gain, computed once for each layout that a run comes to have. None
        where that is not known."""
        if self._times is None or not workers or not replicas:
            return None
        layout = self._layout(workers, replicas)
        if layout not in self._levers:
            try:
                lever = next_lever(self._times, self._job, layout, self._resources)
                self._levers[layout] = lever.text if lever is not None else NO_LEVER
            except ConfigError:  # a group that lost a replica may not share the batch evenly
                self._levers[layout] = None
        return self._levers[layout]

    def _layout(self, workers: int, replicas: int) -> Layout:
        sizes = self._sizes
        return Layout(workers, replicas, sizes.agents_per_worker, sizes.fragment_steps, self._threads)


def _completed(
    config: RunConfig,
    workers: int,
    replicas: int,
    num_envs: int,
    threads: int = 1,
    target_staleness: int = DEFAULT_STALENESS,
) -> RunConfig:
    """What the configuration leaves open is so; what it says outright stays."""
    rollout, learner, pacing = config.rollout, config.learner, config.pacing
    changes: dict[str, Any] = {"num_workers": rollout.num_workers or workers}
    if not rollout.num_envs and not rollout.fragment_steps:
        changes["num_envs"] = num_envs
    rollout = rollout.model_copy(update=changes)
    learner = learner.model_copy(
        update={
            "replicas": learner.replicas or replicas,
            "threads": learner.threads if _says(learner, "threads") else threads,
        }
    )
    if not _says(pacing, "target_staleness"):
        pacing = pacing.model_copy(update={"target_staleness": target_staleness})
    return config.model_copy(update={"rollout": rollout, "learner": learner, "pacing": pacing})


def _says(part: BaseModel, name: str) -> bool:
    """Whether the user set it, if only to its default."""
    return name in part.model_fields_set
