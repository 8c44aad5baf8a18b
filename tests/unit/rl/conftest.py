"""Small trainings: an environment, a policy, a buffer and an optimizer that fit together."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from metta_ray.agent.agent_config import AgentConfig
from metta_ray.agent.factory import Agent
from metta_ray.agent.metta_agent import MettaAgent
from metta_ray.envs.vecenv import VecEnv
from metta_ray.rl.environment import Environment
from metta_ray.rl.experience import Experience
from metta_ray.rl.losses import Losses
from metta_ray.rl.optimizer import Optimizer
from metta_ray.rl.rollout import perform_rollout_step
from metta_ray.rl.trainer_config import TrainerConfig
from metta_ray.rl.update import batch_advantages, process_minibatch_update, update_policy


class Corridor(gymnasium.Env[Any, Any]):
    """Observation (steps so far, number of the episode); reward 1 per step; ends after ``length`` steps.

    ends: "terminated" or "truncated".
    """

    action_space = gymnasium.spaces.Discrete(2)
    observation_space = gymnasium.spaces.Box(0, 1000, (2,), np.float32)

    def __init__(self, length: int = 3, ends: str = "terminated"):
        self.length, self.ends, self.episode = length, ends, -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.episode, self.steps = self.episode + 1, 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        is_over = self.steps == self.length
        return self._observe(), 1.0, is_over and self.ends == "terminated", is_over and self.ends == "truncated", {}

    def _observe(self) -> Any:
        return np.array([self.steps, self.episode], np.float32)


@dataclass
class Rig:
    """A training in small; ``collect`` does one rollout, ``train`` one epoch's updates."""

    vecenv: VecEnv
    agent: MettaAgent
    experience: Experience
    config: TrainerConfig
    optimizer: Optimizer
    losses: Losses = field(default_factory=Losses)
    epoch: int = 0
    agent_step: int = 0

    def collect(self) -> tuple[int, list[dict[str, Any]]]:
        """(agent steps, infos) of one whole rollout."""
        steps, infos = 0, []
        self.experience.reset_for_rollout()
        while not self.experience.ready_for_training:
            num_steps, more = perform_rollout_step(self.agent, self.vecenv, self.experience, "cpu")
            steps, infos = steps + num_steps, infos + more
        self.agent_step += steps
        return steps, infos

    def train(self) -> None:
        update_policy(
            self.agent,
            self.optimizer,
            self.experience,
            self.config,
            None,
            self.agent_step,
            self.epoch,
            self.losses,
            "cpu",
        )
        self.epoch += 1

    def first_minibatch(self) -> torch.Tensor:
        """The loss of the first minibatch; ``experience.ratio`` and ``losses`` show how it went."""
        advantages = batch_advantages(self.experience, self.config, "cpu")
        minibatch = self.experience.sample_minibatch(advantages, 0.0, 1.0, 0, self.experience.num_minibatches)
        return process_minibatch_update(
            self.agent, self.experience, minibatch, advantages, self.config, None, 0, self.losses, "cpu"
        )

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self.agent.state_dict().items()}


BuildRig = Callable[..., Rig]
SMALL_MLP = {"architecture": "mlp", "hidden_sizes": (16,), "actor_hidden_sizes": (), "critic_hidden_sizes": ()}


@pytest.fixture
def build_rig() -> Iterator[BuildRig]:
    """``build_rig("gym:CartPole-v1", num_envs=4, horizon=8)``; keywords ``trainer`` and ``agent`` change settings."""
    opened: list[VecEnv] = []

    def build(
        env: Any = "gym:CartPole-v1",
        *,
        num_envs: int = 4,
        horizon: int = 8,
        segments_per_agent: int = 1,
        minibatches: int = 1,
        agent: dict[str, Any] | None = None,
        trainer: dict[str, Any] | None = None,
        optimizer: dict[str, Any] | None = None,
        seed: int = 0,
        **environment: Any,
    ) -> Rig:
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        vecenv = Environment(env_config=env, num_envs=num_envs, seed=seed, device="cpu", **environment)
        opened.append(vecenv)
        policy = Agent(vecenv, AgentConfig(**(SMALL_MLP | (agent or {}))), device="cpu")
        batch = vecenv.num_agents * horizon * segments_per_agent
        sizes = {"batch_size": batch, "minibatch_size": batch // minibatches, "bptt_horizon": horizon}
        config = TrainerConfig.from_mapping({"total_timesteps": 100 * batch, **sizes, **(trainer or {})})
        experience = Experience(
            vecenv.num_agents,
            batch,
            horizon,
            config.minibatch_size,
            config.minibatch_size,
            vecenv.driver_env.single_observation_space,
            vecenv.driver_env.single_action_space,
            "cpu",
            hidden_size=policy.hidden_size,
            num_lstm_layers=policy.core_num_layers,
            agents_per_batch=vecenv.agents_per_batch,
        )
        return Rig(vecenv, policy, experience, config, Optimizer(policy=policy, **(optimizer or {})))

    yield build
    for vecenv in opened:
        vecenv.close()


@pytest.fixture
def corridor(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name under which ``Corridor`` can be asked for."""
    module = ModuleType("corridor_for_tests")
    module.Corridor = Corridor  # type: ignore[attr-defined]
    module.truncating = lambda: Corridor(3, "truncated")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "corridor_for_tests", module)
    return "corridor_for_tests"
