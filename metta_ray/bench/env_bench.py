"""How fast environments step: ours against the floor on one core, and two worker processes against one.

Both sides of the comparison play the same maps with the same actions and end their episodes at the same
steps; they take turns, one round each, and each round's ratio compares equal work. Rates are agent steps per
second of processor time for one core (so that other programs disturb less), of wall time for workers.

64 worlds do not fit into a core's own cache: what else runs on the processor shows in both sides' rates (up
to a factor of two), hardly in their ratio.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from metta_ray.bench.floor import Floor, arena_game, navigation_game
from metta_ray.bench.machine import describe_machine
from metta_ray.envs.env_batch import SeedRoot
from metta_ray.envs.multiprocess_vecenv import MultiprocessVecEnv
from metta_ray.envs.registry import MettaGridFactory
from metta_ray.mettagrid import tasks
from metta_ray.mettagrid.held_out import fixed_table
from metta_ray.mettagrid.mettagrid_env import MettaGridBatch
from metta_ray.mettagrid.task_spec import TERRAINS, TaskSpec
from metta_ray.mettagrid.terrain import CELLS

ROUND_STEPS = 100
WORKER_ROUND_STEPS = 300
GOAL_OF_FLOOR = 0.9
GOAL_OF_TWO_WORKERS = 1.6
# What such a loop reached, without resets, on one core of the machine that the design was measured on.
REFERENCE_RATE = {"navigation": 104_000, "arena": 109_000}


@dataclass(frozen=True)
class Workload:
    name: str
    num_envs: int
    agents: int
    specs: list[TaskSpec]

    @property
    def rows(self) -> int:
        return self.num_envs * self.agents


def navigation_workload() -> Workload:
    """64 environments of 4 agents on all 16 terrains with 2 to 17 altars; four maps for each environment."""
    specs = [
        TaskSpec(terrain=TERRAINS[index % 16], altars=2 + index // 16 % 16, map_seed=(1, index)) for index in range(256)
    ]
    return Workload("navigation", 64, 4, specs)


def arena_workload() -> Workload:
    specs = [TaskSpec(kind="arena", num_agents=24, map_seed=(2, index)) for index in range(64)]
    return Workload("arena", 16, 24, specs)


def compare_with_floor(workload: Workload, seconds: float) -> dict[str, Any]:
    """Takes about ``seconds`` for both sides together, at least three rounds."""
    table = fixed_table(workload.specs, workload.num_envs)
    batch = MettaGridBatch(table, num_envs=workload.num_envs)
    batch.reset(SeedRoot(0))
    ours = _Stepper(batch.arrays.actions, batch.step, workload.rows)
    bare = floor_of(workload, batch)
    base = _Stepper(bare.actions, bare.step, workload.rows)
    # Some steps off the record: memory that was never touched is slow.
    base.run(20)
    ours.run(20)

    base_rates: list[float] = []
    our_rates: list[float] = []
    results = 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline or len(our_rates) < 3:
        base_rates.append(base.run(ROUND_STEPS)[0])
        rate, ended = ours.run(ROUND_STEPS)
        our_rates.append(rate)
        results += ended
    ratios = [our / base for our, base in zip(our_rates, base_rates, strict=True)]
    return {
        "workload": f"{workload.num_envs} environments x {workload.agents} agents, {workload.name}",
        "ours": round(statistics.median(our_rates)),
        "floor": round(statistics.median(base_rates)),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_of_totals": round(statistics.harmonic_mean(our_rates) / statistics.harmonic_mean(base_rates), 3),
        "rounds": len(ratios),
        "steps_per_round": ROUND_STEPS,
        "episodes_ended": results,
        "reference_floor": REFERENCE_RATE[workload.name],
        "goal_ratio": GOAL_OF_FLOOR,
    }


def floor_of(workload: Workload, batch: MettaGridBatch) -> Floor:
    """A floor that plays the maps of a batch that was just reset and ends its episodes at the same steps."""
    grids = [tasks.build_grid(spec, np.random.default_rng(0)) for spec in workload.specs]
    max_steps = workload.specs[0].max_steps
    make_game = {"navigation": navigation_game, "arena": arena_game}[workload.name]
    return Floor(
        make_game(workload.agents, max_steps),
        CELLS,
        [grids[env :: workload.num_envs] for env in range(workload.num_envs)],
        np.array([episode.end for episode in batch.episodes]),
        max_steps,
    )


def compare_workers(seconds: float) -> dict[str, Any]:
    """64 navigation environments through the multiprocessing vecenv: with two workers, and with one.

    Both play the same maps, as heavy in one half of the environments as in the other: groups are served in turn, so
    the slower worker sets the pace.
    """
    load = navigation_workload()
    factory = MettaGridFactory("mettagrid:navigation", table=fixed_table(load.specs, load.num_envs))
    rates: dict[int, list[float]] = {1: [], 2: []}
    vecenvs = {
        workers: MultiprocessVecEnv(factory, 64, num_workers=workers, batch_size=64 // workers) for workers in rates
    }
    try:
        for vecenv in vecenvs.values():
            vecenv.async_reset(0)
            _vecenv_rate(vecenv, 20)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline or len(rates[1]) < 3:
            for workers, vecenv in vecenvs.items():
                rates[workers].append(_vecenv_rate(vecenv, WORKER_ROUND_STEPS))
    finally:
        for vecenv in vecenvs.values():
            vecenv.close()
    one, two = (statistics.median(rates[workers]) for workers in (1, 2))
    ratios = [b / a for a, b in zip(rates[1], rates[2], strict=True)]
    return {
        "workload": "64 environments x 4 agents, navigation, multiprocessing",
        "one_worker": round(one),
        "two_workers": round(two),
        "ratio": round(statistics.median(ratios), 3),
        "rounds": len(ratios),
        "goal_ratio": GOAL_OF_TWO_WORKERS,
    }


def run(seconds: float) -> dict[str, Any]:
    """All comparisons, about ``seconds`` long in all."""
    part = seconds / 3
    return {
        "machine": describe_machine(),
        "one_core": [compare_with_floor(load, part) for load in (navigation_workload(), arena_workload())],
        "workers": compare_workers(part),
    }


def report(result: dict[str, Any]) -> str:
    """The result as a few lines of text."""
    machine = result["machine"]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, load {machine['load_average_1m']}",
        "agent steps per second",
        f"{'one core':<45}{'ours':>10}{'floor':>10}{'ratio':>8}{'goal':>8}   reference floor",
    ]
    for row in result["one_core"]:
        lines.append(
            f"{row['workload']:<45}{row['ours']:>10,}{row['floor']:>10,}{row['ratio']:>8.3f}"
            f"{row['goal_ratio']:>8.2f}   {row['reference_floor']:,}"
        )
    row = result["workers"]
    lines += [
        f"{'worker processes':<45}{'two':>10}{'one':>10}{'ratio':>8}{'goal':>8}",
        f"{'64 environments x 4 agents, navigation':<45}{row['two_workers']:>10,}{row['one_worker']:>10,}"
        f"{row['ratio']:>8.3f}{row['goal_ratio']:>8.2f}",
    ]
    return "\n".join(lines)


class _Stepper:
    """One side of a comparison: random actions, the same on both sides, and steps on the clock."""

    def __init__(self, actions: Any, step: Callable[[], Any], rows: int) -> None:
        self._actions, self._step, self._rows = actions, step, rows
        self._rng = np.random.default_rng(0)

    def run(self, steps: int) -> tuple[float, int]:
        """(agent steps per second of processor time, episodes that ended)."""
        ended = 0
        started = time.process_time()
        for _ in range(steps):
            self._actions[:] = self._rng.integers(5, size=self._rows, dtype=np.int32)
            ended += len(self._step() or ())
        return steps * self._rows / (time.process_time() - started), ended


def _vecenv_rate(vecenv: MultiprocessVecEnv, rounds: int) -> float:
    """Agent steps per second of wall time over ``rounds`` steps of all environments."""
    rng = np.random.default_rng(0)
    groups = vecenv.num_agents // vecenv.agents_per_batch
    started = time.perf_counter()
    for _ in range(rounds * groups):
        received = vecenv.recv()
        vecenv.send(rng.integers(5, size=len(received.rewards), dtype=np.int32))
    return rounds * vecenv.num_agents / (time.perf_counter() - started)
