"""A network that acts with held weights is the network itself, with nothing left behind."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from metta_ray.agent.held_weights import HeldWeights


class Network(nn.Module):
    """One weight under two names, a missing bias, and what it counts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError("third call")
        self.seen = self.first.weight
        return self.second(torch.relu(self.first(x.to(self.first.weight.dtype))))


def test_it_computes_in_the_low_precision_and_follows_the_weights():
    network, held, x = Network(), HeldWeights(), torch.randn(2, 3)
    low = copy.deepcopy(network).to(torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(held.call(network, x, torch.bfloat16), low(x))
        first = network.seen
        held.call(network, x, torch.bfloat16)
        assert network.seen is first, "cast once per version"


@torch.no_grad()
def test_it_follows_the_weights_and_the_modules():
    network, held, x = Network(), HeldWeights(), torch.randn(2, 3)
    network.calls = 10
    held.call(network, x, torch.bfloat16)
    network.first.weight += 1.0
    assert torch.equal(held.call(network, x, torch.bfloat16), copy.deepcopy(network).to(torch.bfloat16)(x))
    network.second.bias = nn.Parameter(torch.ones(3))
    network.first.bias = nn.Parameter(torch.ones(3))  # it had none
    assert torch.equal(held.call(network, x, torch.bfloat16), copy.deepcopy(network).to(torch.bfloat16)(x))


@torch.no_grad()
def test_the_networks_own_weights_are_back_even_after_a_failure():
    network, held, x = Network(), HeldWeights(), torch.randn(2, 3)
    own = dict(network.named_parameters())
    for _ in range(2):
        held.call(network, x, torch.bfloat16)
    with pytest.raises(RuntimeError, match="third call"):
        held.call(network, x, torch.bfloat16)

    assert all(weight is own[name] for name, weight in network.named_parameters())
    assert network.second.weight is network.first.weight


@torch.no_grad()
def test_a_copy_has_its_own():
    network, x = Network(), torch.randn(2, 3)
    network.held = HeldWeights()  # type: ignore[assignment]
    network.held.call(network, x, torch.bfloat16)
    other = copy.deepcopy(network)
    other.first.weight += 1.0
    low = copy.deepcopy(other).to(torch.bfloat16)
    assert torch.equal(other.held.call(other, x, torch.bfloat16), low(x))
