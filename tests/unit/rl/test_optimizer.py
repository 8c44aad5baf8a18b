"""Gradient steps: accumulation, clipping, numbers that are none, two kinds of optimizer, saved state."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from gymnasium import spaces

from metta_ray.agent.agent_config import AgentConfig
from metta_ray.agent.factory import build_policy
from metta_ray.agent.metta_agent import MettaAgent
from metta_ray.agent.policy_state import PolicyState
from metta_ray.common.errors import ConfigError, TrainingDiverged
from metta_ray.envs.env_spec import EnvSpec
from metta_ray.rl.optimizer import Optimizer

SPEC = EnvSpec("gym:toy", spaces.Box(-1, 1, (4,)), spaces.Discrete(3))


def policy(seed: int = 0, lstm: int = 0) -> MettaAgent:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"hidden_sizes": (8, 8), "lstm_hidden_size": lstm}
    return build_policy(SPEC, AgentConfig(architecture="mlp", **sizes))


def loss_of(agent: MettaAgent, obs: torch.Tensor, weight: float = 1.0) -> torch.Tensor:
    _, logprob, entropy, value, _ = agent(obs, PolicyState(), torch.zeros(len(obs), dtype=torch.long))
    return weight * (logprob.mean() + entropy.mean() + (value - 1).square().mean())


def weights(agent: MettaAgent) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in agent.parameters()])


def gradient(agent: MettaAgent) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in agent.parameters() if parameter.grad is not None])


@pytest.mark.parametrize("k", [2, 4])
def test_k7_accumulating_k_minibatches_gives_the_gradient_of_the_whole(k: int):
    obs = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    in_parts, at_once = policy(), policy()
    one = Optimizer(policy=in_parts, max_grad_norm=1e9)
    two = Optimizer(policy=at_once, max_grad_norm=1e9)

    updated = [one.step(loss_of(in_parts, part), epoch=7, accumulate_steps=k) for part in obs.chunk(k)]
    two.step(loss_of(at_once, obs), epoch=7)

    assert updated == [False] * (k - 1) + [True]
    torch.testing.assert_close(gradient(in_parts), gradient(at_once), atol=1e-6, rtol=0)
    torch.testing.assert_close(weights(in_parts), weights(at_once), atol=1e-5, rtol=0)


def test_k7_a_new_group_starts_from_zero_whatever_the_epoch_says():
    agent, obs = policy(), torch.ones(2, 4)
    optimizer = Optimizer(policy=agent, learning_rate=1e-12, max_grad_norm=1e9)
    for epoch in (3, 3, 4):
        assert optimizer.step(loss_of(agent, obs), epoch)
        norm = gradient(agent).norm()
    first = policy()
    Optimizer(policy=first, learning_rate=1e-12, max_grad_norm=1e9).step(loss_of(first, obs), 0)
    torch.testing.assert_close(norm, gradient(first).norm())


def test_gradients_are_scaled_down_to_the_norm_and_the_norm_before_that_is_known():
    agent = policy()
    optimizer = Optimizer(policy=agent, max_grad_norm=0.5)
    optimizer.step(loss_of(agent, torch.ones(2, 4), weight=100.0), 0)

    assert gradient(agent).norm().item() == pytest.approx(0.5, rel=1e-4)
    assert optimizer.last_grad_norm > 0.5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_skips_the_update_and_is_counted(bad: float):
    agent = policy()
    optimizer = Optimizer(policy=agent)
    before = weights(agent)

    assert optimizer.step(loss_of(agent, torch.ones(2, 4)) * bad, 0) is False
    # Adding a constant leaves the gradient finite, yet something is wrong.
    assert optimizer.step(loss_of(agent, torch.ones(2, 4)) + bad, 0) is False

    assert optimizer.skipped_updates == 2
    assert torch.equal(weights(agent), before)
    assert optimizer.step(loss_of(agent, torch.ones(2, 4)), 0) is True
    assert torch.isfinite(weights(agent)).all()
    assert not torch.equal(weights(agent), before)


def test_a_gradient_that_is_not_finite_skips_the_update():
    agent = policy()
    optimizer = Optimizer(policy=agent)
    before = weights(agent)
    zero = sum(parameter.sum() for parameter in agent.parameters()) * 0.0
    loss = zero.abs().sqrt()  # 0, with the gradient 0 · inf

    assert torch.isfinite(loss)
    assert optimizer.step(loss, 0) is False
    assert torch.equal(weights(agent), before)


def test_one_bad_minibatch_spoils_its_group_only():
    agent = policy()
    optimizer = Optimizer(policy=agent)
    obs = torch.ones(2, 4)

    assert not optimizer.step(loss_of(agent, obs) * math.nan, 0, accumulate_steps=2)
    assert not optimizer.step(loss_of(agent, obs), 0, accumulate_steps=2)
    assert optimizer.skipped_updates == 1
    assert not optimizer.step(loss_of(agent, obs), 0, accumulate_steps=2)
    assert optimizer.step(loss_of(agent, obs), 0, accumulate_steps=2)


def test_three_skipped_updates_in_a_row_end_the_training_but_not_three_in_all():
    agent = policy()
    optimizer = Optimizer(policy=agent)
    good, bad = torch.ones(2, 4), math.nan
    for factor in (bad, bad, 1.0, bad, bad, 1.0, bad, bad):
        optimizer.step(loss_of(agent, good) * factor, 0)
    before = weights(agent)

    with pytest.raises(TrainingDiverged, match=r"3 updates in a row.*learning_rate"):
        optimizer.step(loss_of(agent, good) * bad, 0)

    assert torch.equal(weights(agent), before)
    assert optimizer.skipped_updates == 7


def test_the_limit_of_skipped_updates_can_be_set():
    agent = policy()
    optimizer = Optimizer(policy=agent, max_nonfinite_updates=1)
    with pytest.raises(TrainingDiverged):
        optimizer.step(loss_of(agent, torch.ones(2, 4)) * math.nan, 0)


@pytest.mark.parametrize("kind", ["adam", "muon"])
def test_it_learns_a_little(kind: str):
    agent = policy()
    optimizer = Optimizer(kind, agent, learning_rate=0.01)
    obs = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    first = loss_of(agent, obs).item()
    for _ in range(40):
        optimizer.step(loss_of(agent, obs), 0)

    assert loss_of(agent, obs).item() < first - 0.5


def test_muon_takes_matrices_between_layers_and_adam_the_rest():
    agent = policy(lstm=8)
    names = {id(parameter): name for name, parameter in agent.named_parameters()}
    adam, muon = Optimizer("muon", agent).optimizers

    by_muon = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    by_adam = {names[id(p)] for group in adam.param_groups for p in group["params"]}
    assert by_muon
    assert all(dict(agent.named_parameters())[name].ndim == 2 for name in by_muon)
    assert not any("lstm" in name for name in by_muon), "stacked gates are not one matrix"
    assert not any(name.startswith(("actor", "critic")) for name in by_muon), "outputs are not hidden matrices"
    assert by_muon | by_adam == set(names.values())
    assert not by_muon & by_adam


@pytest.mark.parametrize("kind", ["adam", "muon"])
def test_state_makes_the_round_trip(kind: str):
    obs = torch.ones(2, 4)
    one, two = policy(), policy()
    first = Optimizer(kind, one)
    first.step(loss_of(one, obs), 0)
    first.step(loss_of(one, obs) * math.nan, 0)
    two.load_state_dict(one.state_dict())
    second = Optimizer(kind, two)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for agent, optimizer in ((one, first), (two, second)):
        optimizer.step(loss_of(agent, obs), 0)

    assert torch.equal(weights(one), weights(two))
    assert second.skipped_updates == 1


def test_state_of_another_type_or_size_is_refused():
    with pytest.raises(ValueError, match="another optimizer type"):
        Optimizer("muon", policy()).load_state_dict(Optimizer("adam", policy()).state_dict())
    trained = policy(lstm=8)
    other = Optimizer("adam", trained)
    other.step(loss_of(trained, torch.ones(2, 4)), 0)
    with pytest.raises(ValueError, match="of shape"):
        Optimizer("adam", policy()).load_state_dict(other.state_dict())


@pytest.mark.parametrize("kind", ["adam", "muon"])
def test_a_schedule_acts_on_every_half(kind: str):
    agent = policy()
    optimizer = Optimizer(kind, agent)
    before = weights(agent)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step(loss_of(agent, torch.ones(2, 4)), 0)

    assert torch.equal(weights(agent), before)


def test_wrong_use_is_refused():
    with pytest.raises(ConfigError, match="'sgd' is unknown; known: 'adam', 'muon'"):
        Optimizer("sgd", policy())
    with pytest.raises(ValueError, match="policy="):
        Optimizer()


def test_state_of_an_older_version_goes_on_in_one_pass_over_all_parameters():
    old, new = (Optimizer("adam", torch.nn.Linear(2, 1)) for _ in range(2))
    state = old.state_dict()
    for group in state["optimizers"][0]["param_groups"]:
        group["fused"] = None
    new.load_state_dict(state)
    assert new.state_dict()["optimizers"][0]["param_groups"] == old.state_dict()["optimizers"][0]["param_groups"]
