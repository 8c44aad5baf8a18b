"""The actions of a batch since each environment's episode began: what an exact replay needs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class ActionLog:
    """One growing block of steps for the whole batch, so that a step is recorded with one copy.

    Memory is bounded by the longest running episode: steps older than every episode's start are dropped.
    """

    def __init__(self, actions: NDArray[Any], capacity_steps: int = 256) -> None:
        """``actions`` ``(environments, …)`` gives shape and dtype of one step."""
        self._steps = np.empty((capacity_steps, *actions.shape), actions.dtype)
        self._length = 0
        self._starts = [0] * len(actions)

    def append(self, actions: NDArray[Any]) -> None:
        if self._length == len(self._steps):
            self._make_room()
        self._steps[self._length] = actions
        self._length += 1

    def start_episode(self, env: int) -> None:
        self._starts[env] = self._length

    def of(self, env: int) -> NDArray[Any]:
        """A copy of the actions of one environment's running episode, ``(steps, …)``."""
        return self._steps[self._starts[env] : self._length, env].copy()

    def length_of(self, env: int) -> int:
        """Steps of the environment's running episode so far."""
        return self._length - self._starts[env]

    @classmethod
    def of_episodes(cls, actions: NDArray[Any], episodes: list[NDArray[Any]]) -> ActionLog:
        """The log that holds these running episodes (the inverse of ``of`` for every environment)."""
        length = max(map(len, episodes), default=0)
        log = cls(actions, capacity_steps=max(256, 2 * length))
        log._length = length
        log._starts = [length - len(episode) for episode in episodes]
        for env, episode in enumerate(episodes):
            log._steps[length - len(episode) : length, env] = episode
        return log

    def _make_room(self) -> None:
        """Drops what no running episode needs; doubles the block where that frees less than half."""
        oldest = min(self._starts)
        kept = self._steps[oldest : self._length]
        is_tight = 2 * len(kept) > len(self._steps)
        block = np.empty((len(self._steps) * (2 if is_tight else 1), *kept.shape[1:]), kept.dtype)
        block[: len(kept)] = kept
        self._steps, self._length = block, len(kept)
        self._starts = [start - oldest for start in self._starts]
