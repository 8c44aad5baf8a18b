"""One training run of the curriculum benchmark: what was played, with which outcomes, and what it taught.

Letters: W rollout workers, K tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metta_ray.agent.factory import Agent
from metta_ray.bench.lock_step import LockStep
from metta_ray.common.errors import UsageError
from metta_ray.envs.tasks import Curriculum as AnyCurriculum
from metta_ray.envs.tasks import TaskTable
from metta_ray.mettagrid.curriculum.bucketed import BucketedCurriculum
from metta_ray.mettagrid.curriculum.core import Curriculum
from metta_ray.mettagrid.curriculum.learning_progress import LearningProgressConfig
from metta_ray.mettagrid.held_out import held_out_tasks
from metta_ray.mettagrid.task_spec import TERRAINS, TaskSpec
from metta_ray.rl.experience import Experience
from metta_ray.rl.hyperparameter_schedule import HyperparameterScheduler
from metta_ray.rl.losses import Losses
from metta_ray.rl.optimizer import Optimizer
from metta_ray.rl.presets import PRESETS
from metta_ray.rl.rollout import perform_rollout_step
from metta_ray.rl.session import prepare_process
from metta_ray.rl.trainer_config import TrainerConfig
from metta_ray.rl.update import update_policy
from metta_ray.rl.vecenv import make_vecenv
from metta_ray.sim.held_out import play_maps
from metta_ray.sim.players import PolicyPlayer

UNIFORM, SHARED, PER_WORKER = "uniform", "shared", "per worker"
ARMS = (UNIFORM, SHARED, PER_WORKER)
"""No curriculum at all, learning progress of all workers together, and of each worker for itself."""

MOST, LEAST = "most gain", "least gain"
HINDSIGHT = (MOST, LEAST)
"""Bounds of what a curriculum could change: only the quarter of tasks that gained most, or least, when all were
practised alike."""

QUARTER = 4

DEVICE = "cpu"


@dataclass(frozen=True)
class Experiment:
    """All that the runs of a comparison have in common; everything but the arm and the seed.

    settings: of learning progress. evaluations: how often the held-out maps are played in the course of a run.
    maps: play every so many-th of the 256 held-out maps.
    """

    agent_steps: int = 1_000_000
    workers: int = 4
    envs_per_worker: int = 16
    max_steps: int = 100
    terrains: tuple[str, ...] = TERRAINS
    altar_bins: int = 2
    evaluations: int = 4
    maps: int = 1
    batch_size: int = 16_384
    minibatch_size: int = 1024
    settings: LearningProgressConfig = field(
        default_factory=lambda: LearningProgressConfig(
            ema_timescale=0.01, sample_threshold=5, memory=10, uniform_share=0.1
        )
    )

    def curriculum(self, seed: int) -> BucketedCurriculum:
        buckets = {"terrain": list(self.terrains), "altars": {"range": (2, 18), "bins": self.altar_bins}}
        return BucketedCurriculum(TaskSpec(max_steps=self.max_steps), buckets, self.settings, seed=seed)

    def curricula(self, arm: str, seed: int, gains: NDArray[np.float64] | None = None) -> list[Curriculum]:
        """One for each worker; the same object where it is shared. gains: of each task; for hindsight."""
        if arm == PER_WORKER:
            return [self.curriculum(seed * self.workers + worker) for worker in range(self.workers)]
        shared: Curriculum = self.curriculum(seed)
        if arm != SHARED:
            templates = shared.task_table().templates
            shared = Curriculum(templates, None if arm == UNIFORM else _one_quarter(arm, gains), seed=seed)
        return [shared] * self.workers

    def held_out(self) -> list[TaskSpec]:
        return [task for task in held_out_tasks() if task.terrain in self.terrains][:: self.maps]

    def trainer(self) -> TrainerConfig:
        preset = PRESETS["navigation"]["trainer"]
        changes = {
            "total_timesteps": self.agent_steps,
            "batch_size": self.batch_size,
            "minibatch_size": self.minibatch_size,
        }
        return TrainerConfig.from_mapping(preset | changes)


@dataclass
class CurriculumRun:
    """outcomes: (agent step, worker, task, score) of every episode, in order. probabilities ``(epochs, W, K)``: what
    was drawn from. scores ``(evaluations, maps)``: share of the hearts of each held-out map; steps: when."""

    arm: str
    seed: int
    task_ids: tuple[str, ...]
    outcomes: list[tuple[int, int, int, float]] = field(default_factory=list)
    probabilities: list[list[list[float]]] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    scores: list[list[float]] = field(default_factory=list)

    @property
    def num_workers(self) -> int:
        return len(self.probabilities[0])

    def outcome_arrays(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Agent steps, workers, tasks, scores. UsageError for a run in which no episode ended."""
        if not self.outcomes:
            raise UsageError("no episode ended, so there is nothing to compare; give more --agent-steps")
        steps, workers, tasks, scores = zip(*self.outcomes, strict=True)
        return np.array(steps), np.array(workers), np.array(tasks), np.array(scores, np.float64)

    def gains(self) -> NDArray[np.float64]:
        """Of each task: mean score in the last third of the run less that in the first; 0 where one is missing."""
        steps, _, tasks, scores = self.outcome_arrays()
        third, count = steps.max() / 3, len(self.task_ids)
        parts = (steps <= third, steps > 2 * third)
        attempts = np.array([np.bincount(tasks[part], minlength=count) for part in parts])
        early, late = (
            np.bincount(tasks[part], scores[part], count) / np.maximum(tried, 1)
            for part, tried in zip(parts, attempts, strict=True)
        )
        return np.asarray(np.where((attempts > 0).all(axis=0), late - early, 0.0), np.float64)

    def to_json(self) -> dict[str, Any]:
        return {
            "arm": self.arm,
            "seed": self.seed,
            "steps": self.steps,
            "scores": [[round(score, 4) for score in one] for one in self.scores],
            "outcomes": [[step, worker, task, round(float(score), 4)] for step, worker, task, score in self.outcomes],
        }


class _Heard:
    """A worker's way to its curriculum, on which its outcomes are written down."""

    def __init__(self, curriculum: Curriculum, note: Callable[[str, float], None]) -> None:
        self.curriculum = curriculum
        self._note = note

    def task_table(self) -> TaskTable:
        return self.curriculum.task_table()

    def complete_task(self, task_id: str, score: float) -> None:
        self._note(task_id, score)
        self.curriculum.complete_task(task_id, score)

    def state_dict(self) -> dict[str, Any]:
        return self.curriculum.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.curriculum.load_state_dict(state)


class CurriculumTraining:
    """The library's training loop over the environments of all workers, in lock-step."""

    def __init__(self, experiment: Experiment, arm: str, seed: int, gains: NDArray[np.float64] | None = None) -> None:
        self.experiment = experiment
        self._config = experiment.trainer()
        self._seed = seed
        self._agent_step = 0
        self._epoch = 0
        curricula = experiment.curricula(arm, seed, gains)
        self.record = CurriculumRun(arm, seed, curricula[0].task_ids)
        self._task_index = {task_id: index for index, task_id in enumerate(self.record.task_ids)}
        self._workers: list[AnyCurriculum] = [
            _Heard(curriculum, self._note_of(worker)) for worker, curriculum in enumerate(curricula)
        ]
        prepare_process(seed, threads=1)
        self._vecenv = LockStep(
            [
                make_vecenv(curriculum, "serial", experiment.envs_per_worker, is_training=True, rank=worker)
                for worker, curriculum in enumerate(self._workers)
            ]
        )
        self._agent = Agent(self._vecenv, config={"architecture": "light"}, device=DEVICE)
        self._optimizer = Optimizer(
            "adam",
            policy=self._agent,
            learning_rate=self._config.optimizer.learning_rate,
            eps=self._config.optimizer.eps,
            max_grad_norm=self._config.ppo.max_grad_norm,
        )
        self._schedule = HyperparameterScheduler(self._config, self._optimizer)
        self._experience = Experience(
            self._vecenv.num_agents,
            self._config.batch_size,
            self._config.bptt_horizon,
            self._config.minibatch_size,
            self._config.minibatch_size,
            self._vecenv.driver_env.single_observation_space,
            self._vecenv.driver_env.single_action_space,
            DEVICE,
            self._agent.hidden_size,
            num_lstm_layers=self._agent.core_num_layers,
        )

    def run(self) -> CurriculumRun:
        """Trains to the end, with an evaluation after each of as many equal parts."""
        experiment, record = self.experiment, self.record
        self._vecenv.async_reset(self._seed)
        for part in range(1, experiment.evaluations + 1):
            while self._agent_step * experiment.evaluations < part * experiment.agent_steps:
                self._train_one_epoch()
            record.steps.append(self._agent_step)
            record.scores.append(self._evaluate())
        self._vecenv.close()
        return record

    def _train_one_epoch(self) -> None:
        self.record.probabilities.append([one.task_table().probabilities.tolist() for one in self._workers])
        self._schedule.step(self._agent_step)
        self._experience.reset_for_rollout()
        while not self._experience.ready_for_training:
            self._agent_step += perform_rollout_step(self._agent, self._vecenv, self._experience, DEVICE)[0]
        update_policy(
            self._agent,
            self._optimizer,
            self._experience,
            self._config,
            None,
            self._agent_step,
            self._epoch,
            Losses(),
            DEVICE,
        )
        self._epoch += 1

    def _evaluate(self) -> list[float]:
        """Share of the hearts on each held-out map. The same maps and seeds in every arm."""
        tasks = self.experiment.held_out()
        result = play_maps(PolicyPlayer(self._agent), tasks=tasks, max_steps=self.experiment.max_steps)
        by_map = {int(episode.task_id.rpartition("map=")[2]): float(episode.score) for episode in result.episodes}
        return [by_map[index] for index in range(len(tasks))]

    def _note_of(self, worker: int) -> Callable[[str, float], None]:
        def note(task_id: str, score: float) -> None:
            self.record.outcomes.append((self._agent_step, worker, self._task_index[task_id], score))

        return note


def _one_quarter(arm: str, gains: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Probabilities."""
    if gains is None:
        raise UsageError(f"{arm!r} needs to be told what each task gained in a run with uniform sampling")
    chosen = np.argsort(-gains if arm == MOST else gains, kind="stable")[: max(1, len(gains) // QUARTER)]
    probabilities = np.zeros(len(gains))
    probabilities[chosen] = 1 / len(chosen)
    return probabilities
