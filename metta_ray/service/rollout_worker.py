"""One rollout worker: steps its environments with the newest policy it was given, one fragment per ticket.

Waits for:    ``collect(ticket)``, its only order.
Released by:  the return of that call; nothing is sent on the side, so nothing is lost or doubled on the side.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metta_ray.agent.factory import Agent
from metta_ray.common.errors import UsageError
from metta_ray.common.profiling.stopwatch import Stopwatch
from metta_ray.common.util.packed_arrays import PackedArrays
from metta_ray.common.util.state_directory import tree_from_bytes, tree_to_bytes
from metta_ray.envs.grouped_vecenv import GroupedVecEnv
from metta_ray.envs.registry import EnvFactory
from metta_ray.envs.tasks import TaskTable, TaskWeights
from metta_ray.rl.experience import Experience
from metta_ray.rl.fragment import Fragment, FragmentHeader, fault_of
from metta_ray.rl.rollout import perform_rollout_step
from metta_ray.rl.session import prepare_process, prepare_thread
from metta_ray.rl.stats import accumulate_rollout_stats
from metta_ray.rl.trainer_checkpoint import random_state, set_random_state
from metta_ray.rl.vecenv import make_vecenv, training_factory
from metta_ray.service.identity import Identity
from metta_ray.service.lease import Lease
from metta_ray.service.orders import PublishedWeights, Ticket, fetch_weights
from metta_ray.service.process_info import ProcessInfo
from metta_ray.service.run_config import RunConfig
from metta_ray.service.sizes import Sizes
from metta_ray.service.weights import load_weights

WEIGHTS_TIMEOUT_S = 60.0
REMEMBERED_TICKETS = 4096


class TicketForgotten(UsageError):  # noqa: N818 - reads as the fact it states
    """This life of the worker executed the ticket and was told that it need not remember."""


class TicketTasks:
    """The curriculum as a worker sees it: tasks come with the ticket, results leave with the fragment."""

    def __init__(self, table: TaskTable) -> None:
        self._table = table
        self.outcomes: list[tuple[str, float]] = []

    def task_table(self) -> TaskTable:
        return self._table

    def complete_task(self, task_id: str, score: float) -> None:
        self.outcomes.append((task_id, float(score)))

    def use(self, weights: TaskWeights) -> None:
        if weights.version != self._table.version:
            self._table = self._table.with_weights(weights)

    def state_dict(self) -> dict[str, Any]:
        weights = self._table.weights
        return {"version": weights.version, "probabilities": weights.probabilities, "numbers": weights.numbers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._table = self._table.with_weights(
            TaskWeights(int(state["version"]), np.asarray(state["probabilities"], np.float64), state.get("numbers"))
        )


class RolloutWorker:
    """Environments, a copy of the policy, and the recurrent state between them.

    snapshot: continues exactly where a worker's ``snapshot`` was taken, chance included.
    Raises what environments and networks raise; the pool then replaces this process.
    """

    def __init__(
        self,
        identity: Identity,
        config: RunConfig | dict[str, Any],
        sizes: Sizes,
        snapshot: NDArray[np.uint8] | None = None,
    ) -> None:
        config = RunConfig.from_mapping(config)
        self.identity = identity
        self._threads = config.rollout.threads
        self._lease = Lease(config.failure.lease_s)
        prepare_process(config.trainer.seed, threads=self._threads, rank=identity.number)
        self._vecenv, self._tasks = _build_environments(config, sizes, rank=identity.number)
        self._device = torch.device(config.rollout.device)
        self._policy = Agent(self._vecenv, config=config.agent, device=self._device)
        self._policy.autocast_dtype = torch.bfloat16 if config.trainer.autocast == "bf16" else None
        self._policy_version = -1
        centering = config.trainer.reward_centering
        self._experience = Experience(
            total_agents=self._vecenv.num_agents,
            batch_size=sizes.fragment_steps,
            bptt_horizon=config.trainer.bptt_horizon,
            minibatch_size=sizes.fragment_steps,
            max_minibatch_size=sizes.fragment_steps,
            obs_space=self._vecenv.driver_env.single_observation_space,
            atn_space=self._vecenv.driver_env.single_action_space,
            device=self._device,
            hidden_size=self._policy.hidden_size,
            num_lstm_layers=self._policy.core_num_layers,
            agents_per_batch=self._vecenv.agents_per_batch,
            reward_centering_rate=centering.beta if centering.enabled else None,
        )
        self._executed: OrderedDict[int, tuple[FragmentHeader, Fragment] | None] = OrderedDict()
        self._made = 0
        self._idle_since = time.perf_counter()
        if snapshot is None:
            self._vecenv.async_reset(config.trainer.seed)
        else:
            self._restore(snapshot)

    def __repr__(self) -> str:
        return str(self.identity)

    def collect(self, ticket: Ticket) -> tuple[FragmentHeader, Fragment]:
        """One fragment. The same ticket again returns the same fragment and samples nothing.

        Raises TicketForgotten if it was executed and settled; whatever Ray raises where the weights are gone,
        before anything is sampled.
        """
        prepare_thread(self._threads)
        self._lease.renew()
        self._forget(ticket.settled)
        if ticket.number in self._executed:
            return self._remembered(ticket.number)
        began = time.perf_counter()
        seconds = {"waiting": began - self._idle_since}
        self._load(ticket.weights)
        if self._tasks is not None and ticket.tasks is not None:
            self._tasks.use(ticket.tasks)
        loaded = time.perf_counter()
        timer = Stopwatch()
        counted, stats = self._roll_out(timer)
        rolled = time.perf_counter()
        arrays = self._experience.fragment_arrays()
        fragment = Fragment(PackedArrays.pack(arrays))
        fault = fault_of(arrays)
        if fault is not None:
            self._clear_faults()
        done = time.perf_counter()
        environment = timer.get_elapsed("_rollout.env")
        seconds |= {
            "environment": environment,
            "inference": rolled - loaded - environment,
            "transport": (loaded - began) + (done - rolled),
        }
        header = FragmentHeader(
            run=self.identity.run,
            generation=ticket.generation,
            ticket=ticket.number,
            stream=self.identity.number,
            incarnation=self.identity.incarnation,
            policy_version=self._policy_version,
            segments=self._experience.segments,
            horizon=self._experience.bptt_horizon,
            counted_steps=counted,
            size_bytes=fragment.size_bytes,
            outcomes=self._take_outcomes(),
            stats=stats,
            seconds=seconds,
            fault=fault,
            sequence=self._made,
        )
        self._made += 1
        self._executed[ticket.number] = (header, fragment)
        self._idle_since = time.perf_counter()
        return header, fragment

    def snapshot(self) -> NDArray[np.uint8]:
        """All that the next fragment depends on beside its ticket, as one message of numbers (no pickle)."""
        tree = {
            "stream": self.identity.number,
            "vecenv": self._vecenv.snapshot(),
            "experience": self._experience.state_dict(),
            "tasks": self._tasks.state_dict() if self._tasks else None,
            "random": random_state(),
        }
        return np.frombuffer(tree_to_bytes(tree), np.uint8)

    def describe(self) -> ProcessInfo:
        """Answers once the constructor is through; renews the lease. Independent of a ``collect`` that runs."""
        self._lease.renew()
        return ProcessInfo.of_this_process(self.identity.incarnation)

    def close(self) -> None:
        """Ends environment processes."""
        self._vecenv.close()

    def _roll_out(self, timer: Stopwatch) -> tuple[int, dict[str, list[Any]]]:
        """Fills the buffer; (agent steps that count, statistics of the episodes that ended)."""
        counted, stats = 0, dict[str, list[Any]]()
        self._experience.reset_for_rollout()
        while not self._experience.ready_for_training:
            num_steps, infos = perform_rollout_step(self._policy, self._vecenv, self._experience, self._device, timer)
            accumulate_rollout_stats(infos, stats)
            counted += num_steps
        return counted, stats

    def _load(self, weights: PublishedWeights) -> None:
        if weights.version > self._policy_version:
            load_weights(self._policy, fetch_weights(weights, WEIGHTS_TIMEOUT_S), f"policy version {weights.version}")
            self._policy_version = weights.version

    def _forget(self, settled: tuple[int, ...]) -> None:
        for number in settled:
            if number in self._executed:
                self._executed[number] = None
        while len(self._executed) > REMEMBERED_TICKETS:
            self._executed.popitem(last=False)

    def _remembered(self, number: int) -> tuple[FragmentHeader, Fragment]:
        result = self._executed[number]
        if result is None:
            raise TicketForgotten(f"ticket {number} was executed and settled; {self.identity} no longer has it")
        return result

    def _take_outcomes(self) -> tuple[tuple[str, float], ...]:
        if self._tasks is None:
            return ()
        outcomes = tuple(self._tasks.outcomes)
        self._tasks.outcomes.clear()
        return outcomes

    def _clear_faults(self) -> None:
        """A NaN that a network remembered would spoil every later fragment."""
        state = self._experience.rollout_state
        for tensor in (state.lstm_h, state.lstm_c):
            torch.nan_to_num_(tensor, nan=0.0, posinf=0.0, neginf=0.0)

    def _restore(self, snapshot: NDArray[np.uint8]) -> None:
        tree = tree_from_bytes(snapshot.tobytes())
        if self._tasks is not None and tree["tasks"] is not None:
            self._tasks.load_state_dict(tree["tasks"])
        self._vecenv.restore(tree["vecenv"])
        self._experience.load_state_dict(tree["experience"])
        set_random_state(tree["random"])


def _build_environments(config: RunConfig, sizes: Sizes, *, rank: int) -> tuple[GroupedVecEnv, TicketTasks | None]:
    trainer = config.trainer
    factory: EnvFactory = training_factory(trainer)
    curriculum = factory.curriculum()
    tasks = TicketTasks(curriculum.task_table()) if curriculum is not None else None
    is_serial = trainer.num_workers == 1
    vecenv = make_vecenv(
        factory,
        "serial" if is_serial else "multiprocessing",
        sizes.num_envs,
        sizes.num_envs if is_serial else sizes.num_envs // trainer.async_factor,
        trainer.num_workers,
        curriculum=tasks,
        is_training=True,
        zero_copy=trainer.zero_copy,
        rank=rank,
    )
    return vecenv, tasks
