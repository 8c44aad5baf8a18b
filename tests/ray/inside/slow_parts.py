"""An environment and a network of a user's that are slow when a test wants it, one part at a time:
``$ORACLE_ROOT/slow-environments`` holds the seconds that a step of an environment then takes longer."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import numpy as np
import oracle
import oracle_envs
import torch
from gymnasium.spaces import Box
from torch import nn

PARTS = ("environments", "inference", "learner")


def be_slow(part: str) -> None:
    with suppress(FileNotFoundError):  # a test may remove it at any moment
        time.sleep(float((oracle.ROOT / f"slow-{part}").read_text() or 0))


class CartPole(oracle_envs.CartPole):
    def step(self, action: Any) -> Any:
        be_slow("environments")
        return super().step(action)


class Wide(CartPole):
    """Observations of 1 kB."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = Box(-np.inf, np.inf, (256,), np.float32)

    def reset(self, **options: Any) -> Any:
        observation, info = super().reset(**options)
        return np.tile(observation, 64), info

    def step(self, action: Any) -> Any:
        observation, *rest = super().step(action)
        return np.tile(observation, 64), *rest


class Network(nn.Module):
    """Knows by its gradients which side it is on."""

    def __init__(self, spec: Any, config: Any) -> None:
        super().__init__()
        self.feature_size = 32
        self.layer = nn.Linear(*spec.obs_shape, self.feature_size)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        be_slow("learner" if torch.is_grad_enabled() else "inference")
        return torch.tanh(self.layer(obs.float()))
