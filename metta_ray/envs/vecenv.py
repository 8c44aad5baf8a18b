"""The asynchronous face of many environments: ``recv`` a group's results, ``send`` its next actions.

One or more groups of environments are in flight. ``recv`` yields a group that is ready, ``send`` gives it its
actions; the two strictly alternate. Arrays from ``recv`` may alias memory that the environments overwrite
after ``send``: copy what must live longer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metta_ray.envs.env_spec import EnvSpec
from metta_ray.envs.tasks import Curriculum


class Received(NamedTuple):
    """What ``recv`` returns; n = ``agents_per_batch`` rows.

    obs ``(n, *obs_shape)``; rewards float32, terminals, truncations, masks bool: ``(n,)``;
    infos: one nested dict per episode that ended; env_ids: int64 ``(n,)``, contiguous agent rows.
    """

    obs: NDArray[Any]
    rewards: NDArray[np.float32]
    terminals: NDArray[np.bool_]
    truncations: NDArray[np.bool_]
    infos: list[dict[str, Any]]
    env_ids: NDArray[np.int64]
    masks: NDArray[np.bool_]


class VecEnv(ABC):
    """Environments as rows of agents, grouped into batches of ``agents_per_batch`` rows.

    driver_env: the spec; num_envs, num_agents: over all groups; agents_per_batch: rows of one ``recv``.
    curriculum: who chooses tasks (None for environments without tasks); it hears of every reported episode
    during ``recv``, and a changed task table goes out with the next ``send`` of each group (see ``pin_tasks``).
    """

    driver_env: EnvSpec
    num_envs: int
    num_agents: int
    agents_per_batch: int
    curriculum: Curriculum | None

    @abstractmethod
    def async_reset(self, seed: int | None = None) -> None:
        """Starts all environments; ``seed`` None draws one. Afterwards every group can be received."""

    @abstractmethod
    def recv(self) -> Received:
        """Waits for a group. UsageError if the group received last was neither sent nor held."""

    @abstractmethod
    def send(self, actions: NDArray[Any]) -> None:
        """Actions ``(n, *action_shape)`` for the group received last. UsageError without one."""

    @abstractmethod
    def hold(self) -> None:
        """Sets the group received last aside, unanswered. ``recv`` passes over held groups until every group
        is held; then all may be received again, in the order of holding and with empty infos. So a rollout
        can look at the state after its last action (a bootstrap value) without acting on it."""

    @abstractmethod
    def pin_tasks(self) -> None:
        """Until the next call, new episodes draw from the table as it is now. Called at the start of each rollout,
        it makes a rollout a function of what was known then, wherever its environments run."""

    @property
    @abstractmethod
    def final_obs(self) -> NDArray[Any]:
        """``(n, *obs_shape)`` of the group received last; rows are valid where an episode just ended."""

    @abstractmethod
    def snapshot(self) -> dict[str, Any]:
        """State of all environments and of the seeds; waits for groups in flight, which count as held.
        (The curriculum has its own ``state_dict``.)"""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Continues from ``snapshot``: every group can be received, in the snapshot's order."""

    @abstractmethod
    def close(self) -> None:
        """Ends worker processes and frees memory. Safe to call twice."""

    def __enter__(self) -> VecEnv:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
