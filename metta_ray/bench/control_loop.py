"""The coordinator's loop without the coordinator: books, pool, learner group and pipeline over any children."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metta_ray.envs.tasks import Curriculum
from metta_ray.service.books import Books
from metta_ray.service.children import Children
from metta_ray.service.learner_group import LearnerGroup
from metta_ray.service.pipeline import TrainingPipeline
from metta_ray.service.rollout_pool import RolloutPool
from metta_ray.service.run_config import RunConfig, load_run_config
from metta_ray.service.sizes import Sizes, resolved_sizes

COMPACT_EVERY = 100
"""Updates between two compactions of the journal, which a run does with each checkpoint."""


def small_run(workers: int, fragments_per_batch: int = 8, **words: Any) -> tuple[RunConfig, Sizes]:
    """A run of fragments of 128 agent steps that never ends. words: dotted settings."""
    words = {
        "preset": "cartpole",
        "rollout.num_workers": workers,
        "learner.replicas": 1,
        "rollout.num_envs": 4,
        "trainer.bptt_horizon": 32,
        "trainer.batch_size": 128 * fragments_per_batch,
        "trainer.minibatch_size": 128 * fragments_per_batch,
        "trainer.total_timesteps": 10**12,
        **words,
    }
    config = load_run_config(None, {name: str(value) for name, value in words.items()})
    return config, resolved_sizes(config, agents_per_env=1)


class ControlLoop:
    """What a coordinator's thread runs, without the coordinator."""

    def __init__(
        self,
        run_dir: Path,
        children: Children,
        config: RunConfig,
        sizes: Sizes,
        worker_arguments: Callable[[int], tuple[Any, ...]] = lambda slot: (),
        learner_arguments: tuple[Any, ...] = (),
        curriculum: Curriculum | None = None,
    ) -> None:
        self.books = Books(run_dir, curriculum)
        self.pool = RolloutPool(
            config,
            children,
            "bench",
            time.monotonic,
            worker_arguments,
            lambda: self.books.take_number("rollout"),
            0,
        )
        self.learners = LearnerGroup(
            config,
            sizes,
            children,
            "bench",
            time.monotonic,
            lambda: learner_arguments,
            lambda: self.books.take_number("learner"),
            lambda what, number, details: None,
            0,
        )
        self.pipeline = TrainingPipeline(
            config,
            sizes,
            self.books,
            self.pool,
            self.learners,
            time.monotonic,
            self._epoch_done,
            lambda kind, text: None,
            byte_budget=0,
        )
        self.fragments = self.updates = 0
        self.records: deque[dict[str, Any]] = deque(maxlen=COMPACT_EVERY)
        self._sizes = sizes
        self.learners.start()
        while not self.learners.are_ready():
            time.sleep(0.01)
        self.learners.begin(None)
        self.pool.wanted = config.rollout.num_workers
        while len(self.pool.ready) < self.pool.wanted:
            self.pipeline.step(0.05)

    @property
    def delivered(self) -> int:
        """Fragments that workers made."""
        return sum(member.fragments for member in self.pool.members.values())

    def run(self, seconds: float) -> float:
        """Fragments that were trained on per second."""
        before, began = self.fragments, time.perf_counter()
        while time.perf_counter() - began < seconds:
            self.pipeline.step(0.05)
        return (self.fragments - before) / (time.perf_counter() - began)

    def turns(self, seconds: float) -> list[float]:
        """Seconds that each turn took beside waiting."""
        taken, began = list[float](), time.perf_counter()
        while time.perf_counter() - began < seconds:
            used = time.thread_time()
            self.pipeline.step(0.05)
            taken.append(time.thread_time() - used)
        return taken

    def run_updates(self, count: int) -> float:
        """Seconds that so many updates take, from one commit to another."""
        self._step_to(self.updates + 1)
        began = time.perf_counter()
        self._step_to(self.updates + count)
        return time.perf_counter() - began

    def await_quiet(self) -> None:
        """Lets everything that is under way end; the next turn orders again."""
        self.pipeline.paused = True
        while not self.pipeline.is_quiet:
            self.pipeline.step(0.05)
        self.pipeline.paused = False

    def close(self) -> None:
        self.pool.stop()
        self.learners.stop()
        self.books.close()

    def _step_to(self, updates: int) -> None:
        while self.updates < updates:
            self.pipeline.step(0.05)

    def _epoch_done(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        self.updates += 1
        self.fragments += self._sizes.fragments_per_batch
        if record["epoch"] % COMPACT_EVERY == 0:
            self.books.compact()
