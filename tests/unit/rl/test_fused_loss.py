"""The loss in one node of the graph against autograd over the plain formula."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from metta_ray.rl.fused_loss import fused_ppo_loss, gradients_and_sums
from metta_ray.rl.losses import PPOTerms, ppo_loss
from metta_ray.rl.trainer_config import PPOConfig

SHAPE = (16, 32)


def case(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(scale: float = 1.0) -> torch.Tensor:
        return scale * torch.randn(SHAPE, generator=generator)

    mask = torch.rand(SHAPE, generator=generator) > 0.2
    return {
        "logprobs": normal(0.3) - 1,
        "old_logprobs": normal(0.3) - 1,
        "advantages": normal(),
        "values": normal(),
        "old_values": normal(),
        "returns": normal(),
        "entropy": normal().abs(),
        "mask": mask,
        "count": mask.sum().float(),
    }


@pytest.mark.parametrize("clip_vloss", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_loss_terms_and_gradients_are_those_of_the_plain_formula(clip_vloss: bool, seed: int):
    config = PPOConfig(clip_coef=0.2, vf_clip_coef=0.5, clip_vloss=clip_vloss, vf_coef=0.7, ent_coef=0.03)
    plain, fused = case(seed), case(seed)
    for tensors in (plain, fused):
        for name in ("logprobs", "values", "entropy"):
            tensors[name].requires_grad_()

    expected = ppo_loss(**plain, config=config)
    loss = expected.policy_loss + config.vf_coef * expected.value_loss - config.ent_coef * expected.entropy
    (3 * loss).backward()
    fused_loss, terms = fused_ppo_loss(**fused, config=config)
    (3 * fused_loss).backward()

    torch.testing.assert_close(fused_loss, loss, atol=1e-5, rtol=1e-5)
    for field in fields(PPOTerms):
        assert getattr(terms, field.name) == pytest.approx(getattr(expected, field.name).item(), abs=1e-5)
    for name in ("logprobs", "values", "entropy"):
        assert plain[name].grad is not None
        torch.testing.assert_close(fused[name].grad, plain[name].grad, atol=1e-6, rtol=1e-5)


def test_nan_where_nothing_counts_spoils_neither_loss_nor_gradient():
    tensors = case(0)
    for name in ("logprobs", "values", "returns", "entropy", "advantages"):
        tensors[name][~tensors["mask"]] = float("nan")
    for name in ("logprobs", "values", "entropy"):
        tensors[name].requires_grad_()

    loss, _ = fused_ppo_loss(**tensors, config=PPOConfig())
    loss.backward()

    assert loss.isfinite()
    for name in ("logprobs", "values", "entropy"):
        assert tensors[name].grad.isfinite().all()
        assert (tensors[name].grad[~tensors["mask"]] == 0).all()


@pytest.mark.parametrize("clip_vloss", [True, False])
def test_arrays_on_the_host_and_tensors_on_a_device_give_the_same(clip_vloss: bool):
    config, tensors = PPOConfig(clip_coef=0.2, vf_clip_coef=0.5, clip_vloss=clip_vloss, ent_coef=0.03), case(0)
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}

    by_torch = gradients_and_sums(**tensors, config=config)
    by_numpy = gradients_and_sums(**arrays, config=config)

    for one, other in zip(by_torch, by_numpy, strict=True):
        assert other.dtype == "float32"
        torch.testing.assert_close(torch.from_numpy(other), one, atol=1e-5, rtol=1e-5)
