"""What ``metta-ray plan`` predicts against real runs with 1, 2 and 4 rollout workers.

Predictions come from the times of the parts alone, measured just before and just after each run (machines change their
speed). The runs are real:
rollout workers and a learner as actors of a Ray of its own, and the coordinator's loop.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from metta_ray.bench.machine import describe_machine
from metta_ray.bench.own_ray import in_own_ray
from metta_ray.control.plan import Job, Layout, Prediction, Resources, predict
from metta_ray.control.rates import ServiceTimes
from metta_ray.service.run_config import RunConfig, load_run_config
from metta_ray.service.sizes import Sizes, resolved_sizes

WORKERS = (1, 2, 4)
PRESET = "navigation"
GOAL_ERROR = 0.15
WARM_UP_UPDATES = 3
FEWEST_UPDATES = 5


def run(seconds: float, preset: str = PRESET, workers: Sequence[int] = WORKERS) -> dict[str, Any]:
    """Takes about ``seconds`` and the time in which processes start."""
    words = {"preset": preset, "learner.replicas": "1", "trainer.total_timesteps": str(10**12)}
    machine = describe_machine()
    arguments = {"words": words, "workers": list(workers), "seconds": seconds / len(workers)}
    runs = in_own_ray("metta_ray.bench.plan_bench:measure", arguments, num_cpus=max(workers) + 2)
    config = load_run_config(None, words)
    return {
        "machine": machine,
        "preset": preset,
        "runs": [row | _compared(_predicted(config, row, machine["cores"]), row) for row in runs],
    }


def measure(words: dict[str, str], workers: Sequence[int], seconds: float) -> list[dict[str, Any]]:
    """Runs inside a Ray; about so many seconds for each number of workers, and the time they need to start."""
    from dataclasses import asdict

    from metta_ray.agent import spec_json
    from metta_ray.bench.control_loop import ControlLoop
    from metta_ray.rl.vecenv import training_factory
    from metta_ray.service.rates import measure_service_times
    from metta_ray.service.ray_children import RayChildren
    from metta_ray.service.shared_directory import leave_nonce

    config = load_run_config(None, words | {"rollout.num_workers": str(min(workers))})
    environment = training_factory(config.trainer)
    spec = environment.spec()
    sizes = resolved_sizes(config, spec.agents_per_env)
    rows = []
    with tempfile.TemporaryDirectory() as run_dir:
        settings = config.model_dump()
        loop = ControlLoop(
            Path(run_dir),
            RayChildren(config, "bench"),
            config,
            sizes,
            lambda slot: (settings, sizes, None),
            (settings, sizes, spec_json.to_json(spec), run_dir, leave_nonce(run_dir)),
            environment.curriculum(),
        )
        before = measure_service_times(config.trainer, config.agent)
        for count in sorted(workers):
            loop.pool.wanted = count
            while len(loop.pool.ready) < count:
                loop.pipeline.step(0.05)
            took = loop.run_updates(WARM_UP_UPDATES) / WARM_UP_UPDATES
            updates = max(FEWEST_UPDATES, round(seconds / took))
            others = _OtherLoad(loop)
            took = loop.run_updates(updates)
            background_cores = others.cores()
            record = loop.records[-1]
            loop.await_quiet()
            after = measure_service_times(config.trainer, config.agent)
            times, before = _mean(before.to_json(), after.to_json()), after
            rows.append(
                {
                    "workers": count,
                    "measured": updates * sizes.batch_steps / took,
                    "updates": updates,
                    "background_cores": round(background_cores, 3),
                    "limited_by_then": record["limited_by"],
                    "shares": dict(record["shares"]),
                    "sizes": asdict(sizes),
                    "times": times,
                }
            )
        loop.close()
    return rows


class _OtherLoad:
    """Cores that were busy with something else than rollout workers and learners, on average since it was made: Ray's
    processes, this one, and whatever else runs on the machine or beside it on its host."""

    def __init__(self, loop: Any) -> None:
        infos = [member.info for member in loop.pool.ready] + [replica.info for replica in loop.learners.members]
        self._processes = [psutil.Process(info.pid) for info in infos]
        self._began, self._busy, self._ours = time.perf_counter(), _busy_s(), self._used_s()

    def cores(self) -> float:
        busy, ours = _busy_s() - self._busy, self._used_s() - self._ours
        return max(0.0, busy - ours) / (time.perf_counter() - self._began)

    def _used_s(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self._processes)


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(sum(times)) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)


def _predicted(config: RunConfig, row: dict[str, Any], cores: int) -> Prediction:
    sizes = Sizes(**row["sizes"])
    job = Job(
        batch_steps=sizes.batch_steps,
        minibatch_steps=config.trainer.minibatch_size,
        horizon=config.trainer.bptt_horizon,
        agents_per_env=sizes.agents_per_worker // sizes.num_envs,
        update_epochs=config.trainer.update_epochs,
        target_staleness=config.pacing.target_staleness,
    )
    layout = Layout(
        row["workers"],
        config.learner.replicas,
        sizes.agents_per_worker,
        sizes.fragment_steps,
        config.learner.threads,
    )
    return predict(
        ServiceTimes.from_json(row["times"]),
        job,
        layout,
        Resources(cores=cores, background_cores=row["background_cores"]),
    )


def _compared(prediction: Prediction, row: dict[str, Any]) -> dict[str, Any]:
    return {
        "predicted": prediction.agent_steps_per_second,
        "error": prediction.agent_steps_per_second / row["measured"] - 1.0,
        "limited_by": prediction.limited_by,
        "worker_waiting": prediction.worker_waiting,
        "learner_waiting": prediction.learner_waiting,
        "efficiency": row["measured"] / prediction.agent_steps_per_second * prediction.efficiency,
        "goal_error": GOAL_ERROR,
    }


def _mean(one: Any, other: Any) -> Any:
    """Of like trees of numbers."""
    if isinstance(one, dict):
        return {name: _mean(one[name], other[name]) for name in one}
    if isinstance(one, list | tuple):
        return [_mean(a, b) for a, b in zip(one, other, strict=True)]
    return (one + other) / 2


def report(result: dict[str, Any]) -> str:
    machine = result["machine"]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, load {machine['load_average_1m']}, {result['preset']}",
        f"{'rollout workers':<18}{'predicted (1/s)':>16}{'measured (1/s)':>16}{'error':>8}{'goal':>7}"
        f"{'of floor':>10}{'other load':>12}  limited by",
    ]
    lines += [
        f"{row['workers']:<18}{row['predicted']:>16,.0f}{row['measured']:>16,.0f}{row['error']:>+8.0%}"
        f"{row['goal_error']:>7.0%}{row['efficiency']:>10.2f}{row['background_cores']:>12.2f}"
        f"  {row['limited_by']} ({row['limited_by_then']})"
        for row in result["runs"]
    ]
    return "\n".join(lines)
