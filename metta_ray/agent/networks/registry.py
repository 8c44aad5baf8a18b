"""Networks by name. A user adds one in a file of their own:

    @register_network("mine")
    class MyNetwork(nn.Module):
        def __init__(self, spec: EnvSpec, config: AgentConfig): ...; self.feature_size = 64
        def forward(self, obs): ...   # (N, *obs_shape) -> (N, feature_size)

and asks for ``{"agent": {"architecture": "mine"}}``, or, without the decorator, ``"my_module:MyNetwork"``.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from typing import TypeVar

from torch import nn

from metta_ray.agent.agent_config import AgentConfig
from metta_ray.common.errors import ConfigError
from metta_ray.envs.env_spec import EnvSpec

NetworkClass = Callable[[EnvSpec, AgentConfig], nn.Module]
AnyNetwork = TypeVar("AnyNetwork", bound=NetworkClass)
_NETWORKS: dict[str, NetworkClass] = {}
_BUILT_IN_MODULES = ("metta_ray.agent.networks.cnn", "metta_ray.agent.networks.mlp")


def register_network(name: str) -> Callable[[AnyNetwork], AnyNetwork]:
    """Class decorator. A second class of the same name replaces the first (a module may be reloaded)."""

    def register(network: AnyNetwork) -> AnyNetwork:
        _NETWORKS[name] = network
        return network

    return register


def network_class(architecture: str) -> NetworkClass:
    """The class for a registered name or ``module:Class``. Raises ConfigError with the known names."""
    for module in _BUILT_IN_MODULES:
        importlib.import_module(module)
    if architecture in _NETWORKS:
        return _NETWORKS[architecture]
    module_name, colon, class_name = architecture.partition(":")
    if colon:
        return _imported(architecture, module_name, class_name)
    nearest = difflib.get_close_matches(architecture, _NETWORKS, n=1)
    hint = f"; did you mean {nearest[0]!r}" if nearest else ""
    raise ConfigError(
        f"architecture={architecture!r} is unknown{hint}; known: {', '.join(sorted(_NETWORKS))}, "
        "or module:Class of a network that can be imported (a registered one must be imported first)"
    )


def _imported(architecture: str, module_name: str, class_name: str) -> NetworkClass:
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"architecture={architecture!r}: cannot import {module_name!r} ({error})") from error
    try:
        network: NetworkClass = getattr(module, class_name)
    except AttributeError:
        raise ConfigError(f"architecture={architecture!r}: module {module_name!r} has no {class_name!r}") from None
    return network


def build_network(spec: EnvSpec, config: AgentConfig) -> nn.Module:
    """Builds the encoder and checks the one thing that the agent relies on."""
    network = network_class(config.architecture)(spec, config)
    if not isinstance(getattr(network, "feature_size", None), int):
        raise ConfigError(f"network {config.architecture!r} must set feature_size, the int width of its output")
    return network
