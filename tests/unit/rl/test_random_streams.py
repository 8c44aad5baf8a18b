"""Chance by purpose: what one part of a training draws does not depend on what another drew."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metta_ray.rl.random_streams import ACTIONS, MINIBATCHES, UPDATES, random_stream, stream_seed


def test_streams_of_one_seed_differ_by_purpose_and_repeat():
    torch.manual_seed(3)
    drawn = {purpose: random_stream(purpose, "cpu").initial_seed() for purpose in (ACTIONS, MINIBATCHES, UPDATES)}

    torch.manual_seed(3)
    torch.rand(100)

    assert len(set(drawn.values())) == 3
    assert random_stream(ACTIONS, "cpu").initial_seed() == drawn[ACTIONS], "what was drawn since does not matter"


def test_seeds_differ_by_root_purpose_and_key():
    seeds = {stream_seed(root, purpose, key) for root in (0, 1) for purpose in (1, 2) for key in range(5)}

    assert len(seeds) == 20
    assert stream_seed(-1, 1) == stream_seed(2**64 - 1, 1), "torch's seeds are taken modulo 2**64"


def test_rollouts_do_not_depend_on_what_training_drew(build_rig):
    plain, disturbed = build_rig(seed=5), build_rig(seed=5)

    for rig, draws in ((plain, 0), (disturbed, 1000)):
        torch.manual_seed(draws)
        torch.rand(draws + 1)
        rig.collect()

    assert torch.equal(plain.experience.actions, disturbed.experience.actions)
    assert torch.equal(plain.experience.obs, disturbed.experience.obs)


@pytest.mark.parametrize("alpha", [0.0, 0.8])
def test_a_repeated_update_meets_the_same_minibatches(build_rig, alpha: float):
    rig = build_rig(seed=5, minibatches=2)
    rig.collect()
    experience = rig.experience
    advantages = torch.from_numpy(np.random.default_rng(0).normal(size=experience.values.shape)).float()

    def minibatches(epoch: int) -> list[list[int]]:
        experience.begin_update(epoch)
        count = experience.num_minibatches
        return [
            experience.sample_minibatch(advantages, alpha, 0.5, index, count)["indices"].tolist()
            for index in range(count)
        ]

    first = minibatches(4)
    minibatches(5)
    torch.rand(10)

    assert minibatches(4) == first
