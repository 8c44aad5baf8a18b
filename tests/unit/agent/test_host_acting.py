"""Acting with numpy on the host gives what the policy's modules give, wherever its weights come from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from metta_ray.agent import host_acting
from metta_ray.agent.factory import Agent
from metta_ray.agent.metta_agent import MettaAgent
from metta_ray.agent.policy_state import PolicyState
from metta_ray.envs.env_spec import EnvSpec

ROWS = 6
OBS = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(1))


def mlp(**settings: Any) -> MettaAgent:
    spec = EnvSpec("toy", spaces.Box(-np.inf, np.inf, (3,), np.float32), spaces.Discrete(4))
    torch.manual_seed(0)
    policy = Agent(spec, {"architecture": "mlp", "hidden_sizes": (8, 8)} | settings, device="cpu")
    with torch.no_grad():
        policy.actor[-1].weight *= 100.0  # decided
    return policy


def acted(policy: MettaAgent, obs: Tensor = OBS) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """action, logprob, value, and the value alone."""
    with torch.no_grad():
        drawn = policy.act(obs, PolicyState(generator=torch.Generator().manual_seed(3)))
        return (*drawn, policy.value(obs, PolicyState()))


def forwarded(policy: MettaAgent, obs: Tensor = OBS) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with torch.no_grad():
        action, logprob, _, value, _ = policy(obs, PolicyState(generator=torch.Generator().manual_seed(3)))
    return action, logprob, value, value.squeeze(1)


def require_equal(policy: MettaAgent) -> None:
    for one, other in zip(acted(policy), forwarded(policy), strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


@pytest.fixture
def numpy_calls(monkeypatch) -> list[int]:
    """Rows of each call of the encoders' and heads' way in numpy."""
    calls: list[int] = []
    plain = host_acting.HostStack.__call__

    def counted(self: Any, x: np.ndarray) -> np.ndarray:
        calls.append(len(x))
        return plain(self, x)

    monkeypatch.setattr(host_acting.HostStack, "__call__", counted)
    return calls


@pytest.mark.parametrize(
    ("settings", "stacks"),
    [
        ({}, 4),
        ({"activation": "relu", "critic_hidden_sizes": (5,), "separate_critic": False}, 3),
        ({"activation": "gelu"}, 2),  # numpy has none: heads alone
        ({"side_inputs": True}, 2),
        ({"lstm_hidden_size": 8, "separate_critic": False}, 2),
    ],
)
def test_it_gives_what_the_modules_give(settings: dict[str, Any], stacks: int, numpy_calls: list[int]):
    policy = mlp(**settings)
    with torch.no_grad():
        policy.act(OBS, PolicyState())
    assert len(numpy_calls) == stacks
    require_equal(policy)


def write_in_place(policy: MettaAgent) -> MettaAgent:
    with torch.no_grad():
        for weight in policy.parameters():
            weight += 0.3
    return policy


def load(policy: MettaAgent) -> MettaAgent:
    policy.load_state_dict({name: weight + 0.3 for name, weight in policy.state_dict().items()})
    return policy


def move(policy: MettaAgent) -> MettaAgent:
    for weight in policy.parameters():
        weight.data = weight.data + 0.3
    return policy


def replace(policy: MettaAgent) -> MettaAgent:
    policy.actor[-1] = nn.Linear(8, 4)
    policy.network.layers[0].weight = nn.Parameter(torch.randn(8, 3))
    return policy


def replace_stacks(policy: MettaAgent) -> MettaAgent:
    policy.network.layers = nn.Sequential(nn.Linear(3, 6), nn.Tanh())
    policy.actor = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    return policy


def copied(policy: MettaAgent) -> MettaAgent:
    return write_in_place(copy.deepcopy(policy))


@pytest.mark.parametrize("change", [write_in_place, load, move, replace, replace_stacks, copied])
def test_it_follows_the_weights(change: Callable[[MettaAgent], MettaAgent], numpy_calls: list[int]):
    policy = mlp()
    before = acted(policy)

    changed = change(policy)

    assert numpy_calls
    require_equal(changed)
    assert not torch.equal(acted(changed)[1], before[1])


def another_kind(policy: MettaAgent) -> None:
    policy.actor[0] = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 4))


def without_bias(policy: MettaAgent) -> None:
    policy.actor[0] = nn.Linear(8, 4, bias=False)


def parametrised(policy: MettaAgent) -> None:
    nn.utils.parametrizations.spectral_norm(policy.actor[0])
    nn.utils.parametrizations.spectral_norm(policy.network.layers[0])
    policy.eval()


class Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :4] + super().forward(x)


class Other(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 8)

    def forward(self, obs: Tensor) -> Tensor:
        return self.linear(obs).sin()


def with_a_forward_of_its_own(policy: MettaAgent) -> None:
    policy.actor = Residual(nn.Linear(8, 4))


def another_network(policy: MettaAgent) -> None:
    policy.network = Other()
    policy.actor = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 4))


def activation_first(policy: MettaAgent) -> None:
    policy.actor = nn.Sequential(nn.ReLU(), nn.Linear(8, 4))


@pytest.mark.parametrize(
    "change", [another_kind, without_bias, parametrised, with_a_forward_of_its_own, another_network, activation_first]
)
@pytest.mark.parametrize("settings", [{}, {"lstm_hidden_size": 8, "separate_critic": False}])
def test_other_layers_take_the_plain_way(
    change: Callable[[MettaAgent], None], settings: dict[str, Any], numpy_calls: list[int]
):
    policy = mlp(**settings)
    acted(policy)
    change(policy)
    numpy_calls.clear()

    require_equal(policy)

    assert not numpy_calls


def test_weights_that_are_elsewhere_are_refused_and_not_copied_once():
    policy = mlp()
    acted(policy)
    policy.to("meta")
    with pytest.raises((NotImplementedError, TypeError)):
        acted(policy)


def test_a_copy_leaves_the_original_alone():
    policy = mlp()
    before = acted(policy)
    copied(policy)
    assert torch.equal(acted(policy)[1], before[1])


def test_hooks_are_called_and_may_change_what_comes_out():
    policy, seen = mlp(), []
    policy.actor.register_forward_hook(lambda _, inputs, output: seen.append(len(output)))
    policy.network.layers[0].register_forward_hook(lambda _, inputs, output: output + 1.0)

    require_equal(policy)

    assert seen == [ROWS] * 2  # acting and the forward; the value alone needs no actor


def test_in_low_precision_encoders_act_as_they_are_trained(numpy_calls: list[int]):
    policy = mlp()
    policy.autocast_dtype = torch.bfloat16
    require_equal(policy)
    assert len(numpy_calls) == 3, "two heads to act, one for the value"


def test_many_rows_and_gradients_take_the_plain_way(numpy_calls: list[int]):
    policy = mlp()
    policy.act(OBS, PolicyState())
    many = OBS.repeat(host_acting.MOST_MULTIPLICATIONS // 64, 1)
    acted(policy, many)
    assert not numpy_calls


def test_probabilities_of_logits_far_apart_stay_finite():
    logits = np.array([[1000.0, 0.0, -1000.0], [-2000.0, -2000.0, -2001.0]], np.float32)
    action, logprob = host_acting.choose(logits.copy(), torch.Generator().manual_seed(0))
    expected = torch.log_softmax(torch.from_numpy(logits), -1)
    assert action[0] == 0
    np.testing.assert_allclose(logprob, expected.numpy()[[0, 1], action], rtol=1e-6)
