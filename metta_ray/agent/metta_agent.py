"""The policy: encoder → (last action, last reward) → LSTM → actor and critic.

Letters: B rows (agents, or segments), T steps, N = B·T rows with row b·T + t, L LSTM layers, H hidden size,
A actions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from metta_ray.agent import spec_json
from metta_ray.agent.action_head import ActionHead
from metta_ray.agent.agent_config import AgentConfig
from metta_ray.agent.held_weights import HeldWeights
from metta_ray.agent.host_acting import FloatArray, HostActing
from metta_ray.agent.lstm import SequenceLSTM
from metta_ray.agent.networks.layers import head
from metta_ray.agent.networks.registry import build_network
from metta_ray.agent.policy_state import PolicyState
from metta_ray.agent.precision import in_float32
from metta_ray.agent.vocabulary import token_remap
from metta_ray.agent.weights import ReferenceWeights, largest_weights, weight_matrices, weight_metrics
from metta_ray.common.errors import PolicyMismatchError
from metta_ray.envs.env_spec import EnvSpec, Feature, TokenVocabulary

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
ACTOR_GAIN = 0.01
CRITIC_GAIN = 1.0
ARCHITECTURE_FORMAT = 1


class MettaAgent(nn.Module):
    """A policy for the environment that ``spec`` describes, and, by names, for others like it.

    spec: the environment it was built for; its vocabulary gives every input and output its meaning for good.
    env_spec: the environment it currently reads (``adapt_to``).
    autocast_dtype: torch.bfloat16 runs everything before the heads in that precision, in rollout and training
        alike, so that probabilities compare like with like; None leaves it to the caller.
    lstm: None without recurrence. hidden_size: width of what actor and critic read. core_num_layers: LSTM
    layers.
    """

    token_pairs: Tensor

    def __init__(self, spec: EnvSpec, config: AgentConfig) -> None:
        super().__init__()
        self.spec = self.env_spec = spec
        self.config = config
        orthogonal = config.initialisation == "orthogonal"
        self.network = build_network(spec, config)
        self.critic_network = build_network(spec, config) if config.separate_critic else None
        self.action_head = ActionHead(spec)
        core_inputs = int(cast(Any, self.network).feature_size)
        if config.side_inputs:
            core_inputs += self.action_head.last_action_size + 1
        self.lstm: SequenceLSTM | None = None
        if config.lstm_hidden_size:
            self.lstm = SequenceLSTM(core_inputs, config.lstm_hidden_size, config.lstm_layers, orthogonal=orthogonal)
        self.hidden_size = config.lstm_hidden_size or core_inputs
        self.core_num_layers = config.lstm_layers if config.lstm_hidden_size else 0
        self.actor = head(
            self.hidden_size,
            config.actor_hidden_sizes,
            config.activation,
            self.action_head.num_outputs,
            ACTOR_GAIN if orthogonal else None,
        )
        self.critic = head(
            self.hidden_size,
            config.critic_hidden_sizes,
            config.critic_activation,
            1,
            CRITIC_GAIN if orthogonal else None,
        )
        self.reference_weights = ReferenceWeights()
        if config.l2_init:
            self.update_l2_init_weight_copy()
        if config.clip_range:
            bounds = [config.clip_range * largest for largest in largest_weights(weight_matrices(self)).values()]
            self.register_buffer("clip_bounds", torch.tensor(bounds))
        self.autocast_dtype: torch.dtype | None = None
        is_plain = spec.obs_dtype == np.float32 and self.lstm is None and not config.side_inputs
        self._host_acting = HostActing(cast(dict[str, nn.Module], self._modules), spec.obs_shape if is_plain else None)
        self._held, self._held_critic = HeldWeights(), HeldWeights()
        # What the environment's (feature id, value) pairs are called here; empty while they need no renaming.
        self.register_buffer("token_pairs", torch.empty(0, 2, dtype=torch.uint8), persistent=False)

    # -- Acting and evaluating ------------------------------------------------------------------------------

    def forward(self, obs: Tensor, state: PolicyState, action: Tensor | None = None) -> Outputs:
        """(action, logprob, entropy, value, log_probs) of one step per row, or of whole segments.

        obs ``(B, …)`` or ``(B, T, …)``; the side inputs of ``state`` have the same leading axes. ``state`` is
        updated to after the last step. Without ``action`` one is drawn for each of the N rows; a given
        action is evaluated and returned as it is. logprob, entropy ``(N,)``, value ``(N, 1)``, log_probs
        ``(N, A)`` (components of MultiDiscrete side by side; ``(N, 0)`` for Box), all float32.

        Raises PolicyMismatchError (a ValueError) for a wrong shape of observation or state.
        """
        core, critic_core, rows = self._cores(obs, state)
        # The heads stay in float32: PPO compares probabilities finer than bfloat16 can tell apart.
        with in_float32(obs.device):
            distribution = self.action_head.distribution(self.actor(core.float()))
            value: Tensor = self.critic(critic_core.float())
            chosen = distribution.sample(state.generator) if action is None else action
            evaluated = chosen.reshape(rows, *self.spec.action_shape)
            logprob, entropy = distribution.log_prob(evaluated), distribution.entropy()
        return chosen, logprob, entropy, value, distribution.log_probs

    def act(self, obs: Tensor, state: PolicyState) -> tuple[Tensor, Tensor, Tensor]:
        """(action, logprob, value) as ``forward`` draws them: what a rollout needs, and no gradient."""
        if self._host_acting.computes_heads(obs):
            return self._host_acting.act(*self._cores_on_host(obs, state), state.generator)
        core, critic_core, _ = self._cores(obs, state)
        with in_float32(obs.device):
            distribution = self.action_head.distribution(self.actor(core.float()))
            action = distribution.sample(state.generator)
            return action, distribution.log_prob(action), self.critic(critic_core.float())

    def value(self, obs: Tensor, state: PolicyState) -> Tensor:
        """Value ``(N,)`` float32 alone, as ``act`` gives it: draws no random number and leaves ``state`` as it was."""
        if self._host_acting.computes_heads(obs):
            return self._host_acting.value(self._cores_on_host(obs, replace(state))[1])
        _, critic_core, _ = self._cores(obs, replace(state))
        with in_float32(obs.device):
            value: Tensor = self.critic(critic_core.float())
        return value.squeeze(1)

    def _cores_on_host(self, obs: Tensor, state: PolicyState) -> tuple[FloatArray, FloatArray]:
        is_float32 = self.autocast_dtype is None and not torch.is_autocast_enabled("cpu")
        if is_float32 and self._host_acting.computes_encoders(obs):
            return self._host_acting.cores(obs)
        core, critic_core, _ = self._cores(obs, state)
        return core.float().numpy(), critic_core.float().numpy()

    def _cores(self, obs: Tensor, state: PolicyState) -> tuple[Tensor, Tensor, int]:
        """What actor and critic read, each ``(N, H)``, and N. Updates ``state``."""
        rows, steps, obs_N = self._flattened(obs)
        sides = self._side_inputs(state, rows * steps, obs.device) if self.config.side_inputs else None
        with self._precision(obs.device):
            core = self._core(_joined(self._encoded(self.network, self._held, obs_N), sides), state, rows, steps)
            critic_core = core
            if self.critic_network is not None:
                critic_core = _joined(self._encoded(self.critic_network, self._held_critic, obs_N), sides)
        return core, critic_core, rows * steps

    def _precision(self, device: torch.device) -> AbstractContextManager[Any]:
        if self.autocast_dtype is None:
            return nullcontext()  # whatever the caller has chosen
        return torch.autocast(device.type, dtype=self.autocast_dtype)

    def _encoded(self, network: nn.Module, held: HeldWeights, obs_N: Tensor) -> Tensor:
        """Features ``(N, F)``."""
        features: Tensor
        if self.autocast_dtype is None or torch.is_grad_enabled() or torch.compiler.is_compiling():
            features = network(obs_N)
        else:
            features = held.call(network, obs_N, self.autocast_dtype)
        return features

    def _flattened(self, obs: Tensor) -> tuple[int, int, Tensor]:
        """Rows, steps (1 without a time axis), and the observations ``(N, …)`` in the policy's own
        vocabulary.
        """
        shape, own = tuple(obs.shape), self.spec.obs_shape
        tail = shape[len(shape) - len(own) :]
        # The number of tokens may differ from the environment's: padding is trimmed where data is stored.
        fits = tail[1:] == own[1:] if self.spec.vocabulary is not None else tail == own
        leading = shape[: len(shape) - len(own)]
        if not fits or len(leading) not in (1, 2):
            raise PolicyMismatchError(
                f"observation of shape {shape} does not fit the policy, which was built for {own} per agent; "
                "expected one axis (rows) or two (rows, steps) before that"
            )
        rows, steps = leading[0], leading[1] if len(leading) == 2 else 1
        return rows, steps, self._in_own_vocabulary(obs.reshape(rows * steps, *tail))

    def _in_own_vocabulary(self, obs_N: Tensor) -> Tensor:
        if not len(self.token_pairs):
            return obs_N
        pair = obs_N[..., 1].long() * 256 + obs_N[..., 2]
        return torch.cat([obs_N[..., :1], self.token_pairs[pair]], dim=-1)

    def _side_inputs(self, state: PolicyState, rows: int, device: torch.device) -> Tensor:
        """Last action and last reward ``(N, E + 1)`` float32, zero at the first step of an episode."""
        if state.last_actions is None:
            actions = torch.zeros(rows, self.action_head.last_action_size, device=device)
        else:
            actions = self.action_head.last_action_vector(state.last_actions.reshape(rows, *self.spec.action_shape))
        if state.last_rewards is None:
            rewards = torch.zeros(rows, 1, device=device)
        else:
            rewards = state.last_rewards.reshape(rows, 1)
        sides = torch.cat([actions, rewards], dim=1)
        if state.resets is not None:
            sides.masked_fill_(state.resets.reshape(rows, 1), 0.0)
        return sides

    def _core(self, features_NF: Tensor, state: PolicyState, rows: int, steps: int) -> Tensor:
        """``(N, H)``; without recurrence the features themselves."""
        if self.lstm is None:
            return features_NF
        h, c = self._recurrent_state(state, rows, features_NF)
        resets = None if state.resets is None else state.resets.reshape(rows, steps)
        y_BTH: Tensor
        y_BTH, h, c = self.lstm(features_NF.view(rows, steps, -1), h, c, resets)
        state.lstm_h, state.lstm_c = h.detach(), c.detach()
        return y_BTH.reshape(rows * steps, -1)

    def _recurrent_state(self, state: PolicyState, rows: int, like: Tensor) -> tuple[Tensor, Tensor]:
        assert self.lstm is not None
        expected = (self.core_num_layers, rows, self.hidden_size)
        given = [self.lstm.zero_state(rows, like) if part is None else part for part in (state.lstm_h, state.lstm_c)]
        for part in given:
            if tuple(part.shape) != expected:
                raise PolicyMismatchError(
                    f"recurrent state of shape {tuple(part.shape)}; expected (layers, rows, hidden) = {expected}"
                )
        return given[0], given[1]

    # -- Other environments ---------------------------------------------------------------------------------

    def adapt_to(self, spec: EnvSpec) -> None:
        """From now on reads observations of ``spec`` and answers with its actions.

        Features, tags and actions are matched by name with those that the policy was built for: unknown
        features and tags are ignored, unknown actions get probability 0, missing ones are left out. Raises
        PolicyMismatchError where the observation, the window or the kind of action differs.
        """
        own, other = self.spec.vocabulary, spec.vocabulary
        if (own is None) != (other is None) or (own is None and self.spec.obs_shape != spec.obs_shape):
            raise PolicyMismatchError(
                f"the policy was built for observations {_observation_text(self.spec)} of {self.spec.name}, "
                f"but {spec.name} has {_observation_text(spec)}"
            )
        if own is not None and other is not None and (own.height, own.width) != (other.height, other.width):
            raise PolicyMismatchError(
                f"the policy was built for a window of {own.height}×{own.width} cells ({self.spec.name}), "
                f"but {spec.name} has {other.height}×{other.width}"
            )
        self.action_head.adapt(spec)
        if own is not None and other is not None:
            self._rename_tokens(other, spec.action_names)
        self.env_spec = spec

    def initialize_to_environment(
        self,
        features: Mapping[str, Mapping[str, Any] | Feature],
        action_names: Sequence[str],
        max_args: Sequence[int] | None = None,
        device: torch.device | str | None = None,
        is_training: bool | None = None,
    ) -> None:
        """``adapt_to`` for an environment given by its feature table ``{name: {"id": …}}`` and action names.

        max_args: largest argument of each action; where one is above 0, actions are flattened to
            ``name_argument``. Tags and window are taken to be the policy's own. is_training is accepted and
            unused.
        """
        del is_training
        if device is not None:
            self.to(device)
        names = _flat_action_names(action_names, max_args)
        if self.action_head.names and names:
            self.action_head.adapt_names(names)
        own = self.spec.vocabulary
        if own is not None:
            table = {
                name: feature if isinstance(feature, Feature) else _feature(feature)
                for name, feature in features.items()
            }
            self._rename_tokens(TokenVocabulary(table, own.tags, own.height, own.width), names)

    @property
    def original_feature_mapping(self) -> dict[str, int]:
        """Feature name → id in the environment that the policy was built for."""
        vocabulary = self.spec.vocabulary
        return {} if vocabulary is None else {name: feature.id for name, feature in vocabulary.features.items()}

    def _rename_tokens(self, vocabulary: TokenVocabulary, action_names: Sequence[str]) -> None:
        assert self.spec.vocabulary is not None
        pairs = token_remap(self.spec.vocabulary, self.spec.action_names, vocabulary, action_names)
        device = self.token_pairs.device
        self.token_pairs = (
            torch.empty(0, 2, dtype=torch.uint8, device=device) if pairs is None else torch.from_numpy(pairs).to(device)
        )

    # -- Storing --------------------------------------------------------------------------------------------

    def architecture(self) -> dict[str, Any]:
        """JSON values that, with the state dict, rebuild this policy: configuration and original
        environment.
        """
        return {
            "format": ARCHITECTURE_FORMAT,
            "config": self.config.model_dump(mode="json"),
            "spec": spec_json.to_json(self.spec),
        }

    @classmethod
    def from_architecture(cls, architecture: Mapping[str, Any]) -> MettaAgent:
        """A policy with fresh weights of the architecture that ``architecture()`` described."""
        if architecture.get("format") != ARCHITECTURE_FORMAT:
            raise PolicyMismatchError(
                f"architecture of format {architecture.get('format')!r}; this version reads {ARCHITECTURE_FORMAT}"
            )
        return cls(spec_json.from_json(architecture["spec"]), AgentConfig(**architecture["config"]))

    # -- Weights --------------------------------------------------------------------------------------------

    @property
    def total_params(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    @torch.no_grad()
    def clip_weights(self) -> None:
        """Clamps every weight matrix to ``clip_range`` times its largest initial weight; nothing if that is
        0.
        """
        if self.config.clip_range:
            for weight, bound in zip(weight_matrices(self).values(), self.get_buffer("clip_bounds"), strict=True):
                weight.clamp_(-bound, bound)

    def l2_init_loss(self) -> Tensor:
        """Σ ‖W − W_ref‖² over all weight matrices, with gradient. See ``AgentConfig.l2_init``."""
        if self.reference_weights.is_empty:
            self.update_l2_init_weight_copy()
        return self.reference_weights.squared_distance(weight_matrices(self))

    def update_l2_init_weight_copy(self, blend: float = 0.1) -> None:
        """``W_ref ← (1 − blend) · W_ref + blend · W``; the first call takes W."""
        self.reference_weights.copy_from(weight_matrices(self), blend)

    def compute_weight_metrics(self) -> dict[str, dict[str, float]]:
        """Statistics of every weight matrix, by name; see ``weights.weight_metrics``."""
        return weight_metrics(weight_matrices(self))


def _joined(features: Tensor, sides: Tensor | None) -> Tensor:
    return features if sides is None else torch.cat([features, sides.to(features.dtype)], dim=1)


def _observation_text(spec: EnvSpec) -> str:
    return f"{'tokens' if spec.vocabulary is not None else 'of shape'} {spec.obs_shape}"


def _feature(entry: Mapping[str, Any]) -> Feature:
    return Feature(int(entry["id"]), float(entry.get("normalization", 1.0)))


def _flat_action_names(names: Sequence[str], max_args: Sequence[int] | None) -> tuple[str, ...]:
    if max_args is None or not any(max_args):
        return tuple(names)
    return tuple(
        f"{name}_{argument}" for name, largest in zip(names, max_args, strict=True) for argument in range(largest + 1)
    )
