"""What the coordinator can handle: its real loop, books and journal, with workers and learners that answer at once.

Dispatch is the time from a worker's answer until its next order. Memory is bounded if it no longer grows once
everything has been met.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from metta_ray.bench.control_loop import ControlLoop, small_run
from metta_ray.bench.instant_children import InstantChildren
from metta_ray.bench.machine import describe_machine
from metta_ray.bench.own_ray import in_own_ray

GOAL_FRAGMENTS_PER_SECOND = 1000
GOAL_DISPATCH_P99_MS = 50.0
GOAL_REAL_FRAGMENTS_PER_SECOND = 300
SLEEP_S = 0.03


def measure_in_process(workers: int, seconds: float) -> dict[str, Any]:
    config, sizes = small_run(workers)
    children = InstantChildren(sizes)
    process = psutil.Process()
    with tempfile.TemporaryDirectory() as run_dir:
        loop = ControlLoop(Path(run_dir), children, config, sizes)
        loop.run(seconds / 5)
        children.take_dispatch_s()
        cpu_s, before = time.process_time(), loop.fragments
        rate = loop.run(seconds * 2 / 5)
        cpu_ms = 1000 * (time.process_time() - cpu_s) / max(1, loop.fragments - before)
        dispatch_ms = 1000 * np.array(children.take_dispatch_s())
        halfway = process.memory_info().rss
        loop.run(seconds * 2 / 5)
        children.take_dispatch_s()
        growth = process.memory_info().rss - halfway
        imbalance = loop.books.ledger.imbalance()
        loop.close()
    return {
        "workers": workers,
        "fragments_per_second": round(rate),
        "cpu_ms_per_fragment": round(cpu_ms, 3),
        "dispatch_p50_ms": round(float(np.percentile(dispatch_ms, 50)), 2),
        "dispatch_p99_ms": round(float(np.percentile(dispatch_ms, 99)), 2),
        "memory_growth_mb": round(growth / 1e6, 2),
        "imbalance": imbalance,
        "goal_fragments_per_second": GOAL_FRAGMENTS_PER_SECOND,
        "goal_dispatch_p99_ms": GOAL_DISPATCH_P99_MS,
    }


def run(seconds: float, workers: int = 16, *, real: bool = False) -> dict[str, Any]:
    """Takes about ``seconds``, and as long again for ``real``: actors of a Ray of its own that sleep."""
    result = {"machine": describe_machine(), "in_process": measure_in_process(workers, seconds)}
    if real:
        arguments = {"workers": workers, "seconds": seconds, "sleep_s": SLEEP_S}
        measured = in_own_ray("metta_ray.bench.sleeping_workers:measure", arguments, num_cpus=workers)
        result["real"] = measured | {"goal_fragments_per_second": GOAL_REAL_FRAGMENTS_PER_SECOND}
    return result


def report(result: dict[str, Any]) -> str:
    machine, row = result["machine"], result["in_process"]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, load {machine['load_average_1m']}",
        f"{'the coordinator alone':<32}{'measured':>12}{'goal':>12}",
        f"{'fragments per second':<32}{row['fragments_per_second']:>12,}{row['goal_fragments_per_second']:>12,}",
        f"{'processor time each (ms)':<32}{row['cpu_ms_per_fragment']:>12.2f}",
        f"{'dispatch, median (ms)':<32}{row['dispatch_p50_ms']:>12.2f}",
        f"{'dispatch, 99 of 100 (ms)':<32}{row['dispatch_p99_ms']:>12.2f}{row['goal_dispatch_p99_ms']:>12.0f}",
        f"{'memory growth (MB)':<32}{row['memory_growth_mb']:>12.2f}",
    ]
    if real := result.get("real"):
        lines += [
            f"{'with real sleeping workers':<32}{'measured':>12}{'goal':>12}",
            f"{'workers':<32}{real['workers']:>12}",
            f"{'fragments per second':<32}{real['fragments_per_second']:>12,.0f}"
            f"{real['goal_fragments_per_second']:>12,}",
        ]
    return "\n".join(lines)
