"""A rollout worker and learners as plain objects in this process, without Ray; and the same training by the library."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from metta_ray.agent import spec_json
from metta_ray.agent.factory import Agent
from metta_ray.envs.tasks import Curriculum
from metta_ray.rl.environment import Environment
from metta_ray.rl.experience import Experience
from metta_ray.rl.fragment import Fragment, FragmentHeader
from metta_ray.rl.hyperparameter_schedule import HyperparameterScheduler
from metta_ray.rl.losses import Losses
from metta_ray.rl.optimizer import Optimizer
from metta_ray.rl.rollout import perform_rollout_step
from metta_ray.rl.session import prepare_process
from metta_ray.rl.update import maybe_update_l2_weights, update_policy
from metta_ray.rl.vecenv import training_factory
from metta_ray.service.identity import Identity
from metta_ray.service.learner import Learner, Trained
from metta_ray.service.orders import GroupPlace, PublishedWeights, Ticket, UpdateOrder
from metta_ray.service.rollout_worker import RolloutWorker
from metta_ray.service.run_config import RunConfig, load_run_config
from metta_ray.service.shared_directory import leave_nonce
from metta_ray.service.sizes import Sizes, resolved_sizes

CARTPOLE = {"preset": "cartpole", "trainer.batch_size": 256, "trainer.minibatch_size": 128, "trainer.update_epochs": 2}
NAVIGATION = {
    "preset": "navigation",
    "agent.architecture": "mlp",
    "agent.lstm_hidden_size": 16,
    "trainer.batch_size": 256,
    "trainer.minibatch_size": 128,
    "trainer.bptt_horizon": 16,
}
"""Recurrent, with tokens and a curriculum."""


def config_of(words: dict[str, Any], **more: Any) -> RunConfig:
    words = {"rollout.num_workers": 1, "learner.replicas": 1, "pacing.target_staleness": 0} | words
    words |= {name.replace("__", "."): value for name, value in more.items()}
    return load_run_config(None, {name: str(value) for name, value in words.items()})


@dataclass
class PlainService:
    """config, and what the coordinator would keep. tickets: taken from here."""

    config: RunConfig
    run_dir: Path
    tickets: Any = field(default_factory=itertools.count)
    agent_step: int = 0

    def __post_init__(self) -> None:
        factory = training_factory(self.config.trainer)
        self.curriculum: Curriculum | None = factory.curriculum()
        self.spec = factory.spec()
        self.sizes: Sizes = resolved_sizes(self.config, self.spec.agents_per_env)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.nonce = leave_nonce(str(self.run_dir))

    def worker(self, number: int = 0, snapshot: Any = None) -> RolloutWorker:
        identity = Identity("plain", "rollout", number, f"life {number}", 0)
        return RolloutWorker(identity, self.config.model_dump(), self.sizes, snapshot)

    def learner(self, number: int = 0) -> Learner:
        identity = Identity("plain", "learner", number, f"replica {number}", 0)
        spec = spec_json.to_json(self.spec)
        return Learner(identity, self.config.model_dump(), self.sizes, spec, str(self.run_dir), self.nonce)

    def begun_learner(self) -> tuple[Learner, Any, Any]:
        """(a group of one, its weights, its optimiser state)."""
        learner = self.learner()
        _, weights, state = learner.begin(None)
        learner.join(GroupPlace(0, 0, 1), 0, 0, [weights], [state])
        return learner, weights, state

    def ticket(self, version: int, weights: Any, settled: tuple[int, ...] = ()) -> Ticket:
        table = self.curriculum.task_table() if self.curriculum is not None else None
        tasks = table.weights if table is not None else None
        return Ticket(next(self.tickets), 0, PublishedWeights(version, weights), tasks, settled)

    def collect(self, worker: RolloutWorker, version: int, weights: Any) -> tuple[FragmentHeader, Fragment]:
        header, fragment = worker.collect(self.ticket(version, weights))
        for task, score in header.outcomes:
            assert self.curriculum is not None
            self.curriculum.complete_task(task, score)
        return header, fragment

    def batch(self, worker: RolloutWorker, version: int, weights: Any) -> list[tuple[FragmentHeader, Fragment]]:
        return [self.collect(worker, version, weights) for _ in range(self.sizes.fragments_per_batch)]

    def order(self, version: int, headers: list[FragmentHeader]) -> UpdateOrder:
        before = self.agent_step
        self.agent_step += sum(header.counted_steps for header in headers)
        return UpdateOrder(0, 0, version, version, before, self.agent_step, tuple(h.ticket for h in headers))

    def update(self, learner: Learner, version: int, batch: list[tuple[FragmentHeader, Fragment]]) -> Trained:
        learner.stage(0, 0, version, [fragment for _, fragment in batch])
        return learner.train(self.order(version, [header for header, _ in batch]))

    def train(self, updates: int) -> list[tuple[dict[str, float], dict[str, Any]]]:
        """(losses, weights after it) of each update, with one worker and one replica taking turns."""
        torch_state = torch.get_rng_state()
        worker = self.worker()
        worker_state = torch.get_rng_state()
        torch.set_rng_state(torch_state)
        learner, weights, _ = self.begun_learner()
        learner_state = torch.get_rng_state()
        told = []
        for version in range(updates):
            torch.set_rng_state(worker_state)  # as in processes of their own
            batch = self.batch(worker, version, weights)
            worker_state = torch.get_rng_state()
            torch.set_rng_state(learner_state)
            result, weights, _ = self.update(learner, version, batch)
            learner_state = torch.get_rng_state()
            assert weights is not None
            told.append((dict(result.losses), {name: array.copy() for name, array in weights.arrays().items()}))
        worker.close()
        return told


def train_with_the_library(
    config: RunConfig, sizes: Sizes, updates: int
) -> list[tuple[dict[str, float], dict[str, Any]]]:
    """The loop of run.py, with as many environments as the worker has."""
    trainer = config.trainer
    prepare_process(trainer.seed, threads=1)
    device = torch.device("cpu")
    vecenv = Environment(env_config=training_factory(trainer), device="cpu", seed=trainer.seed, num_envs=sizes.num_envs)
    agent = Agent(vecenv, config=config.agent, device="cpu")
    experience = Experience(
        total_agents=vecenv.num_agents,
        batch_size=trainer.batch_size,
        bptt_horizon=trainer.bptt_horizon,
        minibatch_size=trainer.minibatch_size,
        max_minibatch_size=trainer.minibatch_size,
        obs_space=vecenv.driver_env.single_observation_space,
        atn_space=vecenv.driver_env.single_action_space,
        device=device,
        hidden_size=agent.hidden_size,
        num_lstm_layers=agent.core_num_layers,
        agents_per_batch=vecenv.agents_per_batch,
        reward_centering_rate=trainer.reward_centering.beta if trainer.reward_centering.enabled else None,
    )
    optimizer = Optimizer(
        optimizer_type=trainer.optimizer.type,
        policy=agent,
        learning_rate=trainer.optimizer.learning_rate,
        betas=(trainer.optimizer.beta1, trainer.optimizer.beta2),
        eps=trainer.optimizer.eps,
        weight_decay=trainer.optimizer.weight_decay,
        max_grad_norm=trainer.ppo.max_grad_norm,
        max_nonfinite_updates=trainer.max_nonfinite_updates,
    )
    schedule = HyperparameterScheduler(trainer, optimizer)
    agent_step, told = 0, []
    for epoch in range(updates):
        schedule.step(agent_step)
        experience.reset_for_rollout()
        while not experience.ready_for_training:
            agent_step += perform_rollout_step(agent, vecenv, experience, device)[0]
        losses = Losses()
        update_policy(agent, optimizer, experience, trainer, None, agent_step, epoch, losses, device)
        maybe_update_l2_weights(agent, epoch + 1, agent.config.l2_init_weight_update_interval)
        told.append((losses.stats(), {name: t.numpy().copy() for name, t in agent.state_dict().items()}))
    vecenv.close()
    return told
