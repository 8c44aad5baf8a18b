"""Acting on the host with numpy: for few rows torch's calls take several times as long as the arithmetic. What
``MettaAgent.act`` does in torch gives the same numbers.

Letters: N rows, H width of what the heads read, A actions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from metta_ray.agent.action_head import ActionHead
from metta_ray.agent.distributions import draw_on_host
from metta_ray.agent.networks.layers import LinearStack, hooks_of
from metta_ray.agent.networks.mlp import VectorMlp

FloatArray = NDArray[np.float32]

# In one product; numpy would use threads of its own for a larger one.
MOST_MULTIPLICATIONS = 2**18


def _relu(x: FloatArray, out: FloatArray) -> FloatArray:
    return np.maximum(x, 0.0, out=out)


_ACTIVATIONS: dict[type, Callable[..., FloatArray]] = {nn.Tanh: np.tanh, nn.ReLU: _relu}


class HostStack:
    """Runs a ``LinearStack`` of plain linear layers and activations that numpy has. Its arrays are the weights' own
    memory.

    most_rows: for how many rows at once the stack is small; 0 where it has other layers, or begins with an activation,
        which would be computed in place of what it reads.
    """

    def __init__(self, stack: nn.Module) -> None:
        self.stack = stack
        layers = list(stack.children())
        self.hooks = [hooks for module in (stack, *layers) for hooks in hooks_of(module)]
        linear = [layer for layer in layers if type(layer) is nn.Linear and layer.bias is not None]
        others = [layer for layer in layers if layer not in linear]
        is_sequence = type(stack) in (LinearStack, nn.Sequential)  # and has no forward of its own
        begins_linear = is_sequence and bool(linear) and layers[0] is linear[0]
        is_possible = begins_linear and all(type(layer) in _ACTIVATIONS for layer in others)
        self.most_rows = MOST_MULTIPLICATIONS // max(one.weight.numel() for one in linear) if is_possible else 0
        self._arrays: dict[int, tuple[tuple[int, int], FloatArray, FloatArray]] = {}

    def __call__(self, x: FloatArray) -> FloatArray:
        for index, layer in enumerate(self.stack._modules.values()):
            activation = _ACTIVATIONS.get(type(layer))
            if activation is not None:
                activation(x, out=x)
                continue
            assert layer is not None
            weight, bias = self._weights(index, layer._parameters)
            x = x @ weight
            x += bias
        return x

    def _weights(self, index: int, holder: dict[str, Any]) -> tuple[FloatArray, FloatArray]:
        weight, bias = holder["weight"], holder["bias"]
        places = weight.data_ptr(), bias.data_ptr()
        kept = self._arrays.get(index)
        if kept is None or kept[0] != places:  # they have been moved or replaced
            # Of weights on a device this would be a copy, which grows old: an error there.
            kept = self._arrays[index] = (places, weight.detach().numpy().T, bias.detach().numpy())
        return kept[1:]


def choose(logits: FloatArray, generator: Generator | None) -> tuple[NDArray[np.int32], FloatArray]:
    """Actions and their log-probabilities ``(N,)`` from ``(N, A)``, which is written to."""
    logits -= np.maximum.reduce(logits, axis=1, keepdims=True)
    weights = np.exp(logits)  # of the actions: their probabilities but for a factor
    action = draw_on_host(weights, generator)
    return action, logits[np.arange(len(logits)), action] - np.log(np.add.reduce(weights, axis=1))


class HostActing:
    """What numpy computes of a policy that chooses one of A actions: heads, and encoders of float32 vectors.

    modules: the policy's own ``_modules``: network, critic_network where there is one, actor, critic, action_head.
    obs_shape: of what the encoders may compute; None: they may not.
    """

    def __init__(self, modules: dict[str, nn.Module], obs_shape: tuple[int, ...] | None) -> None:
        self._modules = modules
        self._obs_shape = obs_shape
        self._prepare()

    def _prepare(self) -> None:
        self._prepared_for = self._stacks()
        self._actor, self._critic, *self._encoders = [HostStack(stack) for stack, *_ in self._prepared_for]
        self._head_hooks = [*self._actor.hooks, *self._critic.hooks]
        is_discrete = cast(ActionHead, self._modules["action_head"]).kind == "Discrete"
        self._most_head_rows = min(self._actor.most_rows, self._critic.most_rows) if is_discrete else 0
        self._hooks = [hooks for encoder in self._encoders for hooks in encoder.hooks]
        self._hooks += [hooks for network in self._networks() for hooks in hooks_of(network)]
        self._most_rows = min((encoder.most_rows for encoder in self._encoders), default=0)

    def _networks(self) -> list[nn.Module]:
        """Those whose layers are all that they compute."""
        networks = [self._modules[name] for name in ("network", "critic_network") if name in self._modules]
        is_plain = self._obs_shape is not None and all(type(network) is VectorMlp for network in networks)
        return networks if is_plain else []

    def _stacks(self) -> list[list[Any]]:
        """Heads and encoders as they are now, each with its layers, which may be replaced, and their types: torch gives
        a layer that is parametrised another one."""
        stacks = [self._modules["actor"], self._modules["critic"]]
        stacks += [cast(nn.Module, network._modules["layers"]) for network in self._networks()]
        return [[stack, *stack._modules.values(), *map(type, stack._modules.values())] for stack in stacks]

    def computes_heads(self, obs: Tensor) -> bool:
        """Whether it does for these observations ``(N, …)`` of whatever kind."""
        if self._stacks() != self._prepared_for:
            self._prepare()
        is_eager = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        fits = obs.shape[0] <= self._most_head_rows and obs.is_cpu
        return (
            fits and is_eager and not any(self._head_hooks) and not cast(Any, self._modules["action_head"]).is_adapted
        )

    def computes_encoders(self, obs: Tensor) -> bool:
        """Whether it does beside the heads; in float32."""
        return obs.shape[0] <= self._most_rows and obs.shape[1:] == self._obs_shape and not any(self._hooks)

    def cores(self, obs: Tensor) -> tuple[FloatArray, FloatArray]:
        """What actor and critic read, ``(N, H)``, of float32 ``(N, …)``."""
        x = obs.numpy().reshape(len(obs), -1)
        cores = [encoder(x) for encoder in self._encoders]
        return cores[0], cores[-1]

    def act(
        self, core: FloatArray, critic_core: FloatArray, generator: Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """action int32 ``(N,)``, logprob ``(N,)``, value ``(N, 1)``."""
        action, logprob = choose(self._actor(core), generator)
        return torch.from_numpy(action), torch.from_numpy(logprob), torch.from_numpy(self._critic(critic_core))

    def value(self, critic_core: FloatArray) -> Tensor:
        """``(N,)``"""
        return torch.from_numpy(self._critic(critic_core)[:, 0])

    def __deepcopy__(self, memo: dict[int, Any]) -> HostActing:
        return HostActing(copy.deepcopy(self._modules, memo), self._obs_shape)  # a copy of a policy has other weights

    def __reduce__(self) -> tuple[Any, ...]:
        return HostActing, (self._modules, self._obs_shape)
