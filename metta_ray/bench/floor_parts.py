"""The floor of a training: what each part costs at least, on the observations that the training itself has met."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

from metta_ray.bench.alternate import alternate, medians
from metta_ray.bench.env_bench import navigation_workload
from metta_ray.bench.floor import Floor, navigation_game
from metta_ray.bench.library_policy import token_tables
from metta_ray.bench.matrix_rates import bf16_pays, matrix_rates
from metta_ray.bench.policy_floor import SHAPES, FloorNetwork, Formulation, formulations
from metta_ray.bench.ppo_floor import FloorActor, FloorLearner, FloorMinibatch
from metta_ray.bench.synthetic import ACTIONS, NUM_TOKENS, PADDING
from metta_ray.mettagrid import tasks
from metta_ray.mettagrid.task_spec import TaskSpec
from metta_ray.mettagrid.terrain import CELLS
from metta_ray.rl.experience import Experience

AGENTS = 4
MAPS = 128
PARTS = ("environment", "look-up", "inference", "forward", "backward", "optimiser")


def floor_parts(
    network: str, workload: str, rows: int, minibatch: int, experience: Experience, seconds: float
) -> dict[str, float]:
    """Microseconds per agent step of ``PARTS`` with the threads that torch has now. ``inference`` and ``forward`` do
    not contain ``look-up``, which is that of both."""
    stored = experience.obs.transpose(0, 1).flatten(0, 1)[:rows]
    obs = torch.nn.functional.pad(stored, (0, 0, 0, NUM_TOKENS - stored.shape[1]), value=PADDING)
    segments = minibatch // experience.bptt_horizon
    ways = formulations(network, bf16=bf16_pays(_rates()))[1:]
    actors = {way: FloorActor(_network(network, way), rows) for way in ways}
    acting = alternate({way.name: _work(actor.act, obs) for way, actor in actors.items()}, seconds / 5)
    batch = _minibatch(experience, segments)
    learners = {way: FloorLearner(_network(network, way)) for way in ways}
    learning = alternate({way.name: _work(learner.step, batch) for way, learner in learners.items()}, seconds / 5)
    actor = actors[_fastest(ways, acting)]
    learner = learners[_fastest(ways, learning)]

    stretch = seconds / 5
    looking = _seconds_per_call(lambda: actor.network._looked_up(obs), stretch / 2) / rows
    flat = batch.obs.flatten(0, 1)
    looking_again = _seconds_per_call(lambda: learner.network._looked_up(flat), stretch / 2) / minibatch
    forward, backward, optimiser = (taken / minibatch for taken in _learning_parts(learner, batch, stretch))
    per_step = {
        "environment": _environment_step(workload, rows, stretch),
        "look-up": looking + looking_again,
        "inference": min(medians(acting).values()) / rows - looking,
        "forward": forward - looking_again,
        "backward": backward,
        "optimiser": optimiser,
    }
    return {name: 1e6 * value for name, value in per_step.items()}


def _environment_step(workload: str, rows: int, seconds: float) -> float:
    """Seconds per agent step of the bare engine: random actions, episodes that end one after the other."""
    floor = _environment_floor(workload, rows // AGENTS)
    rng = np.random.default_rng(0)

    def step() -> None:
        floor.actions[:] = rng.integers(len(ACTIONS), size=rows, dtype=np.int32)
        floor.step()

    return _seconds_per_call(step, seconds) / rows


@cache
def _environment_floor(workload: str, num_envs: int) -> Floor:
    bucketed = navigation_workload().specs
    specs = bucketed if workload == "bucketed" else [TaskSpec(map_seed=(3, index)) for index in range(MAPS)]
    grids = [tasks.build_grid(spec, np.random.default_rng(0)) for spec in specs]
    max_steps = specs[0].max_steps
    ends = np.linspace(1, max_steps, num_envs).astype(np.int64)
    return Floor(
        navigation_game(AGENTS, max_steps),
        CELLS,
        [grids[env % len(grids) :: num_envs] for env in range(num_envs)],
        ends,
        max_steps,
    )


def _learning_parts(learner: FloorLearner, batch: FloorMinibatch, seconds: float) -> tuple[float, float, float]:
    """Median seconds of forward and loss, backward, clipping and Adam."""
    times: list[list[float]] = []
    began = time.monotonic()
    while len(times) < 3 or time.monotonic() - began < seconds:
        marks = [time.perf_counter()]
        learner.optimizer.zero_grad(set_to_none=True)
        loss = learner.loss(batch)
        marks.append(time.perf_counter())
        loss.backward()  # type: ignore[no-untyped-call]
        marks.append(time.perf_counter())
        learner.update()
        marks.append(time.perf_counter())
        times.append(np.diff(marks).tolist())
    forward, backward, optimiser = np.median(times, axis=0)
    return float(forward), float(backward), float(optimiser)


def _minibatch(experience: Experience, segments: int) -> FloorMinibatch:
    state = torch.zeros(1, segments, experience.rollout_state.lstm_h.shape[2])
    values = experience.values[:segments].clone()
    advantages = torch.randn_like(values)
    return FloorMinibatch(
        experience.obs[:segments].clone(),
        experience.actions[:segments].clone(),
        experience.logprobs[:segments].clone(),
        advantages,
        advantages + values,
        state,
        state,
    )


def _network(network: str, way: Formulation) -> FloorNetwork:
    return FloorNetwork(SHAPES[network], token_tables(), way)


def _fastest(ways: tuple[Formulation, ...], times: dict[str, list[float]]) -> Formulation:
    middle = medians(times)
    return min(ways, key=lambda way: middle[way.name])


@cache
def _rates() -> dict[str, float]:
    return matrix_rates(torch.device("cpu"))


def _work(function: Callable[[Any], object], argument: Any) -> Callable[[], object]:
    return lambda: function(argument)


def _seconds_per_call(work: Callable[[], object], seconds: float) -> float:
    work()
    began, calls = time.perf_counter(), 0
    while calls < 3 or time.perf_counter() - began < seconds:
        work()
        calls += 1
    return (time.perf_counter() - began) / calls
