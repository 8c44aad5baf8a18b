"""The PPO loss against numbers worked out by hand."""

import math

import pytest
import torch

from metta_ray.rl.losses import Losses, explained_variance, ppo_loss
from metta_ray.rl.trainer_config import PPOConfig


def loss(*, ratio, advantages, values=0.0, old_values=0.0, returns=0.0, mask=None, count=None, **config):
    n = len(ratio)
    mask = torch.tensor([mask or [True] * n])
    full = lambda x: torch.tensor([x if isinstance(x, list) else [x] * n], dtype=torch.float32)  # noqa: E731
    return ppo_loss(
        logprobs=full(ratio).log(),
        old_logprobs=torch.zeros(1, n),
        advantages=full(advantages),
        values=full(values),
        old_values=full(old_values),
        returns=full(returns),
        entropy=full(0.5),
        mask=mask,
        count=float(count or mask.sum()),
        config=PPOConfig(**{"clip_coef": 0.2, "vf_clip_coef": 0.1, **config}),
    )


def test_policy_loss_takes_the_worse_of_ratio_and_clipped_ratio():
    # A=1, ratio 1.5: max(-1.5, -1.2) = -1.2;  A=-1, ratio 1.5: max(1.5, 1.2) = 1.5
    # A=2, ratio 0.5: max(-1, -1.6) = -1;      A=-2, ratio 0.5: max(1, 1.6) = 1.6        mean = 0.9/4
    terms = loss(ratio=[1.5, 1.5, 0.5, 0.5], advantages=[1.0, -1.0, 2.0, -2.0])

    assert terms.policy_loss.item() == pytest.approx(0.225)
    assert terms.clipfrac.item() == 1.0


def test_value_loss_is_clipped_around_the_old_value():
    # V=1, R=2: (1-2)² = 1. V_c = 0 + clip(1, ±0.1) = 0.1: (0.1-2)² = 3.61. ½·max = 1.805
    clipped = loss(ratio=[1.0], advantages=[0.0], values=1.0, old_values=0.0, returns=2.0)
    plain = loss(ratio=[1.0], advantages=[0.0], values=1.0, old_values=0.0, returns=2.0, clip_vloss=False)

    assert clipped.value_loss.item() == pytest.approx(1.805)
    assert plain.value_loss.item() == pytest.approx(0.5)


def test_approx_kl_is_ratio_minus_one_minus_log_ratio():
    terms = loss(ratio=[2.0, 1.0], advantages=[0.0, 0.0])

    assert terms.approx_kl.item() == pytest.approx((1 - math.log(2)) / 2, abs=1e-6)
    assert terms.importance.item() == pytest.approx(1.5)


def test_masked_elements_count_nowhere():
    terms = loss(ratio=[1.0, 9.0], advantages=[1.0, 5.0], returns=[1.0, 50.0], mask=[True, False])

    assert terms.policy_loss.item() == pytest.approx(-1.0)
    assert terms.value_loss.item() == pytest.approx(0.5)
    assert terms.entropy.item() == pytest.approx(0.5)
    assert terms.importance.item() == pytest.approx(1.0)


def test_losses_are_means_over_minibatches():
    losses = Losses()
    losses.add(policy_loss=torch.tensor(1.0), entropy=2.0)
    losses.add(policy_loss=torch.tensor(3.0), entropy=4.0)

    assert losses.stats()["policy_loss"] == pytest.approx(2.0)
    assert losses.stats()["entropy"] == pytest.approx(3.0)

    losses.zero()
    assert losses.minibatches_processed == 0
    assert losses.stats()["policy_loss"] == 0.0


def test_k8_explained_variance_of_masked_returns():
    # Of the first three: errors (0.5, 0, -0.5), variance 0.25; returns (1, 2, 3), variance 1 → 0.75
    values = torch.tensor([[0.5, 2.0, 3.5, 100.0]])
    returns = torch.tensor([[1.0, 2.0, 3.0, -7.0]])
    mask = torch.tensor([[True, True, True, False]])

    assert explained_variance(values, returns, mask) == pytest.approx(0.75)
    assert explained_variance(values, torch.ones(1, 4), mask) == 0.0


def test_nan_where_nothing_counts_spoils_no_gradient():
    logprobs = torch.tensor([[0.1, float("nan")]], requires_grad=True)
    values = torch.tensor([[1.0, float("nan")]], requires_grad=True)
    terms = ppo_loss(
        logprobs=logprobs,
        old_logprobs=torch.zeros(1, 2),
        advantages=torch.tensor([[1.0, 0.0]]),
        values=values,
        old_values=torch.zeros(1, 2),
        returns=torch.tensor([[2.0, float("nan")]]),
        entropy=torch.tensor([[0.5, float("nan")]]),
        mask=torch.tensor([[True, False]]),
        count=1.0,
        config=PPOConfig(),
    )
    (terms.policy_loss + terms.value_loss - terms.entropy).backward()

    assert logprobs.grad is not None
    assert values.grad is not None
    assert logprobs.grad.isfinite().all()
    assert values.grad.isfinite().all()
