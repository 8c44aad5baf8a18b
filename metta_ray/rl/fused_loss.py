"""The PPO loss and its gradient in one node of the graph: for a small network, autograd over the plain formula
(``losses.ppo_loss``, the same numbers) takes as long as the network itself.

Letters: S segments of a minibatch, T steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from metta_ray.rl.losses import PPOTerms
from metta_ray.rl.trainer_config import PPOConfig


def fused_ppo_loss(
    *,
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    entropy: Tensor,
    mask: Tensor,
    count: Tensor | float,
    config: PPOConfig,
) -> tuple[Tensor, PPOTerms]:
    """L_π + vf_coef·L_V - ent_coef·H, a scalar with gradient, and the terms of ``losses.ppo_loss`` as numbers."""
    loss, sums = _FusedLoss.apply(  # type: ignore[no-untyped-call]
        logprobs, values, entropy, old_logprobs, advantages, old_values, returns, mask, count, config
    )
    policy_loss, squared_error, *others = sums.tolist()
    return loss, PPOTerms(policy_loss, 0.5 * squared_error, *others)


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logprobs: Tensor,
        values: Tensor,
        entropy: Tensor,
        old_logprobs: Tensor,
        advantages: Tensor,
        old_values: Tensor,
        returns: Tensor,
        mask: Tensor,
        count: Tensor | float,
        config: PPOConfig,
    ) -> tuple[Tensor, Tensor]:
        log_ratio = logprobs - old_logprobs
        ratio = log_ratio.exp()
        clipped_ratio = ratio.clamp(1 - config.clip_coef, 1 + config.clip_coef)
        costs = advantages.neg()
        unclipped, clipped = costs * ratio, costs * clipped_ratio
        policy_loss = torch.max(unclipped, clipped)
        by_logprobs = unclipped.masked_fill_(clipped > unclipped, 0.0)  # what is clipped is a constant

        error = values - returns
        squared_error = error.square()
        if config.clip_vloss:
            moved = values - old_values
            clipped_error = error - (moved - moved.clamp(-config.vf_clip_coef, config.vf_clip_coef))
            clipped_square = clipped_error.square_()
            error.masked_fill_(clipped_square > squared_error, 0.0)
            squared_error = torch.max(squared_error, clipped_square)

        loss = torch.add(policy_loss, squared_error, alpha=0.5 * config.vf_coef).sub_(entropy, alpha=config.ent_coef)
        kl = log_ratio.expm1().sub_(log_ratio)
        is_clipped = (ratio != clipped_ratio).float()
        terms = [policy_loss, squared_error, entropy, kl, is_clipped, ratio, logprobs]
        gradients = [by_logprobs, error.mul_(config.vf_coef), torch.full_like(error, -config.ent_coef)]
        rows = torch.stack([*gradients, loss, *terms]).masked_fill_(~mask, 0.0).div_(count)
        ctx.save_for_backward(rows[:3])
        sums = rows[3:].sum(dim=(1, 2))
        means = sums[1:]
        ctx.mark_non_differentiable(means)
        return sums[0], means

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (gradients,) = ctx.saved_tensors
        return (*(gradients * of_loss).unbind(), *[None] * 7)
