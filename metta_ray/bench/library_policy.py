"""The library's policy at work on synthetic observations, through the functions that rollouts and updates use."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from metta_ray.agent.agent_config import AgentConfig
from metta_ray.agent.factory import build_policy
from metta_ray.agent.metta_agent import MettaAgent
from metta_ray.agent.token_encoder import used_tokens
from metta_ray.agent.vocabulary import token_layout
from metta_ray.bench.policy_floor import TokenTables
from metta_ray.bench.ppo_floor import FloorMinibatch
from metta_ray.bench.synthetic import (
    ACTIONS,
    EPISODE_STEPS,
    NUM_TOKENS,
    PADDING,
    Density,
    navigation_spec,
    observations,
)
from metta_ray.rl.experience import Experience
from metta_ray.rl.losses import Losses
from metta_ray.rl.optimizer import Optimizer
from metta_ray.rl.rollout_state import RolloutState
from metta_ray.rl.trainer_config import TrainerConfig
from metta_ray.rl.update import process_minibatch_update

HORIZON = 64


def build_agent(architecture: str, device: torch.device, dtype: torch.dtype) -> MettaAgent:
    agent = build_policy(navigation_spec(), AgentConfig(architecture=architecture)).to(device)
    agent.autocast_dtype = None if dtype == torch.float32 else dtype
    return agent


def token_tables(*, height: int = 11, width: int = 11) -> TokenTables:
    """The library's meaning of tokens as plain numbers, so that both sides fill the same box."""
    spec = navigation_spec()
    assert spec.vocabulary is not None
    layout = token_layout(spec.vocabulary, spec.action_names)
    channel, value = torch.from_numpy(layout.channel), torch.from_numpy(layout.channel_value)
    return TokenTables(channel, value, len(layout.channels), height, width)


class LibraryActor:
    """Inference of one group of agents, as a rollout does it: padding cut off, state kept, actions drawn.

    No episode ends, as in most steps of a rollout."""

    def __init__(self, agent: MettaAgent, rows: int, device: torch.device) -> None:
        self._agent, self._device = agent, device
        self._rows = slice(0, rows)
        space = agent.spec.action_space
        self._state = RolloutState(
            rows, space, hidden_size=agent.hidden_size, num_lstm_layers=agent.core_num_layers, device=device
        )
        self._rewards = torch.zeros(rows, device=device)

    @torch.inference_mode()
    def act(self, obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(actions, log-probabilities, values) of ``(rows, W, 3)``."""
        state = self._state.policy_state(self._rows, resets=None, last_rewards=self._rewards)
        trimmed = obs[:, : used_tokens(obs)].to(self._device)
        actions, logprobs, values = self._agent.act(trimmed, state)
        self._state.update(self._rows, state, actions)
        return actions, logprobs, values


class LibraryLearner:
    """A full buffer of synthetic experience, and the gradient steps that an update takes on it."""

    def __init__(self, agent: MettaAgent, minibatch: int, density: Density, device: torch.device) -> None:
        self._agent, self._device = agent, device
        self._config = TrainerConfig(batch_size=minibatch, minibatch_size=minibatch, bptt_horizon=HORIZON)
        self._optimizer = Optimizer("adam", policy=agent, learning_rate=1e-4)
        self._losses = Losses()
        self._advantages = torch.randn(minibatch // HORIZON, HORIZON, device=device)
        self.experience = Experience(
            minibatch // HORIZON,
            minibatch,
            HORIZON,
            minibatch,
            minibatch,
            agent.spec.observation_space,
            agent.spec.action_space,
            device,
            agent.hidden_size,
            num_lstm_layers=agent.core_num_layers,
        )
        _fill(self.experience, density, np.random.default_rng(0))

    def step(self) -> None:
        minibatch = self.experience.sample_minibatch(self._advantages, 0.0, 1.0, 0, 1)
        loss = process_minibatch_update(
            self._agent,
            self.experience,
            minibatch,
            self._advantages,
            self._config,
            None,
            0,
            self._losses,
            self._device,
        )
        self._optimizer.step(loss, 0)

    def for_floor(self, *, padded: bool) -> FloorMinibatch:
        """The same observations, actions and so on in the floor's form. padded: observations with all their tokens, as
        the environment hands them out."""
        buffer = self.experience
        state = torch.zeros(1, buffer.segments, self._agent.hidden_size, device=self._device)
        missing = NUM_TOKENS - buffer.obs.shape[2] if padded else 0
        obs = torch.nn.functional.pad(buffer.obs, (0, 0, 0, missing), value=PADDING)
        returns = self._advantages + buffer.values
        return FloorMinibatch(obs, buffer.actions, buffer.logprobs, self._advantages, returns, state, state)


def _fill(experience: Experience, density: Density, rng: np.random.Generator) -> None:
    arrays = {name: array.copy() for name, array in experience.fragment_arrays().items()}
    segments, steps = arrays["actions"].shape
    obs = torch.from_numpy(observations(segments * steps, density, rng))
    arrays["obs"] = obs[:, : used_tokens(obs)].view(segments, steps, -1, 3).numpy()
    arrays["actions"][:] = rng.integers(len(ACTIONS), size=(segments, steps))
    arrays["logprobs"][:] = -np.log(len(ACTIONS))
    arrays["masks"][:] = True
    # Episodes end at their limit; a reward now and then.
    arrays["dones"][:] = rng.random(arrays["dones"].shape) < 1 / EPISODE_STEPS
    arrays["truncateds"][:] = arrays["dones"]
    arrays["rewards"][:] = rng.random(arrays["rewards"].shape) < 0.02
    experience.add_fragment(0, arrays)
