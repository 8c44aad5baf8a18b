"""The Ray shells around the plain classes. What they need is imported where they run, so the coordinator, which only
creates them and passes references between them, loads neither torch nor an engine.

Concurrency groups keep apart what must answer while something else runs: ``control`` for life signs, and in a
learner ``staging`` for the next batch and ``saving`` for checkpoints. Everything else runs one call at a time.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import ray

from metta_ray.service.ray_facts import own_address

NICENESS = 15
"""Of evaluators: where they share a core with training, training goes first."""

LEAVE_S = 5.0
"""After which a process ends that Ray was told to kill."""


class _Shell:
    @ray.method(concurrency_group="control")
    def leave(self) -> None:
        """Ray cannot kill an actor that was being created when its GCS was lost and started again (2.60: "has not been
        assigned a lease"); it would stay until its own lease runs out."""
        threading.Timer(LEAVE_S, os._exit, (0,)).start()


class RolloutWorkerActor(_Shell):
    def __init__(self, identity: Any, *args: Any) -> None:
        from metta_ray.service.rollout_worker import RolloutWorker

        self._worker = RolloutWorker(identity, *args)

    def __repr__(self) -> str:
        return repr(self._worker)

    def collect(self, ticket: Any) -> Any:
        return self._worker.collect(ticket)

    def snapshot(self) -> Any:
        return self._worker.snapshot()

    def close(self) -> None:
        self._worker.close()

    @ray.method(concurrency_group="control")
    def describe(self) -> Any:
        return self._worker.describe()


class LearnerActor(_Shell):
    def __init__(self, identity: Any, *args: Any) -> None:
        from metta_ray.service.learner import Learner
        from metta_ray.service.metrics_exporter import LearnerMetrics

        self._learner = Learner(identity, *args, node_ip=own_address())
        self._metrics = LearnerMetrics(identity.run, self._learner.device)

    def __repr__(self) -> str:
        return repr(self._learner)

    def begin(self, checkpoint_dir: str | None) -> Any:
        return self._learner.begin(checkpoint_dir)

    def open_store(self) -> Any:
        return self._learner.open_store()

    def join(self, *args: Any) -> Any:
        return self._learner.join(*args)

    def train(self, order: Any) -> Any:
        trained = self._learner.train(order)
        self._metrics.update(*trained[:2])
        return trained

    def export(self) -> Any:
        return self._learner.export()

    def close(self) -> None:
        self._learner.close()

    @ray.method(concurrency_group="staging")
    def stage(self, *args: Any) -> Any:
        return self._learner.stage(*args)

    @ray.method(concurrency_group="saving")
    def save(self, *args: Any) -> Any:
        return self._learner.save(*args)

    @ray.method(concurrency_group="control")
    def describe(self) -> Any:
        return self._learner.describe()


class EvaluatorActor(_Shell):
    def __init__(self, identity: Any, *args: Any) -> None:
        from metta_ray.service.evaluator import Evaluator

        os.nice(NICENESS)
        self._evaluator = Evaluator(identity, *args)

    def __repr__(self) -> str:
        return repr(self._evaluator)

    def evaluate(self, request: Any) -> Any:
        return self._evaluator.evaluate(request)

    @ray.method(concurrency_group="control")
    def describe(self) -> Any:
        return self._evaluator.describe()
