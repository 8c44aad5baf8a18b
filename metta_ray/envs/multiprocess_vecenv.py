"""Environments in worker processes over shared memory, in groups that step while the policy works on another.

A step costs one small message each way per worker; observations are written where the policy reads them.
Nobody spins: on machines whose cores are all in use a waiting process must sleep.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from metta_ray.common.errors import CheckpointError, ConfigError
from metta_ray.envs import shared_arrays
from metta_ray.envs.env_batch import BatchArrays, SeedRoot
from metta_ray.envs.grouped_vecenv import GroupedVecEnv
from metta_ray.envs.registry import EnvFactory
from metta_ray.envs.tasks import Curriculum, EpisodeResult, TaskTable
from metta_ray.envs.worker_main import Assignment
from metta_ray.envs.worker_process import WorkerProcess


class MultiprocessVecEnv(GroupedVecEnv):
    """``num_envs / batch_size`` groups, each of ``num_workers / groups`` processes.

    step_timeout_s: longest wait for a step; a worker that is silent for longer is a fault that names it and
    shows its stack. start_timeout_s: the same for building, resetting, saving and restoring.
    """

    def __init__(
        self,
        factory: EnvFactory,
        num_envs: int,
        *,
        num_workers: int,
        batch_size: int | None = None,
        curriculum: Curriculum | None = None,
        rank: int = 0,
        zero_copy: bool = True,
        in_fixed_order: bool = True,
        step_timeout_s: float = 120.0,
        start_timeout_s: float = 300.0,
    ) -> None:
        batch_size = num_envs if batch_size is None else batch_size
        check_sizes(num_envs, batch_size, num_workers)
        if min(step_timeout_s, start_timeout_s) <= 0:
            raise ConfigError(f"step_timeout_s={step_timeout_s}, start_timeout_s={start_timeout_s}: must be > 0")
        spec = factory.spec()
        memory_fd, arrays = shared_arrays.create(spec, num_envs * spec.agents_per_env)
        num_groups = num_envs // batch_size
        super().__init__(
            spec,
            arrays,
            num_envs=num_envs,
            num_groups=num_groups,
            curriculum=curriculum,
            rank=rank,
            zero_copy=zero_copy,
            in_fixed_order=in_fixed_order,
        )
        self._step_timeout_s = step_timeout_s
        self._start_timeout_s = start_timeout_s
        self._workers: list[WorkerProcess] = []
        self._poll = select.poll()
        try:
            self._guarded(self._start_workers, factory, num_workers, memory_fd)
        finally:
            os.close(memory_fd)
        per_group = num_workers // num_groups
        self._groups = [self._workers[i : i + per_group] for i in range(0, num_workers, per_group)]

    @property
    def worker_pids(self) -> list[int]:
        return [worker.pid for worker in self._workers]

    def _start_workers(self, factory: EnvFactory, num_workers: int, memory_fd: int) -> None:
        layout = BatchArrays.shapes(self.driver_env, self.num_agents)
        envs_each = self.num_envs // num_workers
        for index in range(num_workers):
            assignment = Assignment(factory, layout, envs_each, index * envs_each, self.driver_env.agents_per_env)
            self._workers.append(WorkerProcess(index, assignment, memory_fd))
        self._worker_at = {worker.fileno(): worker for worker in self._workers}
        for fd in self._worker_at:
            self._poll.register(fd, select.POLLIN)
        self._await_all(self._workers, self._start_timeout_s, "start_timeout_s")

    # How a group is stepped.

    def _reset_batches(self, seeds: SeedRoot, table: TaskTable | None) -> None:
        self._command_all("reset", lambda worker: (table, seeds))

    def _start_step(self, group: int, table: TaskTable | None) -> None:
        for worker in self._groups[group]:
            if table is None:
                worker.step()
            else:
                worker.command("step", table)

    def _finish_step(self, candidates: Sequence[int]) -> tuple[int, list[EpisodeResult]]:
        deadline = time.monotonic() + self._step_timeout_s
        while True:
            for group in candidates:
                if not any(worker.is_waiting for worker in self._groups[group]):
                    return group, [result for worker in self._groups[group] for result in worker.results]
            awaited = [worker for group in candidates for worker in self._groups[group]]
            self._read_answers(awaited, deadline, self._step_timeout_s, "step_timeout_s")

    def _snapshot_batches(self) -> list[dict[str, Any]]:
        return self._command_all("snapshot")

    def _restore_batches(self, states: list[dict[str, Any]], table: TaskTable | None) -> None:
        if len(states) != len(self._workers):
            raise CheckpointError(
                f"saved by {len(states)} worker processes, restored into {len(self._workers)}; resume with "
                f"num_workers={len(states)}"
            )
        self._command_all("restore", lambda worker: (table, states[worker.index]))

    def _release(self, patience_s: float) -> None:
        for worker in self._workers:
            worker.ask_to_end()
        deadline = time.monotonic() + patience_s
        for worker in self._workers:
            worker.end(deadline)

    # Waiting.

    def _command_all(self, name: str, argument_of: Callable[[WorkerProcess], Any] | None = None) -> list[Any]:
        for worker in self._workers:
            worker.command(name, argument_of(worker) if argument_of else None)
        self._await_all(self._workers, self._start_timeout_s, "start_timeout_s")
        return [worker.value for worker in self._workers]

    def _await_all(self, workers: Sequence[WorkerProcess], timeout_s: float, setting: str) -> None:
        deadline = time.monotonic() + timeout_s
        while any(worker.is_waiting for worker in workers):
            self._read_answers(workers, deadline, timeout_s, setting)

    def _read_answers(self, awaited: Iterable[WorkerProcess], deadline: float, timeout_s: float, setting: str) -> None:
        """Sleeps until some worker answers or ends (any: a death elsewhere should not wait for its turn)."""
        ready = self._poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        for fd, _ in ready:
            self._worker_at[fd].read_answer()
        if not ready:
            raise next(worker for worker in awaited if worker.is_waiting).silence(timeout_s, setting)


def check_sizes(num_envs: int, batch_size: int, num_workers: int) -> None:
    """ConfigError unless workers divide the environments evenly, and groups the workers."""
    for name, value in (("num_envs", num_envs), ("batch_size", batch_size), ("num_workers", num_workers)):
        if value < 1:
            raise ConfigError(f"{name}={value} leaves nothing to step; use at least 1")
    if num_envs % num_workers:
        raise ConfigError(
            f"num_envs={num_envs} is not a multiple of num_workers={num_workers}; "
            f"nearest: {_nearest_multiples(num_envs, num_workers)}"
        )
    if num_envs % batch_size:
        divisors = [size for size in range(1, num_envs + 1) if num_envs % size == 0]
        nearest = sorted(sorted(divisors, key=lambda size: abs(size - batch_size))[:2])
        raise ConfigError(
            f"num_envs={num_envs} is not a multiple of batch_size={batch_size} (environments per recv); "
            f"nearest batch_size: {' or '.join(map(str, nearest))}"
        )
    envs_per_worker = num_envs // num_workers
    if batch_size % envs_per_worker:
        raise ConfigError(
            f"batch_size={batch_size} is not a multiple of the {envs_per_worker} environments per worker "
            f"(num_envs={num_envs} / num_workers={num_workers}), so a worker would belong to two groups; "
            f"nearest batch_size: {_nearest_multiples(batch_size, envs_per_worker)}, or num_workers a "
            f"multiple of the {num_envs // batch_size} groups"
        )


def _nearest_multiples(value: int, base: int) -> str:
    below = value // base * base
    return " or ".join(str(multiple) for multiple in (below, below + base) if multiple > 0)
