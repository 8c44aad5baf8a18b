"""From a full buffer to a better policy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metta_ray.common.errors import TrainingDiverged
from metta_ray.rl.arrays import native
from metta_ray.rl.trainer_config import TrainerConfig
from metta_ray.rl.update import (
    batch_advantages,
    calculate_anneal_beta,
    look_again,
    maybe_update_l2_weights,
    minibatch_totals,
    process_minibatch_update,
    should_run_on_interval,
    update_policy,
)

BIG_STEPS = {"learning_rate": 0.01}


def gradient(agent):
    return torch.cat([p.grad.flatten() for p in agent.parameters() if p.grad is not None])


# Intervals, annealing


def test_an_interval_is_reached_when_a_multiple_was_crossed():
    assert [epoch for epoch in range(1, 13) if should_run_on_interval(epoch, 4)] == [4, 8, 12]
    assert not should_run_on_interval(4, 0)
    assert should_run_on_interval(9, 4, previous_epoch=7)
    assert not should_run_on_interval(11, 4, previous_epoch=8)


@given(interval=st.integers(1, 20), steps=st.lists(st.integers(1, 7), max_size=30))
def test_k29_counting_by_more_than_one_skips_no_interval(interval, steps):
    epoch, runs = 0, 0
    for step in steps:
        runs += should_run_on_interval(epoch + step, interval, previous_epoch=epoch)
        epoch += step
    assert runs <= epoch // interval
    assert runs >= min(epoch // interval, sum(1 for step in steps if step >= interval))
    if max(steps, default=0) <= interval:
        assert runs == epoch // interval


def test_anneal_beta_by_hand():
    config = TrainerConfig.from_mapping(
        {
            "total_timesteps": 1000,
            "batch_size": 100,
            "minibatch_size": 100,
            "bptt_horizon": 10,
            "prioritized_experience_replay": {"prio_alpha": 0.5, "prio_beta0": 0.6},
        }
    )
    # β = 0.6 + 0.4 · 0.5 · epoch / 10
    assert calculate_anneal_beta(0, config) == pytest.approx(0.6)
    assert calculate_anneal_beta(5, config) == pytest.approx(0.7)
    assert calculate_anneal_beta(10, config) == pytest.approx(0.8)
    assert calculate_anneal_beta(99, config) == pytest.approx(0.8)


# Statistics over a minibatch


@pytest.mark.parametrize("on_host", [True, False])
def test_minibatch_totals_by_hand(on_host: bool):
    advantages = torch.tensor([[1.0, 2.0], [6.0, 1000.0]])
    log_ratio = torch.tensor([[0.0, math.log(2.0)], [0.0, 50.0]])
    mask = torch.tensor([[True, True], [True, False]])
    given = (advantages, log_ratio, mask)
    totals = minibatch_totals(*(map(native, given) if on_host else given))

    assert totals.count_per_rank == 3
    assert totals.mean == pytest.approx(3.0)
    # biased: ((1-3)² + (2-3)² + (6-3)²) / 3 = 14/3
    assert totals.std == pytest.approx(math.sqrt(14 / 3))
    # k3: (ratio - 1) - log ratio, once 2 - 1 - ln 2, else 0
    assert totals.approx_kl == pytest.approx((1 - math.log(2)) / 3, rel=1e-5)


@pytest.mark.parametrize("on_host", [True, False])
def test_nothing_that_counts_gives_finite_totals(on_host: bool):
    given = (torch.ones(2, 2), torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bool))
    totals = minibatch_totals(*(map(native, given) if on_host else given))
    assert np.isfinite([float(one) for one in (totals.mean, totals.std, totals.approx_kl)]).all()
    assert totals.count_per_rank == 1


def test_masked_actions_leave_no_trace_in_loss_or_gradient(build_rig):
    rig = build_rig(horizon=8)
    rig.collect()
    rig.experience._masks[:, 3] = False
    advantages = batch_advantages(rig.experience, rig.config, "cpu")
    minibatch = rig.experience.sample_minibatch(advantages, 0.0, 1.0, 0, 1)
    outcomes = []
    for garbage in (0.0, 1e6):
        rig.optimizer.zero_grad()
        minibatch["returns"][~minibatch["mask"]] = garbage
        loss = process_minibatch_update(
            rig.agent, rig.experience, minibatch, advantages, rig.config, None, 0, rig.losses, "cpu"
        )
        loss.backward()
        outcomes.append((loss.item(), gradient(rig.agent)))
    for loss, gradients in outcomes[1:]:
        assert loss == outcomes[0][0]
        assert torch.equal(gradients, outcomes[0][1])


# One epoch


def test_an_epoch_uses_every_minibatch_of_every_pass(build_rig):
    rig = build_rig(num_envs=4, horizon=8, segments_per_agent=2, minibatches=4, trainer={"update_epochs": 3})
    rig.collect()
    before = rig.weights()
    rig.train()

    assert rig.losses.minibatches_processed == 12
    assert any(not torch.equal(before[name], tensor) for name, tensor in rig.agent.state_dict().items())
    assert set(rig.losses.stats()) >= {"policy_loss", "value_loss", "entropy", "approx_kl", "explained_variance"}


def test_first_minibatch_has_ratio_one_no_clipping_and_no_divergence(build_rig):
    rig = build_rig(horizon=16)
    rig.collect()
    rig.first_minibatch()

    stats = rig.losses.stats()
    assert stats["importance"] == pytest.approx(1.0, abs=1e-5)
    assert stats["clipfrac"] == 0.0
    assert stats["approx_kl"] == pytest.approx(0.0, abs=1e-6)


def test_k8_values_of_the_rollout_stay_what_they_were(build_rig):
    rig = build_rig(trainer={"update_epochs": 2})
    rig.collect()
    before = rig.experience.values.clone()
    rig.train()
    assert torch.equal(rig.experience.values, before)


@pytest.mark.parametrize("lstm", [0, 8])
def test_a_policy_that_looks_again_at_its_own_data_sees_what_it_saw(build_rig, lstm):
    rig = build_rig(num_envs=3, horizon=16, segments_per_agent=2, agent={"lstm_hidden_size": lstm})
    rig.collect()
    assert rig.experience.dones[:, 1:].any(), "episodes end inside segments"
    logprobs, values = rig.experience.logprobs.clone(), rig.experience.values.clone()

    look_again(rig.agent, rig.experience)
    torch.testing.assert_close(rig.experience.proximal_logprobs, logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(rig.experience.values, values, atol=1e-5, rtol=0)


def test_advantage_argument_is_not_read(build_rig):
    rig = build_rig()
    rig.collect()
    advantages = batch_advantages(rig.experience, rig.config, "cpu")
    minibatch = rig.experience.sample_minibatch(advantages, 0.0, 1.0, 0, 1)
    losses = [
        process_minibatch_update(
            rig.agent, rig.experience, minibatch, other, rig.config, None, 0, rig.losses, "cpu"
        ).item()
        for other in (advantages, torch.full_like(advantages, math.nan))
    ]
    assert losses[0] == losses[1]


def test_kl_stop_ends_the_epoch_without_that_step(build_rig):
    rig = build_rig(minibatches=2, trainer={"update_epochs": 50, "ppo": {"target_kl": 1e-4}}, optimizer=BIG_STEPS)
    rig.collect()
    rig.train()
    processed = rig.losses.minibatches_processed
    assert 2 <= processed < 100

    # The next epoch starts with clean gradients and moves again.
    before = rig.weights()
    rig.collect()
    rig.train()
    assert any(not torch.equal(before[name], tensor) for name, tensor in rig.agent.state_dict().items())


def test_a_batch_with_an_infinite_reward_is_skipped_and_three_such_updates_end_the_training(build_rig):
    rig = build_rig(minibatches=2)
    rig.collect()
    rig.experience._rewards[:, 2] = math.inf
    before = rig.weights()
    rig.train()
    assert rig.optimizer.skipped_updates == 2
    assert all(torch.equal(before[name], tensor) for name, tensor in rig.agent.state_dict().items())

    with pytest.raises(TrainingDiverged, match="3 updates in a row"):
        rig.train()
    assert all(torch.equal(before[name], tensor) for name, tensor in rig.agent.state_dict().items())


def test_k7_a_minibatch_beyond_memory_is_accumulated_to_the_same_update(build_rig):
    """Two halves, normalised over each half; switched off here so that both see the same advantages."""
    outcomes = []
    for halves in (1, 2):
        rig = build_rig(
            num_envs=4,
            minibatches=halves,
            trainer={"ppo": {"norm_adv": False, "max_grad_norm": 1e9}},
            optimizer={"max_grad_norm": 1e9},
        )
        rig.collect()
        rig.experience.accumulate_minibatches = halves
        rig.train()
        outcomes.append(gradient(rig.agent))
    torch.testing.assert_close(outcomes[0], outcomes[1], atol=1e-6, rtol=0)


def test_prioritised_segments_train_too(build_rig):
    rig = build_rig(
        num_envs=8, minibatches=4, trainer={"prioritized_experience_replay": {"prio_alpha": 0.8, "prio_beta0": 0.5}}
    )
    rig.collect()
    rig.train()
    assert rig.losses.minibatches_processed == 4
    assert np.isfinite(list(rig.losses.stats().values())).all()


# Terms beside PPO


def test_k9_distance_to_the_initial_weights_has_a_gradient_and_is_zero_at_first(build_rig):
    rig = build_rig(agent={"l2_init": True}, trainer={"ppo": {"l2_init_loss_coef": 0.1}})
    rig.collect()
    rig.first_minibatch()
    assert rig.losses.l2_init_loss_sum == 0.0

    weight = rig.agent.get_parameter("actor.0.weight")
    with torch.no_grad():
        weight += 2.0
    rig.losses.zero()
    rig.first_minibatch()
    # 0.1 · Σ 2² over the matrix
    assert rig.losses.l2_init_loss_sum == pytest.approx(0.4 * weight.numel(), rel=1e-5)
    rig.optimizer.zero_grad()
    rig.agent.l2_init_loss().backward()
    torch.testing.assert_close(weight.grad, torch.full_like(weight, 4.0))


def test_weight_decay_term_by_hand(build_rig):
    rig = build_rig(trainer={"ppo": {"l2_reg_loss_coef": 0.01}})
    rig.collect()
    rig.first_minibatch()
    expected = 0.01 * sum(float(p.detach().square().sum()) for p in rig.agent.parameters())
    assert rig.losses.l2_reg_loss_sum == pytest.approx(expected, rel=1e-5)


def test_reference_weights_move_on_the_interval_only(build_rig):
    rig = build_rig(agent={"l2_init": True})
    weight = rig.agent.get_parameter("actor.0.weight")
    with torch.no_grad():
        weight += 2.0
    maybe_update_l2_weights(rig.agent, 1, 0)
    maybe_update_l2_weights(rig.agent, 1, 2)
    far = rig.agent.l2_init_loss().item()
    maybe_update_l2_weights(rig.agent, 2, 2)
    assert rig.agent.l2_init_loss().item() < far


def test_update_policy_says_how_many_passes_it_began(build_rig):
    rig = build_rig(trainer={"update_epochs": 3})
    rig.collect()
    arguments = (rig.agent, rig.optimizer, rig.experience, rig.config, None, 0, 0, rig.losses, "cpu")
    assert update_policy(*arguments) == 3
