"""A batch of environments that one process steps together, on one set of arrays.

Rows are agents; the rows of one environment are contiguous. ``step`` reads ``actions`` and overwrites the
other arrays; nothing is allocated per step and only finished episodes are returned.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metta_ray.envs.env_spec import EnvSpec
from metta_ray.envs.tasks import EpisodeResult, TaskTable


@dataclass
class BatchArrays:
    """The arrays of a batch of ``rows`` agents. They may live in shared memory.

    obs: ``(rows, *obs_shape)``, the observation to act on. After an episode's end it already is the first
        of the next one (same-step reset), and ``final_obs`` holds the true last one in those rows.
    rewards: float32 ``(rows,)``, for the action before. terminals, truncations: bool ``(rows,)``: the action
        before ended the episode by its task / by a limit. masks: bool ``(rows,)``: False where the transition
        must not be learned from (an environment that was rebuilt after a fault).
    actions: ``(rows, *action_shape)``, int32 or float32.
    """

    obs: NDArray[Any]
    final_obs: NDArray[Any]
    rewards: NDArray[np.float32]
    terminals: NDArray[np.bool_]
    truncations: NDArray[np.bool_]
    masks: NDArray[np.bool_]
    actions: NDArray[Any]

    @staticmethod
    def shapes(spec: EnvSpec, rows: int) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Field → (shape, dtype), so that shared memory can be laid out without building a batch."""
        flag = np.dtype(np.bool_)
        return {
            "obs": ((rows, *spec.obs_shape), spec.obs_dtype),
            "final_obs": ((rows, *spec.obs_shape), spec.obs_dtype),
            "rewards": ((rows,), np.dtype(np.float32)),
            "terminals": ((rows,), flag),
            "truncations": ((rows,), flag),
            "masks": ((rows,), flag),
            "actions": ((rows, *spec.action_shape), spec.action_dtype),
        }

    @classmethod
    def allocate(cls, spec: EnvSpec, rows: int) -> BatchArrays:
        return cls(**{name: np.zeros(shape, dtype) for name, (shape, dtype) in cls.shapes(spec, rows).items()})

    def rows(self, start: int, stop: int) -> BatchArrays:
        """Views of some rows, without copies."""
        return BatchArrays(**{name: array[start:stop] for name, array in vars(self).items()})


@dataclass(frozen=True)
class SeedRoot:
    """Where the randomness of a run's environments comes from.

    The stream of episode ``e`` of environment ``i`` is ``SeedSequence(run_seed, spawn_key=(rank, i, e))``:
    no two episodes of a run share one, on any rank or worker, and a restored run continues the numbering.
    """

    run_seed: int
    rank: int = 0

    def episode(self, env_index: int, episode: int) -> np.random.SeedSequence:
        return np.random.SeedSequence(self.run_seed, spawn_key=(self.rank, env_index, episode))


class EnvBatch(ABC):
    """Environments ``first_env … first_env + num_envs - 1`` of a vecenv, stepped together.

    Subclasses take ``arrays`` (allocated by whoever owns the memory) and bind to them.
    """

    spec: EnvSpec
    num_envs: int
    first_env: int
    arrays: BatchArrays

    @property
    def num_agents(self) -> int:
        return self.num_envs * self.spec.agents_per_env

    @abstractmethod
    def reset(self, seeds: SeedRoot) -> None:
        """Starts episode 0 of every environment: fills ``obs``; rewards and end flags are 0, masks True."""

    @abstractmethod
    def step(self) -> list[EpisodeResult]:
        """Applies ``arrays.actions``; returns the episodes that ended, which have been started anew."""

    def set_tasks(self, table: TaskTable) -> None:
        """Later episodes draw from this table. Environments without tasks ignore it."""
        del table

    @abstractmethod
    def snapshot(self) -> dict[str, Any]:
        """All that is needed to continue exactly: per environment the episode's number, task, and actions so
        far, and copies of rewards, flags and masks. A tree of dicts and lists with str keys, JSON scalars
        and numpy arrays as leaves."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Brings a fresh batch to the state of ``snapshot`` by starting the same episodes and replaying their
        actions. ``reset`` need not have been called. Raises CheckpointError where the replay cannot fit."""

    @abstractmethod
    def close(self) -> None: ...
