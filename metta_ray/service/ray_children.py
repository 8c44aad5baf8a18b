"""Children as Ray actors: detached, named, with the resources that the configuration gives their role.

Detached, because an actor's children die with it otherwise, and the coordinator may be restarted at any time.
Never restarted by Ray: whoever uses them replaces them, faster and knowing what they owed.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import psutil
import ray
from ray.util.placement_group import PlacementGroup, get_placement_group, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from metta_ray.service.actors import EvaluatorActor, LearnerActor, RolloutWorkerActor
from metta_ray.service.background import LastAnswer
from metta_ray.service.children import Future
from metta_ray.service.identity import Identity, namespace_of
from metta_ray.service.process_info import ProcessInfo
from metta_ray.service.ray_facts import draining_nodes, free_resources, has_process
from metta_ray.service.run_config import RunConfig

_CLASSES = {"rollout": RolloutWorkerActor, "learner": LearnerActor, "evaluator": EvaluatorActor}
_CALLED = {"rollout": "rollout worker", "learner": "learner", "evaluator": "evaluator"}
_CONCURRENCY_GROUPS = {
    "rollout": {"control": 1},
    "learner": {"control": 1, "staging": 1, "saving": 1},
    "evaluator": {"control": 1},
}


class RayChild:
    def __init__(self, identity: Identity, handle: Any, node_id: str) -> None:
        self.identity = identity
        self._handle = handle
        self._node_id = node_id

    def call(self, method: str, *args: Any, results: int = 1) -> Any:
        return getattr(self._handle, method).options(num_returns=results).remote(*args)

    def retire(self) -> None:
        with suppress(Exception):  # a child that is gone already, or a cluster that is
            self._handle.leave.options(max_task_retries=0).remote()  # Ray would tell of retries after the kill
            ray.kill(self._handle, no_restart=True)

    def kill(self, info: ProcessInfo | None) -> None:
        self.retire()
        # Ray gives a process that does not answer five seconds; on this node that can be spared.
        if info is not None and info.node_id == self._node_id:
            _kill_process(info)


class RayChildren:
    """Starts the children of one run."""

    def __init__(self, config: RunConfig, run: str) -> None:
        self._config = config
        self._run = run
        self._namespace = namespace_of(run)
        self._node_id = ray.get_runtime_context().get_node_id()
        self._group_name = f"metta/{run}/learners"
        self._group: PlacementGroup | None = None
        # While Ray's GCS is away, a question to it takes until it is back.
        self._leaving = LastAnswer(draining_nodes, first=set[str](), name="nodes")
        self._without_process: dict[str, list[Any]] = {role: [] for role in _CLASSES}

    def start(self, role: str, identity: Identity, *args: Any) -> RayChild:
        options: dict[str, Any] = {
            "name": identity.actor_name,
            "namespace": self._namespace,
            "lifetime": "detached",
            "max_restarts": 0,
            # Of a call whose request or answer was lost: every method may be called twice with the effect of once.
            "max_task_retries": -1,
            "enable_task_events": role != "rollout",  # one event per fragment would load the cluster's head
            **self._resources(role),
        }
        # Ray's own types do not know this option.
        actor = ray.remote(concurrency_groups=_CONCURRENCY_GROUPS[role])(_CLASSES[role])  # type: ignore[call-overload]
        handle = actor.options(**options).remote(identity, *args)
        self._without_process[role].append(handle)
        return RayChild(identity, handle, self._node_id)

    def find(self, identity: Identity) -> RayChild | None:
        try:
            handle = ray.get_actor(identity.actor_name, namespace=self._namespace)
        except ValueError:
            return None
        return RayChild(identity, handle, self._node_id)

    def wait(self, futures: Sequence[Future], timeout_s: float) -> list[Future]:
        futures = list(futures)
        if not futures:
            time.sleep(timeout_s)  # whoever calls this in a loop must not spin
            return []
        done, rest = ray.wait(futures, num_returns=1, timeout=timeout_s, fetch_local=False)
        if done and rest:
            more, _ = ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=False)
            done += more
        return done

    def result(self, future: Future, timeout_s: float = 5.0) -> Any:
        return ray.get(future, timeout=timeout_s)

    def leaving_nodes(self) -> set[str]:
        return self._leaving.get()

    def missing_resources(self, role: str, count: int) -> str | None:
        waiting = self._without_process[role] = [a for a in self._without_process[role] if not has_process(a)]
        count = min(count, len(waiting))
        need, free = self._needed(role), free_resources()
        missing = [
            f"{amount:g} {name} ({free.get(name, 0.0):g} free)"
            for name, amount in need.items()
            if amount * count > free.get(name, 0.0)
        ]
        whom = f"each of {count} {_CALLED[role]}s" if count > 1 else f"1 {_CALLED[role]}"
        return f"{' and '.join(missing)} for {whom}" if missing else None

    def remove_group(self) -> None:
        """Gives the learners' resources back."""
        with suppress(ValueError):
            remove_placement_group(self._group or get_placement_group(self._group_name))

    def _resources(self, role: str) -> dict[str, Any]:
        rollout, learner = self._config.rollout, self._config.learner
        if role == "rollout":
            return {"num_cpus": rollout.num_cpus, "num_gpus": rollout.num_gpus, "resources": dict(rollout.resources)}
        if role == "learner":
            place = PlacementGroupSchedulingStrategy(self._learners(), placement_group_capture_child_tasks=False)
            return {"num_cpus": learner.num_cpus, "num_gpus": learner.num_gpus, "scheduling_strategy": place}
        evaluator = self._config.evaluator
        return {"num_cpus": evaluator.num_cpus, "resources": dict(evaluator.resources)}

    def _needed(self, role: str) -> dict[str, float]:
        if role == "learner":
            need = {"CPU": self._config.learner.num_cpus, "GPU": self._config.learner.num_gpus}
        elif role == "rollout":
            rollout = self._config.rollout
            need = {"CPU": rollout.num_cpus, "GPU": rollout.num_gpus, **rollout.resources}
        else:
            need = {"CPU": self._config.evaluator.num_cpus, **self._config.evaluator.resources}
        return {name: amount for name, amount in need.items() if amount}

    def _learners(self) -> PlacementGroup:
        if self._group is None:
            try:
                self._group = get_placement_group(self._group_name)
            except ValueError:
                bundle = self._needed("learner") or {"CPU": 0.001}
                self._group = placement_group(
                    [dict(bundle) for _ in range(self._config.learner.replicas)],
                    strategy="PACK",
                    name=self._group_name,
                    lifetime="detached",
                )
        return self._group


def _kill_process(info: ProcessInfo) -> None:
    with suppress(psutil.Error, OSError):
        if abs(psutil.Process(info.pid).create_time() - info.created) < 1.0:  # not another one with its number
            os.kill(info.pid, signal.SIGKILL)
