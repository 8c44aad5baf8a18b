"""Acting on the host with numpy: for few rows torch's calls take several times as long as the arithmetic. What
``MettaAgent.act`` does in torch gives the same numbers.

Letters: N rows, H width of what the heads read, A actions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from metta_ray.agent.distributions import draw_on_host

FloatArray = NDArray[np.float32]

# In one product; numpy would use threads of its own for a larger one.
MOST_MULTIPLICATIONS = 2**18


def _relu(x: FloatArray, out: FloatArray) -> FloatArray:
    return np.maximum(x, 0.0, out=out)


_ACTIVATIONS: dict[type[nn.Module], Callable[..., FloatArray]] = {nn.Tanh: np.tanh, nn.ReLU: _relu}


class HostStack:
    """Runs a ``LinearStack`` whose activations numpy has. Its arrays are the weights' own memory."""

    def __init__(self) -> None:
        self._arrays: dict[int, tuple[tuple[int, int], FloatArray, FloatArray]] = {}

    def __call__(self, stack: nn.Sequential, x: FloatArray) -> FloatArray:
        for index, layer in enumerate(stack._modules.values()):
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
            kept = self._arrays[index] = (places, weight.numpy(force=True).T, bias.numpy(force=True))
        return kept[1:]

    def __reduce__(self) -> tuple[Any, ...]:
        return HostStack, ()  # a copy of a policy has other weights


def most_rows(*stacks: nn.Sequential | None) -> int:
    """For how many rows at once these stacks are small; 0 where numpy lacks one of their layers."""
    layers = [layer for stack in stacks if stack is not None for layer in stack]
    if not all(type(layer) in (nn.Linear, *_ACTIVATIONS) for layer in layers):
        return 0
    return MOST_MULTIPLICATIONS // max(layer.weight.numel() for layer in layers if isinstance(layer, nn.Linear))


def choose(logits: FloatArray, generator: Generator | None) -> tuple[NDArray[np.int32], FloatArray]:
    """Actions and their log-probabilities ``(N,)`` from ``(N, A)``, which is written to."""
    logits -= np.maximum.reduce(logits, axis=1, keepdims=True)
    weights = np.exp(logits)  # of the actions: their probabilities but for a factor
    action = draw_on_host(weights, generator)
    return action, logits[np.arange(len(logits)), action] - np.log(np.add.reduce(weights, axis=1))


class HostActing:
    """What numpy computes of a policy that chooses one of A actions: small encoders of vectors, and heads."""

    def __init__(self) -> None:
        self._encoder, self._critic_encoder, self._actor, self._critic = (HostStack() for _ in range(4))

    def cores(
        self, obs: Tensor, encoder: nn.Sequential, critic_encoder: nn.Sequential | None
    ) -> tuple[FloatArray, FloatArray]:
        """What actor and critic read, ``(N, H)``, of float32 ``(N, …)``."""
        x = obs.numpy().reshape(len(obs), -1)
        core = self._encoder(encoder, x)
        return core, core if critic_encoder is None else self._critic_encoder(critic_encoder, x)

    def act(
        self,
        core: FloatArray,
        critic_core: FloatArray,
        actor: nn.Sequential,
        critic: nn.Sequential,
        generator: Generator | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """action int32 ``(N,)``, logprob ``(N,)``, value ``(N, 1)``."""
        action, logprob = choose(self._actor(actor, core), generator)
        value = self._critic(critic, critic_core)
        return torch.from_numpy(action), torch.from_numpy(logprob), torch.from_numpy(value)

    def value(self, critic_core: FloatArray, critic: nn.Sequential) -> FloatArray:
        """``(N,)``"""
        return self._critic(critic, critic_core)[:, 0]
