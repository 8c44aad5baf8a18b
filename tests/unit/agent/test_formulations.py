"""What can be computed in several ways is computed in the fastest, and the choice is a definite value."""

from dataclasses import asdict

import numpy as np
import pytest
import torch

from metta_ray.agent import formulations
from metta_ray.agent.agent_config import AgentConfig
from metta_ray.agent.factory import build_policy
from metta_ray.agent.formulations import Formulation, choose_formulation, typical_observations
from metta_ray.agent.policy_state import PolicyState
from metta_ray.bench.synthetic import navigation_spec
from metta_ray.common.util.machine_cache import MachineCache

LIGHT = AgentConfig(architecture="light")
SPEC = navigation_spec()


@pytest.fixture
def seconds(monkeypatch):
    """A machine with these times and bfloat16 units; counts what was measured."""
    times: dict[Formulation, float] = {}
    measured: list[Formulation] = []

    def measure(spec, config, candidates, device, segments):
        measured.extend(candidates)
        return {one: times.get(one, 1.0) for one in candidates}

    monkeypatch.setattr(formulations, "seconds_per_agent_step", measure)
    monkeypatch.setattr(formulations, "has_bf16_units", lambda device: True)
    return times, measured


@pytest.fixture
def cache(tmp_path):
    return MachineCache("formulation", tmp_path)


@pytest.mark.parametrize("fastest", [Formulation(p, g) for p in ("none", "bf16") for g in (True, False)])
def test_the_fastest_is_chosen_once_per_machine(seconds, cache, fastest):
    times, measured = seconds
    times[fastest] = 0.5

    assert choose_formulation(SPEC, LIGHT, cache=cache) == fastest
    assert len(measured) == 4
    assert choose_formulation(SPEC, LIGHT, cache=cache) == fastest
    assert len(measured) == 4, "the second time it is known"
    assert choose_formulation(SPEC, AgentConfig(architecture="light", hidden_sizes=(64,)), cache=cache) == fastest
    assert len(measured) == 8, "another network is another question"
    assert choose_formulation(SPEC, LIGHT, cache=cache, segments=64) == fastest
    assert len(measured) == 12, "and so is another size of minibatch"
    assert choose_formulation(SPEC, LIGHT, cache=cache, segments=4096) == fastest
    assert len(measured) == 12, "beyond 64 segments nothing changes"


def test_bf16_must_be_a_tenth_faster(seconds, cache):
    times, _ = seconds
    times.update({Formulation("none", True): 1.0, Formulation("bf16", True): 0.95})
    assert choose_formulation(SPEC, LIGHT, cache=cache).autocast == "none"


def test_what_is_said_outright_is_followed_without_measuring(seconds, cache):
    config = AgentConfig(architecture="light", gather_conv=False)
    assert choose_formulation(SPEC, config, "bf16", cache=cache) == Formulation("bf16", False)
    assert choose_formulation(SPEC, LIGHT.model_copy(update={"gather_conv": True}), "none") == Formulation("none", True)
    assert seconds[1] == []


def test_a_table_that_would_be_huge_is_not_tried(seconds, cache):
    choose_formulation(SPEC, AgentConfig(), cache=cache)
    assert {formulation.gather_conv for formulation in seconds[1]} == {False}


def test_a_look_at_the_machine_does_not_make_it_another_question(seconds, cache, monkeypatch):
    """Under load the look may come out otherwise: runs that start beside each other are to compute the same way."""
    times, measured = seconds
    times[Formulation("bf16", True)] = 0.5
    chosen = choose_formulation(SPEC, LIGHT, cache=cache)
    monkeypatch.setattr(formulations, "has_bf16_units", lambda device: False)
    assert choose_formulation(SPEC, LIGHT, cache=cache) == chosen == Formulation("bf16", True)
    assert len(measured) == 4


def test_a_machine_without_bf16_units_tries_none_of_it(seconds, cache, monkeypatch):
    monkeypatch.setattr(formulations, "has_bf16_units", lambda device: False)
    choose_formulation(SPEC, LIGHT, cache=cache)
    assert {formulation.autocast for formulation in seconds[1]} == {"none"}


def test_a_real_measurement_leaves_chance_alone(cache):
    small = AgentConfig(architecture="light", conv_channels=(4,), hidden_sizes=(8,), lstm_hidden_size=8)
    state = torch.get_rng_state()
    choice = choose_formulation(SPEC, small, "none", cache=cache)
    assert torch.equal(torch.get_rng_state(), state)
    assert choice.gather_conv in (True, False)
    assert asdict(choice) == asdict(choose_formulation(SPEC, small, "none", cache=cache))


@pytest.mark.parametrize("gather", [True, False])
@pytest.mark.parametrize("architecture", ["light", "mlp"])
def test_weights_held_in_bf16_give_what_autocast_gives(architecture, gather):
    torch.manual_seed(0)
    policy = build_policy(SPEC, AgentConfig(architecture=architecture, lstm_hidden_size=0, gather_conv=gather))
    policy.autocast_dtype = torch.bfloat16
    obs = torch.from_numpy(typical_observations(SPEC, 16, np.random.default_rng(0)))
    actions = torch.zeros(16, dtype=torch.int64)

    for _ in range(2):
        whole = policy(obs, PolicyState(), actions)
        with torch.no_grad():
            held = policy(obs, PolicyState(), actions)
            for got, expected in zip(held, whole, strict=True):
                torch.testing.assert_close(got, expected.detach(), atol=0, rtol=0)
            for weight in policy.parameters():  # the next round has other weights
                weight.mul_(1.5)


@pytest.mark.parametrize("architecture", ["light", "default"])
def test_bf16_is_close_to_float32(architecture):
    torch.manual_seed(0)
    policy = build_policy(SPEC, AgentConfig(architecture=architecture, conv_channels=_few(architecture)))
    obs = torch.from_numpy(typical_observations(SPEC, 4, np.random.default_rng(0)))
    actions = torch.zeros(4, dtype=torch.int64)
    with torch.no_grad():
        exact = policy(obs, PolicyState(), actions)
        policy.autocast_dtype = torch.bfloat16
        rounded = policy(obs, PolicyState(), actions)
    for got, expected in zip(rounded, exact, strict=True):
        torch.testing.assert_close(got, expected, atol=0.03, rtol=0)


def _few(architecture):
    return (4,) if architecture == "light" else (4, 4)
