"""Environments as a user would write them, in a module of their own; they count their steps beside the service."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import oracle
from gymnasium.envs.classic_control import CartPoleEnv


class CartPole(CartPoleEnv):
    """An episode of at most 50 steps. step_s: how long a step takes at least."""

    def __init__(self, step_s: float = 0.0) -> None:
        super().__init__()
        self._step_s = step_s
        self._age = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self._age = 0
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        fault = oracle.reached("env.step")
        if self._step_s:
            time.sleep(self._step_s)
        observation, reward, terminated, truncated, info = super().step(action)
        oracle.count(1)
        self._age += 1
        if fault == "nan":
            observation = np.full_like(observation, np.nan)
        return observation, reward, terminated, truncated or self._age >= 50, info
