"""The PPO loss as a function of tensors, and the sums that describe one epoch of training.

Letters: S segments of a minibatch, T steps.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from metta_ray.rl.trainer_config import PPOConfig


@dataclass
class PPOTerms:
    """Scalars of one minibatch. Only ``policy_loss``, ``value_loss`` and ``entropy`` carry gradients, if any does."""

    policy_loss: Tensor | float
    value_loss: Tensor | float
    entropy: Tensor | float
    approx_kl: Tensor | float
    clipfrac: Tensor | float
    importance: Tensor | float
    current_logprobs: Tensor | float


def ppo_loss(
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
) -> PPOTerms:
    """Clipped surrogate, clipped value loss and entropy (Schulman et al. 2017, eq. 7 and 9).

    All tensors float32 ``(S, T)``, ``mask`` bool. Sums run over masked elements and are divided by ``count``:
    the number of masked elements, or under several ranks their total divided by the number of ranks, so that
    averaging gradients over ranks gives the gradient of one process with all data.

        L_π = mean max(-A·ratio, -A·clip(ratio, 1-ε, 1+ε))
        L_V = ½ mean max((V-R)², (V_old + clip(V-V_old, ±ε_v) - R)²)
    """
    # Zeros where nothing counts, before anything is computed: a NaN there would spoil the gradient elsewhere.
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0.0)
    ratio = log_ratio.exp()
    clipped_ratio = ratio.clamp(1 - config.clip_coef, 1 + config.clip_coef)
    policy_loss = torch.max(-advantages * ratio, -advantages * clipped_ratio)

    values = torch.where(mask, values, returns)
    value_loss = (values - returns) ** 2
    if config.clip_vloss:
        limit = config.vf_clip_coef
        clipped_values = old_values + (values - old_values).clamp(-limit, limit)
        value_loss = torch.max(value_loss, (clipped_values - returns) ** 2)

    def mean(x: Tensor) -> Tensor:
        return torch.where(mask, x, 0.0).sum() / count

    with torch.no_grad():
        # The low-variance estimator k3 of Schulman's note "Approximating KL divergence".
        approx_kl = mean((ratio - 1) - log_ratio)
        clipfrac = mean(((ratio - 1).abs() > config.clip_coef).float())
        importance = mean(ratio)
        current_logprobs = mean(logprobs)
    return PPOTerms(
        policy_loss=mean(policy_loss),
        value_loss=0.5 * mean(value_loss),
        entropy=mean(entropy),
        approx_kl=approx_kl,
        clipfrac=clipfrac,
        importance=importance,
        current_logprobs=current_logprobs,
    )


@dataclass
class Losses:
    """Sums over the minibatches of one epoch; ``stats`` gives their means."""

    policy_loss_sum: float = 0.0
    value_loss_sum: float = 0.0
    entropy_sum: float = 0.0
    approx_kl_sum: float = 0.0
    clipfrac_sum: float = 0.0
    l2_reg_loss_sum: float = 0.0
    l2_init_loss_sum: float = 0.0
    ks_action_loss_sum: float = 0.0
    ks_value_loss_sum: float = 0.0
    importance_sum: float = 0.0
    current_logprobs_sum: float = 0.0
    explained_variance: float = 0.0
    minibatches_processed: int = 0

    def zero(self) -> None:
        """Starts a new epoch."""
        self.__init__()  # type: ignore[misc]

    def add(self, **terms: Tensor | float) -> None:
        """Counts one minibatch: ``add(policy_loss=…, entropy=…)``. One device transfer for all terms."""
        tensors = {name: term.detach().float() for name, term in terms.items() if isinstance(term, Tensor)}
        numbers = torch.stack(list(tensors.values())).tolist() if tensors else []
        for name, value in {**terms, **dict(zip(tensors, numbers, strict=True))}.items():
            setattr(self, f"{name}_sum", getattr(self, f"{name}_sum") + value)
        self.minibatches_processed += 1

    def stats(self) -> dict[str, float]:
        """Means per minibatch under their usual names, and ``explained_variance``."""
        count = max(1, self.minibatches_processed)
        sums = {f.name.removesuffix("_sum"): getattr(self, f.name) for f in fields(self) if f.name.endswith("_sum")}
        means = {name: total / count for name, total in sums.items()}
        return means | {"explained_variance": self.explained_variance}


@torch.no_grad()
def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over masked elements ``(S, T)``; 0 where returns do not vary."""
    errors, targets = (returns - values)[mask], returns[mask]
    if targets.numel() < 2:
        return 0.0
    variance = targets.var()
    return float(1 - errors.var() / variance) if variance > 0 else 0.0
