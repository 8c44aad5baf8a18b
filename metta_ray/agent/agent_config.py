"""What a policy network looks like: a typed configuration, with a preset for each built-in architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from metta_ray.common.errors import ConfigError
from metta_ray.common.util.typed_config import StrictModel, validated

Activation = Literal["relu", "tanh", "gelu", "silu", "elu"]
BUILT_IN = ("default", "fast", "light", "mlp")

PRESETS: dict[str, dict[str, Any]] = {
    "default": {
        "conv_channels": (32, 64),
        "conv_kernels": (3, 3),
        "conv_strides": (1, 1),
        "conv_paddings": (1, 1),
        "hidden_sizes": (512,),
        "lstm_hidden_size": 512,
    },
    "fast": {
        "conv_channels": (64, 64),
        "conv_kernels": (5, 3),
        "conv_strides": (3, 1),
        "conv_paddings": (0, 0),
        "hidden_sizes": (128, 128),
        "lstm_hidden_size": 128,
        "lstm_layers": 2,
        "actor_hidden_sizes": (512,),
        "critic_hidden_sizes": (1024,),
        "critic_activation": "tanh",
    },
    "light": {
        "conv_channels": (32,),
        "conv_kernels": (5,),
        "conv_strides": (3,),
        "conv_paddings": (0,),
        "hidden_sizes": (128,),
        "lstm_hidden_size": 128,
    },
    "mlp": {
        "hidden_sizes": (64, 64),
        "activation": "tanh",
        "lstm_hidden_size": 0,
        "side_inputs": False,
    },
}
USER_NETWORK_PRESET: dict[str, Any] = {"lstm_hidden_size": 128}


class AgentConfig(StrictModel):
    """Sizes of a policy. Fields that are not given come from the preset of ``architecture``."""

    model_config = ConfigDict(frozen=True)

    architecture: str = Field(
        default="default",
        description="default, fast or light (convolutions over tokens or images, then an LSTM), mlp, "
        "a registered network's name, or module:Class",
    )
    conv_channels: tuple[int, ...] = Field(default=(), description="output channels of each convolution")
    conv_kernels: tuple[int, ...] = Field(default=(), description="side of each square kernel, cells")
    conv_strides: tuple[int, ...] = Field(default=(), description="stride of each convolution, cells")
    conv_paddings: tuple[int, ...] = Field(
        default=(),
        description="zeros around each convolution's input; where kernels still do not cover it, more",
    )
    hidden_sizes: tuple[int, ...] = Field(default=(), description="linear layers of the encoder")
    activation: Activation = Field(default="relu", description="after each layer of the encoder and the actor")
    lstm_hidden_size: int = Field(default=0, ge=0, description="0: no recurrence")
    lstm_layers: int = Field(default=1, ge=1, description="ignored without recurrence")
    actor_hidden_sizes: tuple[int, ...] = Field(default=(), description="layers between core and logits")
    critic_hidden_sizes: tuple[int, ...] = Field(default=(), description="layers between core and value")
    critic_activation: Activation = Field(default="relu", description="after each hidden layer of the critic")
    separate_critic: bool = Field(
        default=False,
        description="an encoder of its own for the critic, so that large values cannot spoil the actor's "
        "features; only without recurrence, where it is the default of mlp",
    )
    side_inputs: bool = Field(default=True, description="last action and last reward join the encoder's features")
    last_action_token: bool = Field(
        default=True, description="read the engine's last_action token (0 where the action failed), one-hot"
    )
    gather_conv: bool | None = Field(
        default=None,
        description="first layer as a sum of weight rows over filled tokens instead of over a dense box; "
        "same numbers. None: wherever it is the faster way",
    )
    initialisation: Literal["orthogonal", "torch"] = Field(
        default="orthogonal",
        description="orthogonal (hidden √2, actor 0.01, critic 1) or torch's own defaults",
    )
    clip_range: float = Field(
        default=0.0,
        ge=0,
        description="weights are clipped to this many times the largest initial one; 0: off",
    )
    l2_init: bool = Field(
        default=False,
        description="keep the initial weights from the start; else the first l2_init_loss() copies them",
    )
    l2_init_weight_update_interval: int = Field(
        default=0,
        ge=0,
        description="epochs between moves of the reference weights towards the current ones; 0: never",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="free settings of a user's own network")

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        given = dict(data)
        architecture = given.get("architecture", "default")
        filled = {**PRESETS.get(str(architecture), USER_NETWORK_PRESET), **given}
        if architecture == "mlp" and "separate_critic" not in given:
            filled["separate_critic"] = not filled["lstm_hidden_size"]
        return filled

    @model_validator(mode="after")
    def _sizes_agree(self) -> AgentConfig:
        lengths = {
            name: len(getattr(self, name))
            for name in ("conv_channels", "conv_kernels", "conv_strides", "conv_paddings")
        }
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            raise ValueError(f"every convolution needs channels, kernel, stride and padding, but {listed}")
        if self.separate_critic and self.lstm_hidden_size:
            raise ValueError(
                f"separate_critic=True with lstm_hidden_size={self.lstm_hidden_size}: the recurrent state "
                "is shared by actor and critic; set separate_critic=False (and scale values) or "
                "lstm_hidden_size=0"
            )
        for name in ("conv_channels", "conv_kernels", "conv_strides", "hidden_sizes", "actor_hidden_sizes"):
            _require_at_least(1, name, getattr(self, name))
        _require_at_least(1, "critic_hidden_sizes", self.critic_hidden_sizes)
        _require_at_least(0, "conv_paddings", self.conv_paddings)
        return self


def _require_at_least(least: int, name: str, values: tuple[int, ...]) -> None:
    if min(values, default=least) < least:
        raise ValueError(f"{name}={list(values)}: each must be at least {least}")


def default_config(architecture: str) -> AgentConfig:
    """The preset of a built-in architecture; for other names the settings that a user's network starts
    from.
    """
    return AgentConfig(architecture=architecture)


def agent_config_from(config: Any, *, default_architecture: str = "default") -> AgentConfig:
    """An AgentConfig from what users pass: None, AgentConfig, a dict or omegaconf DictConfig, either bare or
    under the key ``agent``. Without ``architecture`` the default one is meant.

    Raises ConfigError where it is none of these, or for wrong fields.
    """
    if isinstance(config, AgentConfig):
        return config
    fields = {} if config is None else _plain_dict(config)
    if "agent" in fields:
        inner = fields["agent"]
        if isinstance(inner, AgentConfig):
            return inner
        fields = _plain_dict(inner)
    return validated(AgentConfig, {"architecture": default_architecture, **fields})


def _plain_dict(config: Any) -> dict[str, Any]:
    if type(config).__module__.partition(".")[0] == "omegaconf":
        from omegaconf import OmegaConf

        config = OmegaConf.to_container(config, resolve=True)
    if isinstance(config, BaseModel):
        config = config.model_dump(exclude_unset=True)
    if not isinstance(config, Mapping):
        raise ConfigError(
            f"agent config {config!r} is a {type(config).__name__}; "
            "expected AgentConfig, a dict or an omegaconf DictConfig"
        )
    return {str(key): value for key, value in config.items()}
