"""All environments in this process, stepped inside ``send``: simplest to debug, fastest for cheap ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metta_ray.common.errors import CheckpointError, ConfigError
from metta_ray.envs.env_batch import SeedRoot
from metta_ray.envs.grouped_vecenv import GroupedVecEnv
from metta_ray.envs.registry import EnvFactory
from metta_ray.envs.tasks import Curriculum, EpisodeResult, TaskTable


class SerialVecEnv(GroupedVecEnv):
    """One group of ``num_envs`` environments."""

    def __init__(
        self,
        factory: EnvFactory,
        num_envs: int = 1,
        *,
        curriculum: Curriculum | None = None,
        rank: int = 0,
        zero_copy: bool = False,
    ) -> None:
        if num_envs < 1:
            raise ConfigError(f"num_envs={num_envs} leaves nothing to step; use at least 1")
        self._batch = factory.build(num_envs)
        self._step_results: list[EpisodeResult] = []
        super().__init__(
            self._batch.spec,
            self._batch.arrays,
            num_envs=num_envs,
            num_groups=1,
            curriculum=curriculum,
            rank=rank,
            zero_copy=zero_copy,
            in_fixed_order=True,
        )

    def _reset_batches(self, seeds: SeedRoot, table: TaskTable | None) -> None:
        if table is not None:
            self._batch.set_tasks(table)
        self._batch.reset(seeds)

    def _start_step(self, group: int, table: TaskTable | None) -> None:
        if table is not None:
            self._batch.set_tasks(table)
        self._step_results = self._batch.step()

    def _finish_step(self, candidates: Sequence[int]) -> tuple[int, list[EpisodeResult]]:
        return candidates[0], self._step_results

    def _snapshot_batches(self) -> list[dict[str, Any]]:
        return [self._batch.snapshot()]

    def _restore_batches(self, states: list[dict[str, Any]], table: TaskTable | None) -> None:
        if len(states) != 1:
            raise CheckpointError(
                f"saved by {len(states)} workers, restored into 1 process; resume with vectorization "
                f"'multiprocessing' and num_workers={len(states)}"
            )
        if table is not None:
            self._batch.set_tasks(table)
        self._batch.restore(states[0])

    def _release(self, patience_s: float) -> None:
        self._batch.close()
