"""What a run's machine can do, measured before the run starts, or read from what the machine remembers.

measured_here(config).times  # the first time seconds, in a process of its own; later a moment

This process loads neither torch nor an engine for an answer that is known.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from metta_ray.common.errors import MettaRayError
from metta_ray.common.util.machine_cache import MachineCache
from metta_ray.control.rates import ServiceTimes
from metta_ray.service.run_config import RunConfig

CACHE = MachineCache("runs")
FORMAT = 4
"""Of what is kept: to be raised whenever measured values mean something else."""
TIMEOUT_S = 120.0
_TRAINER = ("env", "curriculum", "env_overrides", "batch_size", "minibatch_size", "bptt_horizon", "autocast")


class MeasuringError(MettaRayError):
    """The environment or the network could not be run alone; the text says why."""


@dataclass(frozen=True)
class Measured:
    """times: of each part of the training. autocast, gather_conv: the fastest way to compute the policy (see
    ``agent.formulations``), which ``times`` were measured with."""

    times: ServiceTimes
    autocast: str
    gather_conv: bool | None

    def to_json(self) -> dict[str, Any]:
        return {"times": self.times.to_json(), "autocast": self.autocast, "gather_conv": self.gather_conv}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        return cls(ServiceTimes.from_json(values["times"]), values["autocast"], values["gather_conv"])


def usable_cores() -> int:
    """Of this machine, by this process."""
    return len(os.sched_getaffinity(0))


def measured_here(config: RunConfig) -> Measured:
    """For this machine, and this run's environment, network and sizes. MeasuringError where they cannot be run."""
    return Measured.from_json(CACHE.get_or_measure(_question(config), lambda: _in_a_process(config)))


def measured_on_a_node(config: RunConfig) -> Measured:
    """The same for a node of the connected cluster, one with what rollout workers and learners need."""
    import ray

    task = ray.remote(_on_this_node).options(
        num_cpus=1, num_gpus=max(config.rollout.num_gpus, config.learner.num_gpus), max_retries=1
    )
    try:
        answer: Any = ray.get(task.remote(config.model_dump(mode="json")), timeout=TIMEOUT_S)
        return Measured.from_json(answer)
    except ray.exceptions.RayError as error:
        raise MeasuringError(str(error).strip().splitlines()[-1]) from None


def _question(config: RunConfig) -> dict[str, Any]:
    """All that the answer depends on beside the machine."""
    trainer = config.trainer.model_dump(mode="json")
    return {
        "format": FORMAT,
        "trainer": {name: trainer[name] for name in _TRAINER},
        "optimizer": config.trainer.optimizer.type,
        "agent": config.agent,
        "devices": [config.rollout.device, config.learner.device],
    }


def _in_a_process(config: RunConfig) -> dict[str, Any]:
    """In this one torch would stay loaded, and an environment that crashes would take it along."""
    try:
        process = subprocess.run(
            [sys.executable, "-m", __name__],
            input=config.model_dump_json(),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise MeasuringError(f"nothing was measured within {TIMEOUT_S:g} s") from None
    if process.returncode:
        raise MeasuringError((process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1])
    answer: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return answer


def _on_this_node(config: dict[str, Any]) -> dict[str, Any]:
    return measured_here(RunConfig.from_mapping(config)).to_json()


def _measure(config: RunConfig) -> dict[str, Any]:
    from metta_ray.agent.agent_config import agent_config_from
    from metta_ray.agent.formulations import choose_formulation
    from metta_ray.common.util.memory import keep_freed_memory
    from metta_ray.rl.vecenv import training_factory
    from metta_ray.service.rates import measure_service_times

    keep_freed_memory()  # as the processes of a run do
    spec, trainer = training_factory(config.trainer).spec(), config.trainer
    agent = agent_config_from(config.agent, default_architecture="mlp" if spec.vocabulary is None else "default")
    segments = max(1, trainer.minibatch_size // trainer.bptt_horizon)
    formulation = choose_formulation(spec, agent, trainer.autocast, device=config.learner.device, segments=segments)
    times = measure_service_times(
        trainer.model_copy(update={"autocast": formulation.autocast}),
        formulation.applied_to(agent),
        rollout_device=config.rollout.device,
        learner_device=config.learner.device,
    )
    return Measured(times, formulation.autocast, formulation.gather_conv).to_json()


if __name__ == "__main__":
    print(json.dumps(_measure(RunConfig.from_mapping(json.load(sys.stdin)))))
