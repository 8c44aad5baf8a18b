"""One rank of the library's training loop with the floor of its parts: a process of its own, started by train_bench.

python -m metta_ray.bench.train_loop '{"network": "light", …}'   # rank 0 prints its result as the last line

Ranks are told who they are by torchrun's environment variables.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from metta_ray.agent.agent_config import AgentConfig
from metta_ray.agent.factory import Agent
from metta_ray.agent.formulations import autocast_dtype, choose_formulation
from metta_ray.agent.metta_agent import MettaAgent
from metta_ray.agent.token_encoder import TokenEncoder
from metta_ray.bench.floor_parts import floor_parts
from metta_ray.bench.part_times import PartTimes, Place
from metta_ray.common.profiling.stopwatch import Stopwatch
from metta_ray.envs.grouped_vecenv import GroupedVecEnv
from metta_ray.rl import update
from metta_ray.rl.distributed import (
    barrier,
    cleanup_distributed,
    setup_device_and_distributed,
    setup_distributed_vars,
    sum_over_ranks,
    wrap_agent_distributed,
)
from metta_ray.rl.environment import Environment
from metta_ray.rl.experience import Experience
from metta_ray.rl.losses import Losses
from metta_ray.rl.optimizer import Optimizer
from metta_ray.rl.rollout import perform_rollout_step
from metta_ray.rl.session import prepare_process
from metta_ray.rl.trainer_config import TrainerConfig

WARM_UP_EPOCHS = 1
MIN_EPOCHS = 2
ENVIRONMENTS = {
    "simple": "/env/mettagrid/curriculum/simple",
    "bucketed": "/env/mettagrid/curriculum/navigation/bucketed",
    "cartpole": "gym:CartPole-v1",
}
AGENTS_PER_ENV = 4


@dataclass(frozen=True)
class LoopTask:
    """rows, batch, minibatch: agents and agent steps of this rank. floor_seconds: 0 leaves the floor out."""

    network: str
    workload: str
    threads: int
    rows: int
    batch: int
    minibatch: int
    seconds: float
    floor_seconds: float
    horizon: int = 64
    update_epochs: int = 1


class Loop:
    """run.py's loop, without what it says and saves."""

    def __init__(self, task: LoopTask) -> None:
        self.task = task
        environment = ENVIRONMENTS[task.workload]
        is_curriculum = environment.startswith("/")
        self.config = TrainerConfig.from_mapping(
            {
                "curriculum": environment if is_curriculum else None,
                "env": None if is_curriculum else environment,
                "batch_size": task.batch,
                "minibatch_size": task.minibatch,
                "bptt_horizon": task.horizon,
                "update_epochs": task.update_epochs,
            }
        )
        self.vecenv = (
            Environment(curriculum_path=environment, num_envs=task.rows // AGENTS_PER_ENV, seed=0, device="cpu")
            if is_curriculum
            else Environment(env_config=environment, num_envs=task.rows, seed=0, device="cpu")
        )
        network = AgentConfig(architecture=task.network)
        segments = task.minibatch // task.horizon
        formulation = choose_formulation(self.vecenv.driver_env, network, segments=segments)  # as run.py does
        self.agent = Agent(self.vecenv, config=formulation.applied_to(network), device="cpu")
        self.agent.autocast_dtype = autocast_dtype(formulation.autocast)
        self.policy = wrap_agent_distributed(self.agent, "cpu")
        self.optimizer = Optimizer("adam", policy=self.agent, learning_rate=3e-4)
        self.experience = Experience(
            self.vecenv.num_agents,
            task.batch,
            task.horizon,
            task.minibatch,
            task.minibatch,
            self.vecenv.driver_env.single_observation_space,
            self.vecenv.driver_env.single_action_space,
            "cpu",
            self.agent.hidden_size,
            num_lstm_layers=self.agent.core_num_layers,
        )
        self.timer, self.losses = Stopwatch(), Losses()
        self.epoch = self.agent_step = 0

    def epochs(self, seconds: float) -> list[float]:
        """Agent steps per second of all ranks, for each epoch; every rank does the same number."""
        rates: list[float] = []
        began = time.perf_counter()
        while self.total(int(len(rates) < MIN_EPOCHS or time.perf_counter() - began < seconds)):
            epoch_began = time.perf_counter()
            steps = self.run_epoch()
            rates.append(steps / (time.perf_counter() - epoch_began))
        return rates

    def run_epoch(self) -> int:
        steps = 0
        self.experience.reset_for_rollout()
        while not self.experience.ready_for_training:
            steps += perform_rollout_step(self.policy, self.vecenv, self.experience, "cpu", self.timer)[0]
        steps = self.total(steps)
        self.agent_step += steps
        update.update_policy(
            self.policy,
            self.optimizer,
            self.experience,
            self.config,
            None,
            self.agent_step,
            self.epoch,
            self.losses,
            "cpu",
            self.timer,
        )
        self.epoch += 1
        return steps

    def total(self, count: int) -> int:
        """Over all ranks; waits for them."""
        return sum_over_ranks(count)

    def profile(self, epochs: int = 1) -> dict[str, float]:
        """Microseconds per agent step of this rank, by part."""
        times, steps = PartTimes(), epochs * self.task.batch
        with times.watching(parts_of_the_library()):
            for _ in range(epochs):
                self.run_epoch()
        return {name: round(1e6 * seconds / steps, 3) for name, seconds in times.seconds.items()}


def parts_of_the_library() -> list[Place]:
    def always(name: str) -> Callable[[], str]:
        return lambda: name

    return [
        (GroupedVecEnv, "recv", always("environment")),
        (GroupedVecEnv, "send", always("environment")),
        (TokenEncoder, "forward", always("look-up")),
        (MettaAgent, "forward", always("forward")),
        (MettaAgent, "act", always("inference")),
        (MettaAgent, "value", always("inference")),
        (Experience, "store", always("storing")),
        (Experience, "close", always("storing")),
        (Experience, "sample_minibatch", always("minibatches")),
        (update, "batch_advantages", always("advantage")),
        (update, "generalized_advantages", always("advantage")),
        (update, "fused_ppo_loss", always("loss")),
        (update, "minibatch_totals", always("loss")),
        (update, "all_reduce_sum", always("exchange")),
        (Loop, "total", always("exchange")),
        (Optimizer, "step", always("backward")),
        (Optimizer, "_update", always("optimiser")),
    ]


def measure(task: LoopTask) -> dict[str, Any]:
    """Rates of the loop, its profile, and the floor of its parts before and after, on one thread of one rank."""
    setup_device_and_distributed("cpu")
    _, ranks, _ = setup_distributed_vars()
    prepare_process(0, threads=task.threads)
    loop = Loop(task)
    for _ in range(WARM_UP_EPOCHS):
        loop.run_epoch()
    floors = [_floor(task, loop)]
    rates = loop.epochs(task.seconds)
    profile = loop.profile()
    floors.append(_floor(task, loop))
    loop.vecenv.close()
    cleanup_distributed()
    return {
        "ranks": ranks,
        "rates": [round(rate) for rate in rates],
        "profile": profile,
        "floor": {name: round(float(np.mean([floor[name] for floor in floors])), 3) for name in floors[0]},
    }


def _floor(task: LoopTask, loop: Loop) -> dict[str, float]:
    """The other ranks wait: the floor is that of a core which has the machine for itself."""
    parts: dict[str, float] = {}
    is_master, ranks, _ = setup_distributed_vars()
    if is_master and task.floor_seconds:
        torch.set_num_threads(1)
        # Ranks share rows and minibatches; the floor need not.
        rows, minibatch = ranks * task.rows, ranks * task.minibatch
        parts = floor_parts(task.network, task.workload, rows, minibatch, loop.experience, task.floor_seconds / 2)
        torch.set_num_threads(task.threads)
    barrier()
    return parts


def main() -> None:
    print(json.dumps(measure(LoopTask(**json.loads(sys.argv[1])))))


if __name__ == "__main__":
    main()
