"""What the coordinator can handle: its real loop, books and journal, with workers and learners that answer at once.

Dispatch is the time from a worker's answer until its next order. Memory is bounded if it no longer grows once
everything has been met. Then with as many workers as a large cluster has: how many fragments per second the loop can
take, and, with fragments that take seconds as in a real run, how long its turns are.
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
LARGE = ((16, 1), (128, 4), (512, 8), (2000, 16))
"""Rollout workers and learner replicas."""
FRAGMENT_S = 2.0


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


def measure_large(workers: int, replicas: int, seconds: float) -> dict[str, Any]:
    """One fragment of each worker makes a batch, so that all are busy."""
    words = {"learner.replicas": replicas}
    config, sizes = small_run(workers, fragments_per_batch=workers, **words)
    with tempfile.TemporaryDirectory() as run_dir:
        loop = ControlLoop(Path(run_dir), InstantChildren(sizes), config, sizes)
        loop.run(seconds / 8)
        capacity = loop.run(seconds * 3 / 8)
        loop.close()
    with tempfile.TemporaryDirectory() as run_dir:
        loop = ControlLoop(Path(run_dir), InstantChildren(sizes, FRAGMENT_S), config, sizes)
        loop.run(FRAGMENT_S)
        before, cpu_s, began = loop.delivered, time.process_time(), time.perf_counter()
        turns_ms = 1000 * np.array(loop.turns(max(FRAGMENT_S, seconds / 2)))
        took = time.perf_counter() - began
        cpu_s, delivered = time.process_time() - cpu_s, loop.delivered - before
        imbalance = loop.books.ledger.imbalance()
        loop.close()
    return {
        "workers": workers,
        "replicas": replicas,
        "capacity_fragments_per_second": round(capacity),
        "fragments_per_second": round(delivered / took, 1),
        "turn_p50_ms": round(float(np.percentile(turns_ms, 50)), 2),
        "turn_p99_ms": round(float(np.percentile(turns_ms, 99)), 2),
        "core_share": round(cpu_s / took, 3),
        "imbalance": imbalance,
    }


def run(seconds: float, workers: int = 16, *, real: bool = False) -> dict[str, Any]:
    """Takes about ``seconds``, and as long again for ``real``: actors of a Ray of its own that sleep."""
    result: dict[str, Any] = {"machine": describe_machine(), "in_process": measure_in_process(workers, seconds / 2)}
    result["large"] = [measure_large(*large, seconds / 2 / len(LARGE)) for large in LARGE]
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
    lines += [
        f"{'workers':>8}{'replicas':>10}{'at most (fragments/s)':>24}{'with 2 s each':>15}{'turn p50 (ms)':>15}"
        f"{'p99 (ms)':>10}{'of a core':>11}",
    ]
    lines += [
        f"{row['workers']:>8,}{row['replicas']:>10}{row['capacity_fragments_per_second']:>24,}"
        f"{row['fragments_per_second']:>15,.0f}{row['turn_p50_ms']:>15.2f}{row['turn_p99_ms']:>10.2f}"
        f"{row['core_share']:>11.0%}"
        for row in result["large"]
    ]
    if real := result.get("real"):
        lines += [
            f"{'with real sleeping workers':<32}{'measured':>12}{'goal':>12}",
            f"{'workers':<32}{real['workers']:>12}",
            f"{'fragments per second':<32}{real['fragments_per_second']:>12,.0f}"
            f"{real['goal_fragments_per_second']:>12,}",
        ]
    return "\n".join(lines)
