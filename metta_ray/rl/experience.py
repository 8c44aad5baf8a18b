"""The buffer between rollout and training: fixed rows of equal length, filled in order, trained on as a whole.

Letters: N agents, S segments (rows), T columns (the horizon), K = T + 1, M segments of a minibatch,
L LSTM layers, H hidden size, O observation.

Row ``j·N + i`` is the j-th segment of agent i in this rollout, so a row never mixes two agents and no row is
written twice. Column t holds observation t, the action, log-probability and value computed from it, and the
reward and end flags that arrived with it, which belong to action t - 1. Column T of ``rewards`` and ``dones``
closes the segment: what the last action brought, together with ``last_values``, the value of what came after.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor

from metta_ray.agent.policy_state import PolicyState
from metta_ray.agent.token_encoder import used_tokens
from metta_ray.agent.token_lookup import PADDING
from metta_ray.common.errors import ConfigError, UsageError
from metta_ray.envs.env_spec import TokenSpace
from metta_ray.rl.arrays import Buffer, Numbers, on_host
from metta_ray.rl.random_streams import MINIBATCHES, random_stream, stream_seed
from metta_ray.rl.rollout_state import RolloutState, action_dtype

Minibatch = dict[str, Tensor]

# Observation tokens are stored in this width and its multiples; what is beyond the longest list is padding.
TOKEN_BLOCK = 16


class Origin(NamedTuple):
    """Whose rows a block is. agents: tells groups of agents apart. continues: the block goes on where the one of the
    same agents that was seen before it ended."""

    agents: int = 0
    continues: bool = True


class Experience:
    """Stores one batch of agent steps and hands it out as minibatches.

    total_agents: N, over all environments. batch_size, minibatch_size: agent steps. max_minibatch_size: what
    fits into memory at once; a larger ``minibatch_size`` is accumulated over several. agents_per_batch: rows
    of one ``store`` (information only; any slices may be stored as long as their agents advance together).
    hidden_size, num_lstm_layers: of the policy; 0 layers for a policy without recurrence. cpu_offload keeps
    observations in pinned host memory. reward_centering_rate: each agent's running mean reward is subtracted
    from what is learned from (Naik et al. 2024), at this rate; None switches it off.

    Raises ConfigError for sizes that do not fit together.
    """

    def __init__(
        self,
        total_agents: int,
        batch_size: int,
        bptt_horizon: int,
        minibatch_size: int,
        max_minibatch_size: int,
        obs_space: gymnasium.Space[Any],
        atn_space: gymnasium.Space[Any],
        device: torch.device | str,
        hidden_size: int,
        cpu_offload: bool = False,
        num_lstm_layers: int = 2,
        agents_per_batch: int | None = None,
        *,
        reward_centering_rate: float | None = None,
    ):
        segments = _check_sizes(total_agents, batch_size, bptt_horizon, minibatch_size, max_minibatch_size)
        self.total_agents = total_agents
        self.segments = segments
        self.bptt_horizon = bptt_horizon
        self.agents_per_batch = agents_per_batch or total_agents
        self.device = torch.device(device)
        self.minibatch_segments = min(minibatch_size, max_minibatch_size) // bptt_horizon
        self.num_minibatches = segments // self.minibatch_segments
        self.accumulate_minibatches = max(1, minibatch_size // max_minibatch_size)
        self._segments_per_agent = segments // total_agents
        self._steps_per_agent = self._segments_per_agent * bptt_horizon

        S, T, K = segments, bptt_horizon, bptt_horizon + 1
        self._obs_device = torch.device("cpu") if cpu_offload else self.device
        self._pin_obs = cpu_offload and self.device.type == "cuda"
        self._stores_tokens = isinstance(obs_space, TokenSpace)
        self.obs = self._allocate_obs(obs_space)
        self.actions = torch.zeros((S, T, *(atn_space.shape or ())), dtype=action_dtype(atn_space), device=device)
        self.values = torch.zeros(S, T, device=device)
        self.logprobs = torch.zeros(S, T, device=device)
        self.ratio = torch.ones(S, T, device=device)
        self.proximal_logprobs: Tensor | None = None
        self.last_values = torch.zeros(S, device=device)
        self._rewards = torch.zeros(S, K, device=device)
        self._dones = torch.zeros(S, K, device=device)
        self._truncateds = torch.zeros(S, K, device=device)
        self._masks = torch.zeros(S, K, dtype=torch.bool, device=device)
        self.truncation_values = torch.zeros(S, K, device=device)
        self._first_last_actions = torch.zeros_like(self.actions[:, 0])
        self._first_lstm_h = torch.zeros(S, num_lstm_layers, hidden_size, device=device)
        self._first_lstm_c = torch.zeros_like(self._first_lstm_h)

        self.rollout_state = RolloutState(
            total_agents, atn_space, hidden_size=hidden_size, num_lstm_layers=num_lstm_layers, device=device
        )
        self._reward_centering_rate = reward_centering_rate
        self._mean_reward = torch.zeros(total_agents, device=device)
        self._centered_rewards = torch.zeros_like(self._rewards) if reward_centering_rate else self._rewards
        self._written = _Written.of(self)

        # Cursors live on the host: reading them from a device would stall it at every step.
        self._steps = np.zeros(total_agents, np.int64)
        self._num_stored = 0  # sum of the above
        self._closed = np.zeros(total_agents, bool)
        self._order = torch.arange(S, device=device)
        self._seed = torch.initial_seed()
        self._generator = random_stream(MINIBATCHES, device)
        self.rollout_id = 0
        self.origins = [Origin()] * self._segments_per_agent

    # Filling

    @property
    def ready_for_training(self) -> bool:
        """True when every row is full."""
        return self._num_stored == self.total_agents * self._steps_per_agent

    @property
    def is_empty(self) -> bool:
        """True until something is stored in this rollout."""
        return self._num_stored == 0

    def is_full(self, env_id: slice) -> bool:
        """True when the rows of these agents are full for this rollout."""
        return bool((self._steps[env_id] == self._steps_per_agent).all())

    def is_closed(self, env_id: slice) -> bool:
        """True when, beyond that, it is known what their last actions brought."""
        return bool(self._closed[env_id].all())

    def reset_for_rollout(self) -> None:
        """Starts a new batch. The recurrent state of the agents is kept."""
        self._steps[:] = 0
        self._num_stored = 0
        self._closed[:] = False
        self._masks[:, -1] = False
        self.ratio.fill_(1.0)
        self.rollout_id += 1

    def store(
        self,
        obs: Tensor,
        actions: Tensor,
        logprobs: Tensor,
        rewards: Numbers,
        dones: Numbers,
        truncations: Numbers,
        values: Tensor,
        env_id: slice,
        mask: Numbers,
        lstm_state: dict[str, Tensor] | PolicyState | None = None,
        *,
        truncation_values: Tensor | None = None,
    ) -> int:
        """Appends one step of the agents ``env_id``; returns how many of them ``mask`` lets count. What environments
        give may come as arrays.

        dones: ``(n,)``, the episode ended, by its task or by a limit; truncations: it ended by a limit.
        truncation_values: value of the true final observation where truncated, else 0; None: 0 everywhere.
        lstm_state: recurrent state after this step (``lstm_h``, ``lstm_c`` of shape ``(L, n, H)``).
        """
        segment, column = divmod(self._steps_of(env_id), self.bptt_horizon)
        rows = self._rows(env_id, segment)
        if column == 0 and segment > 0:
            before = self._rows(env_id, segment - 1)
            self._close(before, rewards, dones, truncations, mask, values, truncation_values)
        if column == 0:
            self._keep_initial_state(rows, env_id)

        self._store_obs(rows, column, obs)
        written, place = self._written, (rows, column)
        written.actions.put(place, actions)
        written.logprobs.put(place, logprobs)
        written.values.put(place, values.flatten())
        self._store_outcome(rows, column, rewards, dones, truncations, mask, truncation_values)
        self._center_rewards(segment, column, env_id)
        self._keep_rollout_state(env_id, lstm_state, actions)
        self._steps[env_id] += 1
        self._num_stored += env_id.stop - env_id.start
        return int(np.count_nonzero(on_host(mask)))

    def close(
        self,
        rewards: Numbers,
        dones: Numbers,
        truncations: Numbers,
        values: Tensor,
        env_id: slice,
        mask: Numbers,
        *,
        truncation_values: Tensor | None = None,
    ) -> None:
        """What the last actions of full rows brought, and the value of the observation after them.

        Without it the last column of a row cannot be learned from and is masked.
        """
        if not self.is_full(env_id):
            raise UsageError(f"agents {env_id.start}:{env_id.stop} still have room; store their steps first")
        rows = self._rows(env_id, self._segments_per_agent - 1)
        self._close(rows, rewards, dones, truncations, mask, values, truncation_values)
        # These rewards arrive a second time with the first step of the next rollout and move the mean there.
        self._centered_rewards[rows, -1] = self._rewards[rows, -1] - self._centering_offset(env_id)
        self._closed[env_id] = True

    # Training

    @property
    def rewards(self) -> Tensor:
        """float32 ``(S, T)``; column t arrived with observation t."""
        return self._rewards[:, :-1]

    @property
    def dones(self) -> Tensor:
        """float32 ``(S, T)``; 1 where observation t is the first of an episode."""
        return self._dones[:, :-1]

    @property
    def truncateds(self) -> Tensor:
        """float32 ``(S, T)``; 1 where the episode before observation t was cut by a limit."""
        return self._truncateds[:, :-1]

    @property
    def mask(self) -> Tensor:
        """bool ``(S, T)``: actions whose outcome is known and counts."""
        return self._masks[:, 1:]

    def transitions(self) -> dict[str, Tensor]:
        """Arguments of ``compute_advantage`` that cover all T actions of a row, the last one included."""
        return {
            "values": self.values,
            "rewards": self._centered_rewards,
            "dones": self._dones,
            "last_values": self.last_values,
            "truncation_values": self.truncation_values,
        }

    def begin_update(self, epoch: int) -> None:
        """From here on minibatches are drawn from a stream that ``epoch`` alone decides: an update that is
        repeated, in this process or another, meets the same minibatches."""
        self._generator.manual_seed(stream_seed(self._seed, MINIBATCHES, epoch))

    def sample_minibatch(
        self,
        advantages: Tensor,
        prio_alpha: float,
        prio_beta: float,
        minibatch_idx: int,
        total_minibatches: int,
    ) -> Minibatch:
        """Rows for one gradient step; all tensors have M rows.

        α = 0: the ``minibatch_idx``-th part of a permutation drawn at index 0, so that an update epoch uses
        every row once. α > 0: M distinct rows drawn with P_i ∝ (Σ_t |A_it|)^α + 1e-6, and importance weights
        ``prio_weights`` = (S · P_i)^-β (Schaul et al. 2016, with segments in place of transitions).
        """
        del total_minibatches
        if prio_alpha == 0:
            if minibatch_idx == 0:
                self._order = torch.randperm(self.segments, generator=self._generator, device=self.device)
            start = minibatch_idx * self.minibatch_segments % self.segments
            indices = self._order[start : start + self.minibatch_segments]
            prio_weights = torch.ones(len(indices), 1, device=self.device)
        else:
            probabilities = segment_probabilities(advantages, prio_alpha)
            indices = torch.multinomial(probabilities, self.minibatch_segments, generator=self._generator)
            prio_weights = (self.segments * probabilities[indices, None]) ** -prio_beta
        return self.rows(indices, advantages) | {"prio_weights": prio_weights}

    def update_values(self, indices: Tensor, values: Tensor) -> None:
        """Overwrites stored values of rows. The losses use what is stored: values of the rollout, or, for data of an
        older policy, those that the present one gives before it is updated."""
        self.values[indices] = values.detach().view(len(indices), self.bptt_horizon)

    def update_ratio(self, indices: Tensor, ratio: Tensor) -> None:
        """Remembers the latest importance ratio of rows."""
        self.ratio.index_copy_(0, indices, ratio.detach().view(len(indices), self.bptt_horizon))

    def reset_importance_sampling_ratios(self) -> None:
        self.ratio.fill_(1.0)

    def stats(self) -> dict[str, float]:
        """Means over the buffer, for monitoring."""
        actions = self.actions.float()
        return {
            "rewards": self.rewards.mean().item(),
            "values": self.values.mean().item(),
            "logprobs": self.logprobs.mean().item(),
            "dones": self.dones.mean().item(),
            "truncateds": self.truncateds.mean().item(),
            "ratio": self.ratio.mean().item(),
            "actions_mean": actions.mean().item(),
            "actions_std": actions.std().item(),
            "masked": 1.0 - self.mask.float().mean().item(),
        }

    def state_dict(self) -> dict[str, Any]:
        """What outlives a batch: agents' recurrent state, mean rewards, root of chance. Valid between two rollouts."""
        return {
            "rollout_state": self.rollout_state.state_dict(),
            "mean_reward": self._mean_reward.cpu().numpy(),
            "seed": self._seed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rollout_state.load_state_dict(state["rollout_state"])
        self._mean_reward.copy_(torch.from_numpy(state["mean_reward"]))
        self._seed = int(state["seed"])

    def fragment_arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """Everything that ``add_fragment`` of another Experience needs, as arrays on the host. Call when all rows are
        closed; they are overwritten by the next rollout. Tokens are as many as the longest list of this rollout has."""
        arrays = {name: tensor.cpu().numpy() for name, tensor in self._fragment_tensors().items()}
        if self._stores_tokens:
            arrays["obs"] = arrays["obs"][:, :, : used_tokens(self.obs.flatten(0, 1))]
        return arrays

    def add_fragment(
        self, first_row: int, arrays: Mapping[str, np.ndarray[Any, Any]], origin: Origin | None = None
    ) -> None:
        """Copies the rows that another Experience collected to ``first_row …``, of as many agents as this one has."""
        self.origins[first_row // self.total_agents] = origin or Origin()
        obs = arrays["obs"]
        rows = slice(first_row, first_row + len(obs))
        if self._stores_tokens and obs.shape[2] > self.obs.shape[2]:
            self._widen_obs(obs.shape[2])
        if self._stores_tokens and obs.shape[2] < self.obs.shape[2]:
            self.obs[rows, :, obs.shape[2] :] = PADDING
        for name, tensor in self._fragment_tensors().items():
            target = tensor[rows]
            _copy(target[:, :, : obs.shape[2]] if name == "obs" and self._stores_tokens else target, arrays[name])

    def begin_batch(self) -> None:
        """Before the first ``add_fragment`` of a batch."""
        self.ratio.fill_(1.0)
        self.proximal_logprobs = None
        self.rollout_id += 1

    def agent_rows(self) -> list[Tensor]:
        """Row indices ``(N,)`` of all agents' first segments, then of their second ones, and so on; ``origins`` says
        whose they are."""
        rows = torch.arange(self.segments, device=self.device).view(-1, self.total_agents)
        return list(rows.unbind())

    def inputs(self, indices: Tensor) -> Minibatch:
        """What a policy reads of these rows: obs, actions, rewards, dones, last_actions."""
        actions = self.actions.index_select(0, indices)
        first = self._first_last_actions.index_select(0, indices).unsqueeze(1)
        return {
            "obs": self.obs.index_select(0, indices.to(self._obs_device)).to(self.device, non_blocking=True),
            "actions": actions,
            "rewards": self.rewards.index_select(0, indices),
            "dones": self.dones.index_select(0, indices),
            "last_actions": torch.cat([first, actions[:, :-1]], dim=1),
        }

    # Details

    def _fragment_tensors(self) -> dict[str, Tensor]:
        tensors = {
            "obs": self.obs,
            "actions": self.actions,
            "values": self.values,
            "logprobs": self.logprobs,
            "last_values": self.last_values,
            "rewards": self._rewards,
            "dones": self._dones,
            "truncateds": self._truncateds,
            "masks": self._masks,
            "truncation_values": self.truncation_values,
            "first_last_actions": self._first_last_actions,
            "first_lstm_h": self._first_lstm_h,
            "first_lstm_c": self._first_lstm_c,
        }
        if self._reward_centering_rate:
            tensors["centered_rewards"] = self._centered_rewards
        return tensors

    def _allocate_obs(self, space: gymnasium.Space[Any]) -> Tensor:
        shape = tuple(space.shape or ())
        if self._stores_tokens:
            shape = (min(TOKEN_BLOCK, shape[0]), *shape[1:])
        dtype = torch.from_numpy(np.zeros(0, space.dtype)).dtype
        obs = torch.zeros((self.segments, self.bptt_horizon, *shape), dtype=dtype, device=self._obs_device)
        return obs.pin_memory() if self._pin_obs else obs

    def _store_obs(self, rows: slice, column: int, obs: Tensor) -> None:
        if not self._stores_tokens:
            self._written.obs.put((rows, column), obs)
            return
        if obs.shape[1] > self.obs.shape[2] and (used := used_tokens(obs)) > self.obs.shape[2]:
            self._widen_obs(min(math.ceil(used / TOKEN_BLOCK) * TOKEN_BLOCK, max(used, obs.shape[1])))
        width = min(self.obs.shape[2], obs.shape[1])
        self._written.obs.put((rows, column, slice(width)), obs[:, :width])
        self._written.obs.put((rows, column, slice(width, None)), PADDING)

    def _widen_obs(self, width: int) -> None:
        S, T, narrow, _ = self.obs.shape
        wide = torch.full((S, T, width, 3), PADDING, dtype=self.obs.dtype, device=self._obs_device)
        wide[:, :, :narrow] = self.obs
        self.obs = wide.pin_memory() if self._pin_obs else wide
        self._written.obs = Buffer(self.obs)

    def _rows(self, env_id: slice, segment: int) -> slice:
        first = segment * self.total_agents
        return slice(first + env_id.start, first + env_id.stop)

    def _steps_of(self, env_id: slice) -> int:
        """Steps that each of these agents has stored. UsageError if they differ or there is no room for one more."""
        stored = self._steps[env_id]
        steps = int(stored[0])
        if (stored != steps).any():
            raise UsageError(
                f"agents {env_id.start}:{env_id.stop} have stored different numbers of steps; "
                "store the same slices of agents at every step"
            )
        if steps == self._steps_per_agent:
            raise UsageError(
                f"the rows of agents {env_id.start}:{env_id.stop} are full; train, then call reset_for_rollout()"
            )
        return steps

    def _keep_initial_state(self, rows: slice, env_id: slice) -> None:
        state = self.rollout_state
        self._first_lstm_h[rows] = state.lstm_h[:, env_id].transpose(0, 1)
        self._first_lstm_c[rows] = state.lstm_c[:, env_id].transpose(0, 1)
        self._first_last_actions[rows] = state.last_actions[env_id]

    def _keep_rollout_state(
        self, env_id: slice, lstm_state: dict[str, Tensor] | PolicyState | None, actions: Tensor
    ) -> None:
        if isinstance(lstm_state, dict):
            lstm_state = PolicyState(lstm_h=lstm_state["lstm_h"], lstm_c=lstm_state["lstm_c"])
        if lstm_state is None and self.rollout_state.is_recurrent:
            raise UsageError("this policy is recurrent: pass lstm_state, its state after the step")
        self.rollout_state.update(env_id, lstm_state or PolicyState(), actions)

    def _store_outcome(
        self,
        rows: slice,
        column: int,
        rewards: Numbers,
        dones: Numbers,
        truncations: Numbers,
        mask: Numbers,
        truncation_values: Tensor | None,
    ) -> None:
        written, place = self._written, (rows, column)
        written.rewards.put(place, rewards)
        written.dones.put(place, dones)
        written.truncateds.put(place, truncations)
        written.masks.put(place, mask)
        written.truncation_values.put(place, 0.0 if truncation_values is None else truncation_values)

    def _close(
        self,
        rows: slice,
        rewards: Numbers,
        dones: Numbers,
        truncations: Numbers,
        mask: Numbers,
        values: Tensor,
        truncation_values: Tensor | None,
    ) -> None:
        self._store_outcome(rows, self.bptt_horizon, rewards, dones, truncations, mask, truncation_values)
        self.last_values[rows] = values.flatten()

    def _centering_offset(self, env_id: slice) -> Tensor | float:
        return self._mean_reward[env_id] if self._reward_centering_rate else 0.0

    def _center_rewards(self, segment: int, column: int, env_id: slice) -> None:
        if not self._reward_centering_rate:
            return
        rows = self._rows(env_id, segment)
        rewards = self._rewards[rows, column]
        centered = rewards - self._mean_reward[env_id]
        self._centered_rewards[rows, column] = centered
        if column == 0 and segment > 0:
            self._centered_rewards[self._rows(env_id, segment - 1), -1] = centered
        self._mean_reward[env_id] += self._reward_centering_rate * centered

    def rows(self, indices: Tensor, advantages: Tensor) -> Minibatch:
        """All that is stored of these rows, as a minibatch."""

        def chosen(tensor: Tensor) -> Tensor:
            return tensor.index_select(0, indices)  # several times faster than indexing

        values, advantages, logprobs = chosen(self.values), chosen(advantages), chosen(self.logprobs)
        proximal = logprobs if self.proximal_logprobs is None else chosen(self.proximal_logprobs)
        return self.inputs(indices) | {
            "logprobs": logprobs,
            "proximal_logprobs": proximal,
            "values": values,
            "advantages": advantages,
            "returns": advantages + values,
            "indices": indices,
            "ratio": chosen(self.ratio),
            "mask": chosen(self.mask),
            "lstm_h": chosen(self._first_lstm_h).transpose(0, 1).contiguous(),
            "lstm_c": chosen(self._first_lstm_c).transpose(0, 1).contiguous(),
            "next_rewards": chosen(self._centered_rewards),
            "next_dones": chosen(self._dones),
            "last_values": chosen(self.last_values),
            "truncation_values": chosen(self.truncation_values),
        }


@dataclass
class _Written:
    """What ``store`` writes to."""

    obs: Buffer
    actions: Buffer
    logprobs: Buffer
    values: Buffer
    rewards: Buffer
    dones: Buffer
    truncateds: Buffer
    masks: Buffer
    truncation_values: Buffer

    @classmethod
    def of(cls, experience: Experience) -> _Written:
        tensors = experience._fragment_tensors()
        return cls(**{one.name: Buffer(tensors[one.name]) for one in fields(cls)})


def _copy(target: Tensor, array: np.ndarray[Any, Any]) -> None:
    """Without a tensor over the array's memory: that may be read-only, which torch knows not to respect."""
    if target.device.type == "cpu":
        np.copyto(target.numpy(), array)
    else:
        target.copy_(torch.from_numpy(array.copy()))


def segment_probabilities(advantages: Tensor, alpha: float) -> Tensor:
    """P_i = (w_i + 1e-6) / Σ_j (w_j + 1e-6) with w_i = (Σ_t |A_it|)^α, not-finite weights counting as 0: ``(S,)``."""
    weights = advantages.abs().sum(dim=1) ** alpha
    weights = torch.nan_to_num(weights, nan=0.0, posinf=0.0, neginf=0.0) + 1e-6
    return weights / weights.sum()


def _check_sizes(
    total_agents: int, batch_size: int, bptt_horizon: int, minibatch_size: int, max_minibatch_size: int
) -> int:
    """Number of segments. Raises ConfigError naming both values and the nearest that fit."""
    rollout = total_agents * bptt_horizon
    if batch_size < rollout:
        raise ConfigError(
            f"batch_size={batch_size} is too small for {total_agents} agents: at least total_agents × bptt_horizon "
            f"= {total_agents} × {bptt_horizon} = {rollout}, or fewer environments"
        )
    if batch_size % rollout:
        lower = batch_size // rollout * rollout
        raise ConfigError(
            f"batch_size={batch_size} is not a multiple of total_agents × bptt_horizon = {total_agents} × "
            f"{bptt_horizon} = {rollout}; nearest: {lower} or {lower + rollout}"
        )
    segments = batch_size // bptt_horizon
    for name, size in (("minibatch_size", minibatch_size), ("max_minibatch_size", max_minibatch_size)):
        if size < bptt_horizon or size % bptt_horizon:
            lower = max(1, size // bptt_horizon) * bptt_horizon
            raise ConfigError(
                f"{name}={size} is not a multiple of bptt_horizon={bptt_horizon}; nearest: {lower} "
                f"or {lower + bptt_horizon}"
            )
    per_step = min(minibatch_size, max_minibatch_size) // bptt_horizon
    if segments % per_step:
        fitting = [d * bptt_horizon for d in range(1, segments + 1) if segments % d == 0]
        nearest = sorted(fitting, key=lambda size: abs(size - per_step * bptt_horizon))[:2]
        raise ConfigError(
            f"batch_size={batch_size} cannot be cut into minibatches of {per_step * bptt_horizon} agent steps; "
            f"nearest minibatch_size: {' or '.join(map(str, sorted(nearest)))}"
        )
    if minibatch_size > max_minibatch_size and minibatch_size % max_minibatch_size:
        raise ConfigError(
            f"minibatch_size={minibatch_size} is not a multiple of max_minibatch_size={max_minibatch_size}"
        )
    return segments
