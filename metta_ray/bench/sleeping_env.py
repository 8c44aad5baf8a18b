"""An environment that takes its time without using the processor, so that many fit on a small machine."""

from __future__ import annotations

import time
from typing import Any

import gymnasium
import numpy as np

EPISODE_STEPS = 50


class SleepingEnv(gymnasium.Env[Any, Any]):
    """step_s: how long a step sleeps."""

    action_space = gymnasium.spaces.Discrete(2)
    observation_space = gymnasium.spaces.Box(-1, 1, (4,), np.float32)

    def __init__(self, step_s: float = 0.004) -> None:
        self._step_s = step_s
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        return np.zeros(4, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        time.sleep(self._step_s)
        self._steps += 1
        return np.zeros(4, np.float32), 1.0, False, self._steps >= EPISODE_STEPS, {}
