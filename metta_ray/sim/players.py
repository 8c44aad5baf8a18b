"""Who chooses actions in a simulation: a policy, chance, or a script.

A player drives some rows of a batch of environments. It reads the batch's arrays as they stand after a step
(observation, reward and end flags of that step) and writes actions into its rows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metta_ray.agent.metta_agent import MettaAgent
from metta_ray.agent.policy_files import unwrapped
from metta_ray.agent.policy_record import PolicyRecord
from metta_ray.agent.policy_state import PolicyState
from metta_ray.agent.policy_store import PolicyStore
from metta_ray.agent.token_encoder import used_tokens
from metta_ray.common.errors import ConfigError
from metta_ray.envs.env_batch import EnvBatch
from metta_ray.envs.env_spec import EnvSpec
from metta_ray.sim.results import PolicyKey

if TYPE_CHECKING:
    from metta_ray.mettagrid.scripted import ScriptedPolicy


class Player(Protocol):
    """key: under which results are stored."""

    key: PolicyKey

    def check_fits(self, spec: EnvSpec) -> None:
        """Raises PolicyMismatchError or ConfigError if this player cannot play there."""
        ...

    def start(self, batch: EnvBatch, rows: NDArray[np.int64], seed: int) -> Acting:
        """Gets ready to drive ``rows`` of a batch that has just been reset."""
        ...


class Acting(Protocol):
    """A player at play.

    values: float32 ``(rows,)``, the returns it expected when it chose its last actions; None if it expects nothing.
    """

    values: NDArray[np.float32] | None

    def act(self) -> None:
        """Writes actions for the state that the batch's arrays hold now."""
        ...


class RandomPlayer:
    """Uniformly random actions."""

    def __init__(self) -> None:
        self.key = PolicyKey("random")

    def check_fits(self, spec: EnvSpec) -> None:
        del spec  # chance plays everywhere

    def start(self, batch: EnvBatch, rows: NDArray[np.int64], seed: int) -> Acting:
        return _RandomActing(batch, rows, seed)


class _RandomActing:
    values: NDArray[np.float32] | None = None

    def __init__(self, batch: EnvBatch, rows: NDArray[np.int64], seed: int) -> None:
        self._arrays = batch.arrays
        self._space = batch.spec.action_space
        self._rows = rows
        self._rng = np.random.default_rng(seed)

    def act(self) -> None:
        space, size = self._space, (len(self._rows), *(self._space.shape or ()))
        actions: NDArray[Any]
        if isinstance(space, gymnasium.spaces.Discrete):
            actions = self._rng.integers(space.n, size=size)
        elif isinstance(space, gymnasium.spaces.MultiDiscrete):
            actions = self._rng.integers(space.nvec, size=size)
        else:
            assert isinstance(space, gymnasium.spaces.Box)
            actions = self._rng.uniform(np.clip(space.low, -1e3, 1e3), np.clip(space.high, -1e3, 1e3), size=size)
        self._arrays.actions[self._rows] = actions


class ScriptedPlayer:
    """Shortest paths with full knowledge of the map; only in MettaGrid (ConfigError elsewhere)."""

    def __init__(self) -> None:
        self.key = PolicyKey("scripted")

    def check_fits(self, spec: EnvSpec) -> None:
        if spec.vocabulary is None:
            raise ConfigError(f"{spec.name} has no scripted policy; compare with the random one")

    def start(self, batch: EnvBatch, rows: NDArray[np.int64], seed: int) -> Acting:
        from metta_ray.mettagrid.scripted import ScriptedPolicy  # loads the engine

        return _ScriptedActing(ScriptedPolicy(batch, seed), batch, rows)  # type: ignore[arg-type]


class _ScriptedActing:
    values: NDArray[np.float32] | None = None

    def __init__(self, scripted: ScriptedPolicy, batch: EnvBatch, rows: NDArray[np.int64]) -> None:
        self._scripted = scripted
        self._arrays = batch.arrays
        self._rows = rows

    def act(self) -> None:
        self._arrays.actions[self._rows] = self._scripted.act()[self._rows]


class PolicyPlayer:
    """A policy. It plays with a copy of its own, so a policy in training is not touched.

    greedy: the likeliest action instead of a drawn one; not for continuous actions (ConfigError).
    has_memory: False empties the recurrent state before every step, to see what memory is worth.
    """

    def __init__(
        self,
        policy: nn.Module | PolicyRecord,
        *,
        key: PolicyKey | None = None,
        greedy: bool = False,
        has_memory: bool = True,
        device: str | torch.device | None = None,
    ) -> None:
        if isinstance(policy, PolicyRecord):
            key = key or PolicyKey(policy.uri, int(policy.metadata.epoch))
            policy = policy.policy
        module = unwrapped(policy)
        if not isinstance(module, MettaAgent):
            raise ConfigError(f"a {type(module).__name__} cannot play; give a policy made by Agent(...)")
        self.key = key or PolicyKey("policy")
        self.greedy = greedy
        self.has_memory = has_memory
        self._policy = module
        self._device = torch.device(device) if device is not None else next(module.parameters()).device

    @property
    def spec(self) -> EnvSpec:
        """What the policy was built for."""
        return self._policy.spec

    def check_fits(self, spec: EnvSpec) -> None:
        if self.greedy and isinstance(spec.action_space, gymnasium.spaces.Box):
            raise ConfigError(f"greedy actions of {spec.name}: a continuous policy only draws; use greedy=False")
        self._adapted_to(spec)

    def start(self, batch: EnvBatch, rows: NDArray[np.int64], seed: int) -> Acting:
        del seed  # draws come from torch's generator, which the simulation seeds
        policy = self._adapted_to(batch.spec)
        return _PolicyActing(policy, batch, rows, greedy=self.greedy, has_memory=self.has_memory)

    def _adapted_to(self, spec: EnvSpec) -> MettaAgent:
        policy = copy.deepcopy(self._policy).to(self._device).eval()
        policy.adapt_to(spec)
        return policy


class _PolicyActing:
    def __init__(
        self, policy: MettaAgent, batch: EnvBatch, rows: NDArray[np.int64], *, greedy: bool, has_memory: bool
    ) -> None:
        self._policy = policy
        self._arrays = batch.arrays
        self._spec = batch.spec
        # A slice reads without copying; rows of all agents are one.
        self._rows: slice | NDArray[np.int64] = slice(None) if len(rows) == len(batch.arrays.obs) else rows
        self._greedy = greedy
        self._has_memory = has_memory
        self._device = next(policy.parameters()).device
        self._state = PolicyState()
        self._is_first = True
        self.values: NDArray[np.float32] | None = None

    @torch.no_grad()
    def act(self) -> None:
        arrays, rows, state = self._arrays, self._rows, self._state
        ended = (arrays.terminals | arrays.truncations)[rows]
        # K2: whatever was remembered ends with the episode.
        state.resets = self._tensor(np.ones_like(ended) if self._is_first else ended)
        state.last_rewards = self._tensor(arrays.rewards[rows])
        if not self._has_memory:
            state.lstm_h = state.lstm_c = None
        drawn, _, _, value, log_probs = self._policy(self._observations(), state)
        actions = self._likeliest(log_probs) if self._greedy else drawn
        state.last_actions = actions if actions.is_floating_point() else actions.long()
        arrays.actions[rows] = actions.cpu().numpy()
        self.values = value.squeeze(1).cpu().numpy()
        self._is_first = False

    def _observations(self) -> Tensor:
        obs = torch.from_numpy(self._arrays.obs[self._rows])
        if self._spec.vocabulary is not None:
            obs = obs[:, : used_tokens(obs)]  # padding says nothing and costs time
        return obs.to(self._device)

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self._device)

    def _likeliest(self, log_probs: Tensor) -> Tensor:
        space = self._spec.action_space
        if isinstance(space, gymnasium.spaces.Discrete):
            return log_probs.argmax(dim=-1)
        assert isinstance(space, gymnasium.spaces.MultiDiscrete)  # by check_fits
        parts = torch.split(log_probs, [int(n) for n in space.nvec.ravel()], dim=-1)
        return torch.stack([part.argmax(dim=-1) for part in parts], dim=-1)


REFERENCE_PLAYERS: dict[str, Callable[[], Player]] = {"random": RandomPlayer, "scripted": ScriptedPlayer}


def named_player(
    name: str, store: PolicyStore, selector: str = "latest", device: str | torch.device | None = None
) -> Player:
    """``random``, ``scripted``, or the policy behind a URI, in whose directory ``selector`` chooses among several."""
    if name in REFERENCE_PLAYERS:
        return REFERENCE_PLAYERS[name]()
    return PolicyPlayer(store.policy_record(name, selector), device=device)


def as_player(policy: nn.Module | PolicyRecord | Player) -> Player:
    """Policies, records and players, all as players."""
    return PolicyPlayer(policy) if isinstance(policy, nn.Module | PolicyRecord) else policy
