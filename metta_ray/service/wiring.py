"""Puts the parts of a run together: the one place that knows what each of them needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from metta_ray.service.announcer import Announcer
from metta_ray.service.books import Books
from metta_ray.service.checkpointer import Checkpointer
from metta_ray.service.evaluation_pool import EvaluationPool
from metta_ray.service.evaluations import Evaluations
from metta_ray.service.layout import Speed
from metta_ray.service.learner_group import LearnerGroup
from metta_ray.service.pipeline import TrainingPipeline
from metta_ray.service.ray_children import RayChildren
from metta_ray.service.ray_facts import total_resources
from metta_ray.service.rollout_pool import RolloutPool
from metta_ray.service.run_config import RunConfig
from metta_ray.service.shared_directory import leave_nonce
from metta_ray.service.sizes import Sizes
from metta_ray.service.worker_count import WorkerCount

OBJECT_STORE_SHARE = 0.3


@dataclass(frozen=True)
class Parts:
    """Everything the coordinator's loop works with."""

    config: RunConfig
    sizes: Sizes
    clock: Callable[[], float]
    books: Books
    count: WorkerCount
    announcer: Announcer
    children: RayChildren
    pool: RolloutPool
    learners: LearnerGroup
    pipeline: TrainingPipeline
    checkpointer: Checkpointer
    evaluations: Evaluations


def build_parts(
    run: str,
    config: RunConfig,
    sizes: Sizes,
    spec: dict[str, Any],
    run_dir: str,
    books: Books,
    count: WorkerCount,
    announcer: Announcer,
    clock: Callable[[], float],
    *,
    speed: Speed,
    snapshot_of: Callable[[int], Any],
    on_epoch: Callable[[dict[str, Any]], None],
    on_learner: Callable[[str, int, Mapping[str, Any]], None],
) -> Parts:
    """snapshot_of: slot → state that the slot's next worker goes on from, or None. on_epoch, on_learner: told of each
    commit, and of replicas that come and go."""
    children = RayChildren(config, run)
    settings = config.model_dump()
    replica_arguments = (settings, sizes, spec, run_dir, leave_nonce(run_dir))
    pool = RolloutPool(
        config,
        children,
        run,
        clock,
        lambda slot: (settings, sizes, snapshot_of(slot)),
        lambda: books.take_number("rollout"),
        books.generation,
    )
    learners = LearnerGroup(
        config,
        sizes,
        children,
        run,
        clock,
        lambda: replica_arguments,
        lambda: books.take_number("learner"),
        on_learner,
        books.generation,
    )
    pipeline = TrainingPipeline(
        config,
        sizes,
        books,
        pool,
        learners,
        clock,
        on_epoch,
        announcer.event,
        byte_budget=config.pacing.byte_budget or int(total_resources()["object_store_memory"] * OBJECT_STORE_SHARE),
        speed=speed,
    )
    pipeline.total_timesteps = books.settings.get("trainer.total_timesteps", config.trainer.total_timesteps)
    checkpoint = config.trainer.checkpoint
    checkpointer = Checkpointer(
        books, pool, learners, children, announcer, clock, checkpoint.checkpoint_dir, checkpoint.keep_last
    )
    evaluators = EvaluationPool(
        config,
        children,
        run,
        clock,
        time.time,
        books.evaluations,
        lambda event: books.record(event, sync=True),
        lambda: (settings, run_dir),
        lambda: books.take_number("evaluator"),
        books.generation,
    )
    evaluations = Evaluations(books, evaluators, checkpointer, announcer, time.time)
    return Parts(
        config,
        sizes,
        clock,
        books,
        count,
        announcer,
        children,
        pool,
        learners,
        pipeline,
        checkpointer,
        evaluations,
    )
