"""Pieces that several networks share: activations, initialisation, stacks of linear layers, sparse layers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metta_ray.agent.agent_config import Activation
from metta_ray.agent.networks.fused_relu import LinearRelu
from metta_ray.agent.token_encoder import SparseBox, sum_of_rows

M = TypeVar("M", bound=nn.Module)
HIDDEN_GAIN = math.sqrt(2)
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),  # its gradient needs the output alone; saves passes over wide maps
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
}


def initialise(layer: nn.Linear | nn.Conv2d, gain: float) -> None:
    """Orthogonal weights of this gain, biases 0."""
    nn.init.orthogonal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class LinearStack(nn.Sequential):
    """Linear layers and activations, one after the other. A small layer takes torch about as long to call as to
    compute, so a plain one is computed without the call; one that is hooked or parametrised is called."""

    def __init__(self, *layers: Any) -> None:
        super().__init__(*layers)
        self._fused = defaultdict[str, LinearRelu](LinearRelu)

    def forward(self, x: Tensor) -> Tensor:
        is_computed = False
        for (name, layer), (_, following) in pairwise([*self._modules.items(), ("", None)]):
            assert layer is not None
            if is_computed:  # together with the one before
                is_computed = False
            elif not is_plain(layer, nn.Linear):
                x = layer(x)
            elif is_computed := is_plain(following, nn.ReLU):
                x = self._fused[name](x, layer.weight, layer.bias)
            else:
                x = F.linear(x, layer.weight, layer.bias)
        return x


def is_plain(layer: nn.Module | None, kind: type[M]) -> TypeGuard[M]:
    """Whether the layer is of this very kind and would do nothing else if it were called."""
    return type(layer) is kind and not any(hooks_of(layer))


def hooks_of(module: nn.Module) -> tuple[dict[int, Any], ...]:
    """What runs when the module is called beside its own forward: the live collections, empty as a rule."""
    return module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks


def linear_stack(
    input_size: int, sizes: Sequence[int], activation: Activation, *, orthogonal: bool = True
) -> LinearStack:
    """Linear layers, each with the activation after it; with no sizes the identity."""
    layers: list[nn.Module] = []
    for size in sizes:
        layer = nn.Linear(input_size, size)
        if orthogonal:
            initialise(layer, HIDDEN_GAIN)
        layers += [layer, ACTIVATIONS[activation]()]
        input_size = size
    return LinearStack(*layers)


def head(
    input_size: int, hidden_sizes: Sequence[int], activation: Activation, outputs: int, gain: float | None
) -> LinearStack:
    """Hidden layers and a last linear one without activation; ``gain`` None leaves torch's initialisation."""
    stack = linear_stack(input_size, hidden_sizes, activation, orthogonal=gain is not None)
    last = nn.Linear(hidden_sizes[-1] if hidden_sizes else input_size, outputs)
    if gain is not None:
        initialise(last, gain)
    stack.append(last)
    return stack


class SparseLinear(nn.Module):
    """A linear layer on a sparse box and its globals: reads only the rows of filled places.

    weight ``(K + G, O)``: one row per place, then one per global.
    """

    def __init__(self, places: int, scalars: int, outputs: int, *, orthogonal: bool = True) -> None:
        super().__init__()
        self.places = places
        self.weight = nn.Parameter(torch.empty(places + scalars, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        if orthogonal:
            nn.init.orthogonal_(self.weight, HIDDEN_GAIN)
        else:
            nn.init.kaiming_uniform_(self.weight.data.t(), a=math.sqrt(5))

    def forward(self, box: SparseBox) -> Tensor:
        """``(N, O)``"""
        from_box = sum_of_rows(self.weight[: self.places], box)
        return from_box + torch.addmm(self.bias, box.scalars, self.weight[self.places :])

    def forward_dense(self, flat_box: Tensor, scalars: Tensor) -> Tensor:
        """The same from a dense ``(N, K)`` box."""
        return torch.addmm(self.bias, torch.cat([flat_box, scalars], dim=1), self.weight)
