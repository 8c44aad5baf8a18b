"""Torch's own optimizers, to the bit, and without its compiler."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from metta_ray.rl.eager_optimizers import Adam, Muon


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8, bias=False), nn.Tanh(), nn.Linear(8, 2, bias=False))


def step(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    network(torch.ones(3, 4)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("ours", "theirs", "settings"),
    [(Adam, torch.optim.Adam, {"fused": True}), (Muon, torch.optim.Muon, {"weight_decay": 0.1})],
)
def test_steps_and_state_are_those_of_torch_to_the_bit(ours, theirs, settings):
    one = network()
    two = copy.deepcopy(one)
    own, reference = ours(one.parameters(), lr=0.1, **settings), theirs(two.parameters(), lr=0.1, **settings)
    for number in range(4):
        step(one, own)
        step(two, reference)
        if number == 1:
            saved = own.state_dict()
            own = ours(one.parameters(), lr=0.5, **settings)
            own.load_state_dict(saved)

    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))
    assert own.state_dict()["param_groups"] == reference.state_dict()["param_groups"]
    assert all(parameter.requires_grad and parameter.grad_fn is None for parameter in one.parameters())


def test_hooks_are_called():
    called = []
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.ones(1)
    optimizer = Adam([parameter])
    optimizer.register_step_post_hook(lambda *_: called.append("after"))

    optimizer.step()

    assert called == ["after"]


def test_a_whole_update_does_not_load_the_compiler():
    code = """
import sys, torch
from metta_ray.rl.eager_optimizers import Adam, Muon
for kind in (Adam, Muon):
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = kind([parameter], lr=0.1)
    optimizer.zero_grad()
    parameter.sum().backward()
    torch.nn.utils.clip_grad_norm_([parameter], 1.0)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
