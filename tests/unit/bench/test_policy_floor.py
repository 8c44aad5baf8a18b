"""All formulations of the floor are the same network; none of them is a shortcut."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metta_ray.bench.library_policy import LibraryLearner, build_agent, token_tables
from metta_ray.bench.policy_floor import (
    FORMULATIONS,
    PLAIN,
    SHAPES,
    FloorNetwork,
    Formulation,
    formulations,
    multiply_adds,
)
from metta_ray.bench.ppo_floor import FloorActor, FloorLearner
from metta_ray.bench.synthetic import DENSITIES, observations

ROWS = 6


def networks(network: str, way: Formulation) -> tuple[FloorNetwork, FloorNetwork]:
    torch.manual_seed(0)
    plain = FloorNetwork(SHAPES[network], token_tables(), PLAIN)
    other = FloorNetwork(SHAPES[network], token_tables(), way)
    other.load_from(plain)
    return plain, other


def some_observations() -> torch.Tensor:
    return torch.from_numpy(observations(ROWS, DENSITIES["simple"], np.random.default_rng(0)))


CASES = [(network, way) for network in FORMULATIONS for way in FORMULATIONS[network][1:]]


@pytest.mark.parametrize(("network", "way"), CASES, ids=lambda case: getattr(case, "name", case))
def test_every_formulation_gives_outputs_and_gradients_of_the_plain_one(network: str, way: Formulation):
    plain, other = networks(network, way)
    state = torch.randn(1, 2, plain.shape.lstm)
    results = []
    for one in (plain, other):
        logits, values, h, c = one(some_observations(), ROWS // 2, state, state)
        (logits.square().sum() + values.sum()).backward()
        gradients = [one.convs[0].weight.grad, one.lstm.weight_ih_l0.grad]
        results.append([logits, values, h, c, *gradients])

    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_bf16_stays_near_the_plain_formulation():
    plain, other = networks("light", FORMULATIONS["light"][2].in_bf16())
    obs, state = some_observations(), torch.zeros(1, ROWS, 128)
    expected, *_ = plain(obs, 1, state, state)

    other.hold(torch.bfloat16)
    with torch.no_grad():
        logits, *_ = other(obs, 1, state, state)

    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, atol=0.03, rtol=0)


def test_holding_weights_for_inference_changes_nothing_in_fp32():
    plain, other = networks("light", FORMULATIONS["light"][2])
    obs, state = some_observations(), torch.zeros(1, ROWS, 128)

    other.hold(torch.float32)

    with torch.no_grad():
        torch.testing.assert_close(other(obs, 1, state, state)[0], plain(obs, 1, state, state)[0], atol=1e-5, rtol=1e-4)


def test_bf16_is_tried_only_where_it_is_asked_for():
    assert {way.dtype for way in formulations("light", bf16=False)} == {torch.float32}
    assert len(formulations("default", bf16=True)) == 2 * len(formulations("default", bf16=False)) - 1


def test_multiply_adds_are_those_of_the_networks():
    default = FloorNetwork(SHAPES["default"], token_tables()._replace(channels=16), PLAIN)
    light = FloorNetwork(SHAPES["light"], token_tables()._replace(channels=16), PLAIN)

    # By hand: convolutions, linear layer, LSTM, heads.
    assert multiply_adds(default) == 121 * (32 * 16 * 9 + 64 * 32 * 9) + 7744 * 512 + 4 * 512 * 1024 + 512 * 6
    assert multiply_adds(light) == 9 * 32 * 16 * 25 + 288 * 128 + 4 * 128 * 256 + 128 * 6


def test_an_actor_draws_actions_as_its_logits_say():
    _, network = networks("light", FORMULATIONS["light"][1])
    with torch.no_grad():
        network.actor.weight.zero_()
        network.actor.bias.copy_(torch.tensor([0.7, 0.3, 1e-9, 1e-9, 1e-9]).log())
    actor = FloorActor(network, 1000)
    torch.manual_seed(1)

    actions, logprobs, values = actor.act(some_observations()[:1].expand(1000, -1, -1))

    counts = torch.bincount(actions, minlength=5)
    assert 640 < counts[0] < 760
    assert counts[2:].sum() == 0
    torch.testing.assert_close(logprobs.exp()[actions == 0][0], torch.tensor(0.7), atol=1e-4, rtol=0)
    assert values.shape == (1000,)


def test_a_learner_makes_good_actions_likelier():
    torch.manual_seed(0)
    library = LibraryLearner(build_agent("light", torch.device("cpu"), torch.float32), 128, DENSITIES["simple"], "cpu")
    batch = library.for_floor(padded=False)
    batch = batch._replace(advantages=torch.where(batch.actions == 3, 1.0, -1.0))
    learner = FloorLearner(networks("light", FORMULATIONS["light"][3])[1])

    losses = [float(learner.step(batch).detach()) for _ in range(10)]

    assert losses[-1] < losses[0]
