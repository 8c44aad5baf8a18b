"""The turns of ``recv``, ``send`` and ``hold``, the same for every vecenv; subclasses step a group.

A group of environments is always in one of four places: in flight (stepping), received (the one and only that
``recv`` returned last), held, or ready (a finished state that can be received without waiting).
"""

from __future__ import annotations

import secrets
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from metta_ray.common.errors import CheckpointError, ConfigError, MettaRayError, UsageError
from metta_ray.envs.env_batch import BatchArrays, SeedRoot
from metta_ray.envs.env_spec import EnvSpec
from metta_ray.envs.episodes import episode_info, result_from_state, result_to_state
from metta_ray.envs.tasks import Curriculum, EpisodeResult, TaskTable
from metta_ray.envs.vecenv import Received, VecEnv

P = ParamSpec("P")
R = TypeVar("R")


class GroupedVecEnv(VecEnv):
    """``num_groups`` equal groups of contiguous environments over one set of arrays.

    episodes: the reported results behind the infos of the last ``recv`` (returns per agent, seeds,
    statistics). device: where a policy that acts here is expected to live; environments themselves run on the
    CPU. in_fixed_order: groups come back in the order in which they were sent (deterministic), else first
    come. zero_copy: ``recv`` and ``final_obs`` give views that the next ``send`` lets the environments
    overwrite (K31: copy what must live longer, and wait for device copies before sending); otherwise copies.
    """

    def __init__(
        self,
        spec: EnvSpec,
        arrays: BatchArrays,
        *,
        num_envs: int,
        num_groups: int,
        curriculum: Curriculum | None,
        rank: int,
        zero_copy: bool,
        in_fixed_order: bool,
    ) -> None:
        self.driver_env = spec
        self.num_envs = num_envs
        self.num_groups = num_groups
        self.num_agents = num_envs * spec.agents_per_env
        self.agents_per_batch = self.num_agents // num_groups
        self.curriculum = curriculum
        self.device = "cpu"
        self.episodes: list[EpisodeResult] = []
        self._rank = rank
        self._zero_copy = zero_copy
        self._in_fixed_order = in_fixed_order
        starts = range(0, self.num_agents, self.agents_per_batch)
        self._views = [arrays.rows(start, start + self.agents_per_batch) for start in starts]
        self._ids = [np.arange(start, start + self.agents_per_batch, dtype=np.int64) for start in starts]
        self._seeds: SeedRoot | None = None
        self._closed_because: str | None = None
        self._received: int | None = None
        self._held: list[int] = []
        self._ready: deque[int] = deque()
        self._in_flight: list[int] = []
        self._results: list[list[EpisodeResult]] = [[] for _ in range(num_groups)]
        self._pinned_table: TaskTable | None = None
        self._table_versions: list[int | None] = [None] * num_groups

    # What a subclass provides. All raise EnvironmentFault where an environment or its process fails.

    @abstractmethod
    def _reset_batches(self, seeds: SeedRoot, table: TaskTable | None) -> None:
        """Sets the task table, if any, and starts episode 0 everywhere; returns when all have started."""

    @abstractmethod
    def _start_step(self, group: int, table: TaskTable | None) -> None:
        """Begins a step with the actions in the arrays; ``table`` is set if it changed since the last one."""

    @abstractmethod
    def _finish_step(self, candidates: Sequence[int]) -> tuple[int, list[EpisodeResult]]:
        """Waits for one of these groups; returns it and what ended in its step."""

    @abstractmethod
    def _snapshot_batches(self) -> list[dict[str, Any]]:
        """State of every batch. Called while nothing is in flight."""

    @abstractmethod
    def _restore_batches(self, states: list[dict[str, Any]], table: TaskTable | None) -> None:
        """The inverse, with the table that episodes after this one draw from."""

    @abstractmethod
    def _release(self, patience_s: float) -> None:
        """Frees processes and memory, giving environments so long to close. Called once."""

    # The contract of VecEnv.

    def async_reset(self, seed: int | None = None) -> None:
        self._require_open()
        if seed is not None and seed < 0:
            raise ConfigError(f"seed={seed} is negative; use a whole number ≥ 0, or None to draw one")
        self._finish_all()
        self._seeds = SeedRoot(secrets.randbits(63) if seed is None else int(seed), self._rank)
        table = self.curriculum.task_table() if self.curriculum is not None else None
        self._guarded(self._reset_batches, self._seeds, table)
        self._set_all_ready(range(self.num_groups), table)
        self._results = [[] for _ in range(self.num_groups)]

    def recv(self) -> Received:
        self._require_started()
        if self._received is not None:
            raise UsageError("recv after recv: the group received last must first be answered by send, or held")
        group = self._received = self._next_group()
        self.episodes = [result for result in self._results[group] if result.reported]
        self._results[group] = []
        if self.curriculum is not None:
            for result in self.episodes:
                self.curriculum.complete_task(result.task_id, result.score)
        view = self._views[group]
        return Received(
            obs=self._out(view.obs),
            rewards=self._out(view.rewards),
            terminals=self._out(view.terminals),
            truncations=self._out(view.truncations),
            infos=[episode_info(result) for result in self.episodes],
            env_ids=self._ids[group],
            masks=self._out(view.masks),
        )

    def send(self, actions: NDArray[Any]) -> None:
        group = self._require_received("send")
        target = self._views[group].actions
        actions = np.asarray(actions)
        if actions.shape != target.shape:
            # the only rearrangement without ambiguity: a column of scalars, or rows given flat
            if actions.size != target.size or actions.shape[:1] != target.shape[:1]:
                raise UsageError(f"send: actions of shape {actions.shape}, expected {target.shape}")
            actions = actions.reshape(target.shape)
        target[...] = actions
        table = self._changed_table(group)
        self._received = None
        self._in_flight.append(group)
        self._guarded(self._start_step, group, table)

    def hold(self) -> None:
        self._held.append(self._require_received("hold"))
        self._received = None

    def pin_tasks(self) -> None:
        self._pinned_table = self.curriculum.task_table() if self.curriculum is not None else None

    @property
    def final_obs(self) -> NDArray[Any]:
        return self._out(self._views[self._require_received("final_obs")].final_obs)

    def snapshot(self) -> dict[str, Any]:
        """Afterwards this vecenv and one that restores the state go on alike: the group received last (if
        any) first, then the held ones, then those that were ready or in flight. Results not yet received are
        part of the state, so the curriculum hears of each episode once on either side."""
        self._require_started()
        assert self._seeds is not None
        self._finish_all()
        self._ready.extendleft(reversed(self._held))
        self._held.clear()
        received = [] if self._received is None else [self._received]
        return {
            "num_envs": self.num_envs,
            "num_groups": self.num_groups,
            "run_seed": self._seeds.run_seed,
            "rank": self._seeds.rank,
            "order": [*received, *self._ready],
            "results": [[result_to_state(result) for result in results] for results in self._results],
            "batches": self._guarded(self._snapshot_batches),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._require_open()
        saved, here = (int(state["num_envs"]), int(state["num_groups"])), (self.num_envs, self.num_groups)
        if saved != here:
            raise CheckpointError(
                f"saved state of (environments, groups) = {saved} does not fit {here}; "
                f"resume with the sizes of the saved run"
            )
        self._finish_all()
        table = self.curriculum.task_table() if self.curriculum is not None else None
        self._guarded(self._restore_batches, state["batches"], table)
        self._seeds = SeedRoot(int(state["run_seed"]), int(state["rank"]))
        self._set_all_ready([int(group) for group in state["order"]], table)
        self._results = [[result_from_state(result) for result in results] for results in state["results"]]

    def close(self) -> None:
        self._close("it was closed", patience_s=1.0)

    # Turns.

    def _next_group(self) -> int:
        if len(self._held) == self.num_groups:
            self._ready.extend(self._held)
            self._held.clear()
        if self._ready:
            return self._ready.popleft()
        return self._await_one(self._in_flight[:1] if self._in_fixed_order else self._in_flight)

    def _await_one(self, candidates: Sequence[int]) -> int:
        group, results = self._guarded(self._finish_step, candidates)
        self._in_flight.remove(group)
        self._results[group] = results
        return group

    def _finish_all(self) -> None:
        while self._in_flight:
            self._ready.append(self._await_one(self._in_flight[:1]))

    def _set_all_ready(self, order: Sequence[int], table: TaskTable | None) -> None:
        self._received, self._held, self._in_flight = None, [], []
        self._ready = deque(order)
        self._pinned_table = None
        self._table_versions = [None if table is None else table.version] * self.num_groups

    def _changed_table(self, group: int) -> TaskTable | None:
        if self.curriculum is None:
            return None
        table = self._pinned_table or self.curriculum.task_table()
        if table.version == self._table_versions[group]:
            return None
        self._table_versions[group] = table.version
        return table

    def _out(self, array: NDArray[Any]) -> NDArray[Any]:
        return array if self._zero_copy else array.copy()

    # State and failure.

    def _guarded(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Work that may fail: after a fault nothing can be stepped, so everything is released at once."""
        try:
            return work(*args, **kwargs)
        except MettaRayError as error:
            self._close(f"it failed: {str(error).splitlines()[0]}", patience_s=0.1)
            raise

    def _close(self, reason: str, patience_s: float) -> None:
        if self._closed_because is None:
            self._closed_because = reason
            self._release(patience_s)

    def _require_open(self) -> None:
        if self._closed_because is not None:
            raise UsageError(f"this vecenv ({self.driver_env.name}) is closed because {self._closed_because}")

    def _require_started(self) -> None:
        self._require_open()
        if self._seeds is None:
            raise UsageError("nothing was started yet; call async_reset(seed) first")

    def _require_received(self, call: str) -> int:
        self._require_started()
        if self._received is None:
            raise UsageError(f"{call} without a received group; call recv first")
        return self._received
