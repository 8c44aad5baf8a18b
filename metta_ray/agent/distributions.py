"""Action distributions: categorical, several categoricals at once, and a diagonal Gaussian.

Shapes: N rows, A choices, K action components.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

# Stands in for -inf where a probability of 0 is multiplied by its logarithm: 0 · -inf would be nan.
LOG_ZERO = -1e30


class ActionDistribution(Protocol):
    """log_probs: ``(N, A)`` of all choices; ``(N, 0)`` where there are uncountably many."""

    log_probs: Tensor

    def sample(self, generator: Generator | None = None) -> Tensor:
        """Actions ``(N, …)``, int32 or float32, drawn with ``generator`` (None: torch's default one)."""
        ...

    def log_prob(self, action: Tensor) -> Tensor:
        """``(N,)``"""
        ...

    def entropy(self) -> Tensor:
        """``(N,)``"""
        ...


class Categorical:
    """One of A choices. logits ``(N, A)`` float32; a logit of -inf is never drawn."""

    def __init__(self, logits: Tensor) -> None:
        self.log_probs = torch.log_softmax(logits, dim=-1)

    @cached_property
    def _probs(self) -> Tensor:
        return self.log_probs.exp()

    def sample(self, generator: Generator | None = None) -> Tensor:
        probs = self._probs.detach()
        if probs.is_cpu and not torch.compiler.is_compiling():
            return torch.from_numpy(draw_on_host(probs.numpy(), generator))
        sums = probs.cumsum(dim=-1, dtype=torch.float64)
        uniform = torch.rand(len(probs), 1, generator=generator, device=probs.device)
        return (sums > uniform * sums[:, -1:]).int().argmax(dim=-1).to(torch.int32)

    def log_prob(self, action: Tensor) -> Tensor:
        return self.log_probs.gather(-1, action.long().unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        return -(self._probs * self.log_probs.clamp_min(LOG_ZERO)).sum(dim=-1)


def draw_on_host(weights: NDArray[np.float32], generator: Generator | None) -> NDArray[np.int32]:
    """``(N,)`` choices with probabilities in proportion to ``(N, A)`` weights, by inversion: the first choice up to
    which the weights sum up to more than a uniform part of their whole sum."""
    uniform = torch.rand(len(weights), 1, generator=generator).numpy()
    sums = np.add.accumulate(weights, axis=-1, dtype=np.float64)  # in which a part stays below the whole
    chosen: NDArray[np.int32] = (sums > uniform * sums[:, -1:]).argmax(axis=-1).astype(np.int32)
    return chosen


class MultiCategorical:
    """Independent choices: component k has ``sizes[k]`` of the logits ``(N, Σ sizes)``; actions ``(N,
    K)``.
    """

    def __init__(self, logits: Tensor, sizes: Sequence[int]) -> None:
        self.parts = [Categorical(part) for part in torch.split(logits, list(sizes), dim=-1)]
        self.log_probs = torch.cat([part.log_probs for part in self.parts], dim=-1)

    def sample(self, generator: Generator | None = None) -> Tensor:
        return torch.stack([part.sample(generator) for part in self.parts], dim=-1)

    def log_prob(self, action: Tensor) -> Tensor:
        chosen = [part.log_prob(action[..., k]) for k, part in enumerate(self.parts)]
        return torch.stack(chosen).sum(dim=0)

    def entropy(self) -> Tensor:
        return torch.stack([part.entropy() for part in self.parts]).sum(dim=0)


class DiagonalGaussian:
    """K independent normals. mean ``(N, K)``, log_std ``(K,)``; densities are of the action before any
    clipping.
    """

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self.mean = mean
        self.log_std = log_std.expand_as(mean)
        self.log_probs = mean.new_empty((mean.shape[0], 0))

    def sample(self, generator: Generator | None = None) -> Tensor:
        noise = torch.empty_like(self.mean).normal_(generator=generator)
        return (self.mean + self.log_std.exp() * noise).detach()

    def log_prob(self, action: Tensor) -> Tensor:
        z = (action - self.mean) / self.log_std.exp()
        return (-0.5 * z.square() - self.log_std - 0.5 * math.log(2 * math.pi)).sum(dim=-1)

    def entropy(self) -> Tensor:
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(dim=-1)
