"""Linear layers over vectors, over flattened images, or over the flat token box with its globals."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from metta_ray.agent.agent_config import AgentConfig
from metta_ray.agent.networks.layers import ACTIVATIONS, SparseLinear, linear_stack
from metta_ray.agent.networks.registry import register_network
from metta_ray.agent.token_encoder import TokenEncoder
from metta_ray.common.errors import ConfigError
from metta_ray.envs.env_spec import EnvSpec


def build_mlp(spec: EnvSpec, config: AgentConfig) -> nn.Module:
    if not config.hidden_sizes:
        raise ConfigError("hidden_sizes=() leaves the mlp without a layer; give at least one size, e.g. (64, 64)")
    return VectorMlp(spec, config) if spec.vocabulary is None else TokenMlp(spec, config)


register_network("mlp")(build_mlp)


class VectorMlp(nn.Module):
    """Integer observations (images) are divided by 255, floats enter as they are."""

    def __init__(self, spec: EnvSpec, config: AgentConfig) -> None:
        super().__init__()
        self.scale = 1 / 255 if spec.obs_dtype.kind in "ui" else 1.0
        self.layers = linear_stack(
            math.prod(spec.obs_shape),
            config.hidden_sizes,
            config.activation,
            orthogonal=config.initialisation == "orthogonal",
        )
        self.feature_size = config.hidden_sizes[-1]

    def forward(self, obs: Tensor) -> Tensor:
        vector = obs.flatten(1).float()
        features: Tensor = self.layers(vector if self.scale == 1.0 else vector * self.scale)
        return features


class TokenMlp(nn.Module):
    """The first layer reads only filled places of the box; ``gather_conv=False`` takes the dense box
    instead.
    """

    def __init__(self, spec: EnvSpec, config: AgentConfig) -> None:
        super().__init__()
        orthogonal = config.initialisation == "orthogonal"
        self.tokens = TokenEncoder(spec, last_action_token=config.last_action_token)
        self.is_sparse = config.gather_conv is not False
        first, *others = config.hidden_sizes
        self.first = SparseLinear(self.tokens.num_places, self.tokens.num_scalars, first, orthogonal=orthogonal)
        self.activation = ACTIVATIONS[config.activation]()
        self.layers = linear_stack(first, others, config.activation, orthogonal=orthogonal)
        self.feature_size = config.hidden_sizes[-1]

    def forward(self, obs: Tensor) -> Tensor:
        box = self.tokens(obs)
        if self.is_sparse:
            first = self.first(box)
        else:
            dense = self.tokens.dense_box(box).permute(0, 2, 3, 1)
            first = self.first.forward_dense(torch.flatten(dense, 1), box.scalars)
        features: Tensor = self.layers(self.activation(first))
        return features
