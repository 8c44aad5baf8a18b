"""What a rollout carries from one step to the next, for every agent of a vecenv.

Letters: N agents, L LSTM layers, H hidden size.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from metta_ray.agent.policy_state import PolicyState
from metta_ray.rl.arrays import Buffer
from metta_ray.rl.random_streams import ACTIONS, random_stream

_TENSORS = ("lstm_h", "lstm_c", "last_actions")


class RolloutState:
    """Recurrent state and last action per agent.

    lstm_h, lstm_c: float32 ``(L, N, H)``; L = 0 for a policy without recurrence.
    last_actions: ``(N, *action_shape)``, int64 or float32. is_new: bool ``(N,)`` on the host, True until an agent first
        acts: its first observation begins an episode, though no episode ended before it.
    generator: draws the actions.
    """

    def __init__(
        self,
        num_agents: int,
        action_space: gymnasium.Space[Any],
        *,
        hidden_size: int,
        num_lstm_layers: int,
        device: torch.device | str,
    ):
        self.num_agents = num_agents
        self.lstm_h = torch.zeros(num_lstm_layers, num_agents, hidden_size, device=device)
        self.lstm_c = torch.zeros_like(self.lstm_h)
        self.last_actions = torch.zeros(
            (num_agents, *(action_space.shape or ())), dtype=action_dtype(action_space), device=device
        )
        self.is_new = np.ones(num_agents, bool)
        self.generator = random_stream(ACTIONS, device)
        self._written = [Buffer(tensor) for tensor in (self.lstm_h, self.lstm_c, self.last_actions)]

    @property
    def is_recurrent(self) -> bool:
        return self.lstm_h.shape[0] > 0

    def policy_state(self, rows: slice | Tensor, *, resets: Tensor | None, last_rewards: Tensor) -> PolicyState:
        """What the policy needs to act for ``rows``; ``resets`` and ``last_rewards`` came with the observation."""
        return PolicyState(
            lstm_h=self.lstm_h[:, rows] if self.is_recurrent else None,
            lstm_c=self.lstm_c[:, rows] if self.is_recurrent else None,
            resets=resets,
            last_actions=self.last_actions[rows],
            last_rewards=last_rewards,
            generator=self.generator,
        )

    def update(self, rows: slice, state: PolicyState, actions: Tensor) -> None:
        """Keeps what the policy left in ``state`` after acting."""
        lstm_h, lstm_c, last_actions = self._written
        if self.is_recurrent:
            assert state.lstm_h is not None
            assert state.lstm_c is not None
            lstm_h.put((slice(None), rows), state.lstm_h)
            lstm_c.put((slice(None), rows), state.lstm_c)
        last_actions.put(rows, actions)
        self.is_new[rows] = False

    def state_dict(self) -> dict[str, Any]:
        arrays = {name: getattr(self, name).cpu().numpy().copy() for name in _TENSORS}
        return {**arrays, "is_new": self.is_new.copy(), "generator": self.generator.get_state().numpy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError where shapes differ (another number of agents or another policy)."""
        for name in (*_TENSORS, "is_new"):
            own, array = getattr(self, name), np.asarray(state[name])
            if tuple(own.shape) != array.shape:
                raise ValueError(f"rollout state {name} has shape {array.shape}, expected {tuple(own.shape)}")
            own[...] = torch.from_numpy(array) if name in _TENSORS else array
        self.generator.set_state(torch.from_numpy(np.array(state["generator"])))


def action_dtype(action_space: gymnasium.Space[Any]) -> torch.dtype:
    """float32 for continuous actions, int64 for the others."""
    return torch.float32 if isinstance(action_space, gymnasium.spaces.Box) else torch.int64
