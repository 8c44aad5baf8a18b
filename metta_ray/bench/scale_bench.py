"""Agent steps per second with more and more rollout workers, whose environments sleep instead of computing.

Everything else is a run's own: rollout worker and learner actors, their networks, pool, pipeline, journal. What is lost
against ``workers × the speed of one`` is what the service costs, until the machine's cores are used up.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metta_ray.bench.machine import describe_machine
from metta_ray.bench.own_ray import in_own_ray

WORKERS = (1, 2, 4, 8, 16)
ENVIRONMENT = "metta_ray.bench.sleeping_env:SleepingEnv"


def measure(workers: Sequence[int], seconds: float, step_s: float) -> list[dict[str, Any]]:
    """Runs inside a Ray; about so many seconds for each number of workers, and the time they need to start."""
    from metta_ray.agent import spec_json
    from metta_ray.bench.control_loop import ControlLoop, small_run
    from metta_ray.rl.vecenv import training_factory
    from metta_ray.service.ray_children import RayChildren
    from metta_ray.service.shared_directory import leave_nonce

    most = max(workers)
    environment = {"env": ENVIRONMENT, "trainer.env_overrides": f"{{step_s: {step_s}}}"}
    config, sizes = small_run(1, most, **environment, **{"trainer.update_epochs": 1})
    spec = spec_json.to_json(training_factory(config.trainer).spec())
    rows = []
    with tempfile.TemporaryDirectory() as run_dir:
        arguments = (config.model_dump(), sizes, spec, run_dir, leave_nonce(run_dir))
        children = RayChildren(config, "bench")
        loop = ControlLoop(
            Path(run_dir), children, config, sizes, lambda slot: (config.model_dump(), sizes, None), arguments
        )
        for count in sorted(workers):
            loop.pool.wanted = count
            while len(loop.pool.ready) < count:
                loop.pipeline.step(0.05)
            loop.run(seconds / 3)
            # By deliveries, not by updates: a batch may take longer than the measurement.
            before, began = loop.delivered, time.perf_counter()
            loop.run(seconds)
            rate = (loop.delivered - before) * sizes.fragment_steps / (time.perf_counter() - began)
            rows.append({"workers": count, "agent_steps_per_second": round(rate, 1)})
        loop.close()
        children.remove_group()
    one = rows[0]["agent_steps_per_second"] / rows[0]["workers"]
    return [row | {"share_of_linear": round(row["agent_steps_per_second"] / row["workers"] / one, 3)} for row in rows]


def run(seconds: float, workers: Sequence[int] = WORKERS, step_s: float = 0.004) -> dict[str, Any]:
    """Takes about ``seconds`` and the time in which processes start."""
    arguments = {"workers": list(workers), "seconds": seconds / len(workers), "step_s": step_s}
    rows = in_own_ray("metta_ray.bench.scale_bench:measure", arguments, num_cpus=max(workers) + 2)
    return {"machine": describe_machine(), "scale": rows}


def report(result: dict[str, Any]) -> str:
    machine = result["machine"]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, load {machine['load_average_1m']}",
        f"{'rollout workers':<18}{'agent steps/s':>15}{'of linear':>12}",
    ]
    lines += [
        f"{row['workers']:<18}{row['agent_steps_per_second']:>15,.0f}{row['share_of_linear']:>12.2f}"
        for row in result["scale"]
    ]
    return "\n".join(lines)
