"""Several vecenvs stepped together, as the rollout workers of a run would be, in one process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metta_ray.common.errors import UsageError
from metta_ray.envs.grouped_vecenv import GroupedVecEnv
from metta_ray.envs.vecenv import Received, VecEnv


class LockStep(VecEnv):
    """Rows of the first vecenv, then those of the second, and so on; all of one group and alike. Each keeps its own
    curriculum, or they share one: that is where their outcomes go."""

    def __init__(self, parts: Sequence[GroupedVecEnv]) -> None:
        if any(part.num_groups != 1 for part in parts):
            raise UsageError("vecenvs of several groups cannot be stepped together; make them serial")
        self.parts = list(parts)
        self.driver_env = self.parts[0].driver_env
        self.num_envs = sum(part.num_envs for part in self.parts)
        self.num_agents = self.agents_per_batch = sum(part.num_agents for part in self.parts)
        self.curriculum = None
        self._starts = np.cumsum([0, *(part.num_agents for part in self.parts)])

    def async_reset(self, seed: int | None = None) -> None:
        for part in self.parts:
            part.async_reset(seed)

    def recv(self) -> Received:
        received = [part.recv() for part in self.parts]
        return Received(
            obs=np.concatenate([one.obs for one in received]),
            rewards=np.concatenate([one.rewards for one in received]),
            terminals=np.concatenate([one.terminals for one in received]),
            truncations=np.concatenate([one.truncations for one in received]),
            infos=[info for one in received for info in one.infos],
            env_ids=np.arange(self.num_agents, dtype=np.int64),
            masks=np.concatenate([one.masks for one in received]),
        )

    def send(self, actions: NDArray[Any]) -> None:
        for part, start, end in zip(self.parts, self._starts[:-1], self._starts[1:], strict=True):
            part.send(actions[start:end])

    def hold(self) -> None:
        for part in self.parts:
            part.hold()

    def pin_tasks(self) -> None:
        for part in self.parts:
            part.pin_tasks()

    @property
    def final_obs(self) -> NDArray[Any]:
        return np.concatenate([part.final_obs for part in self.parts])

    def snapshot(self) -> dict[str, Any]:
        return {"parts": [part.snapshot() for part in self.parts]}

    def restore(self, state: dict[str, Any]) -> None:
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.restore(saved)

    def close(self) -> None:
        for part in self.parts:
            part.close()
