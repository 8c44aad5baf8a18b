"""The PPO loss and its gradient in one node of the graph: for a small network, autograd over the plain formula
(``losses.ppo_loss``, the same numbers) takes as long as the network itself.

Letters: S segments of a minibatch, T steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from metta_ray.rl.arrays import Array, as_tensor, library_of, native, quietly
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
        with quietly():
            gradients, sums = gradients_and_sums(
                native(logprobs),
                native(values),
                native(entropy),
                native(old_logprobs),
                native(advantages),
                native(old_values),
                native(returns),
                native(mask),
                native(count) if isinstance(count, Tensor) else count,
                config,
            )
        loss, means = as_tensor(sums[:1])[0], as_tensor(sums[1:])
        ctx.save_for_backward(as_tensor(gradients))
        ctx.mark_non_differentiable(means)
        return loss, means

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (gradients,) = ctx.saved_tensors
        return (*(gradients * of_loss).unbind(), *[None] * 7)


def gradients_and_sums(
    logprobs: Array,
    values: Array,
    entropy: Array,
    old_logprobs: Array,
    advantages: Array,
    old_values: Array,
    returns: Array,
    mask: Array,
    count: Array | float,
    config: PPOConfig,
) -> tuple[Array, Array]:
    """Of ``arrays.native`` arrays: gradients by logprobs, values and entropy ``(3, S, T)``; loss, L_π, 2·L_V and the
    other terms of ``PPOTerms`` in order ``(8,)``."""
    xp = library_of(logprobs)
    log_ratio = logprobs - old_logprobs
    ratio = xp.exp(log_ratio)
    clipped_ratio = ratio.clip(1 - config.clip_coef, 1 + config.clip_coef)
    unclipped, clipped = -advantages * ratio, -advantages * clipped_ratio
    policy_loss = xp.maximum(unclipped, clipped)
    by_logprobs = xp.where(clipped > unclipped, 0.0, unclipped)  # what is clipped is a constant

    error = values - returns
    squared_error = xp.square(error)
    if config.clip_vloss:
        moved = values - old_values
        clipped_square = xp.square(error - (moved - moved.clip(-config.vf_clip_coef, config.vf_clip_coef)))
        error = xp.where(clipped_square > squared_error, 0.0, error)
        squared_error = xp.maximum(squared_error, clipped_square)

    loss = policy_loss + (0.5 * config.vf_coef) * squared_error - config.ent_coef * entropy
    kl = xp.expm1(log_ratio) - log_ratio
    is_clipped = xp.asarray(ratio != clipped_ratio, dtype=xp.float32)
    terms = [policy_loss, squared_error, entropy, kl, is_clipped, ratio, logprobs]
    gradients = [by_logprobs, config.vf_coef * error, xp.full_like(error, -config.ent_coef)]
    rows = xp.where(mask, xp.stack([*gradients, loss, *terms]), 0.0) / count
    return rows[:3], rows[3:].sum(axis=(1, 2))
