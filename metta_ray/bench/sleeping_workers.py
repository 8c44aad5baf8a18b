"""Real Ray actors that sleep instead of collecting: what the coordinator's loop reaches with Ray between."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import ray

from metta_ray.bench.control_loop import ControlLoop, small_run
from metta_ray.bench.instant_children import InstantLearner, InstantWorker
from metta_ray.service.identity import Identity
from metta_ray.service.ray_children import RayChild, RayChildren
from metta_ray.service.run_config import RunConfig
from metta_ray.service.sizes import Sizes


class SleepingWorker(InstantWorker):
    @ray.method(concurrency_group="control")
    def describe(self) -> Any:  # type: ignore[override]
        return super().describe()


class SleepingChildren(RayChildren):
    """Starts them without asking for cores, which they do not use."""

    def __init__(self, config: RunConfig, sizes: Sizes, sleep_s: float) -> None:
        super().__init__(config, "bench")
        self._sizes = sizes
        self._sleep_s = sleep_s

    def start(self, role: str, identity: Identity, *args: Any) -> RayChild:
        del args
        if role == "learner":
            learner: Any = ray.remote(num_cpus=0)(InstantLearner)
            handle = learner.remote(identity)
        else:
            options: dict[str, Any] = {"concurrency_groups": {"control": 1}, "enable_task_events": False}
            worker: Any = ray.remote(num_cpus=0, **options)(SleepingWorker)
            handle = worker.remote(identity, self._sizes, self._sleep_s)
        return RayChild(identity, handle, self._node_id)


def measure(workers: int, seconds: float, sleep_s: float) -> dict[str, Any]:
    """Fragments per second of workers that sleep so long for each."""
    config, sizes = small_run(workers, fragments_per_batch=workers)
    with tempfile.TemporaryDirectory() as run_dir:
        loop = ControlLoop(Path(run_dir), SleepingChildren(config, sizes, sleep_s), config, sizes)
        loop.run(seconds / 4)
        rate = loop.run(seconds * 3 / 4)
        imbalance = loop.books.ledger.imbalance()
        loop.close()
    return {
        "workers": workers,
        "sleep_ms": 1000 * sleep_s,
        "fragments_per_second": round(rate, 1),
        "without_any_cost": round(workers / sleep_s, 1),
        "imbalance": imbalance,
    }
