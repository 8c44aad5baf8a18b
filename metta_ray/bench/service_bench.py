"""The service's speed in a real asynchronous run, beside the library's best and the floor on the same machine.

Each run is what ``metta-ray train`` starts, on a Ray of its own, in the layout that it chooses by itself or in one that
was asked for, with the batch and minibatch of ``bench train``. Its rate is that of the middle of the run, read from its
metrics.jsonl. The library is measured before and after each of them, so that a machine that changes its speed is seen.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from metta_ray.bench.machine import describe_machine
from metta_ray.bench.own_ray import end_session
from metta_ray.bench.train_bench import BATCH, NETWORKS, WORKLOADS, check_name, measure_case
from metta_ray.bench.train_loop import ENVIRONMENTS
from metta_ray.common.errors import UsageError

RUN = "bench"
AUTO = "auto"
MINIBATCH = {"default": 1024, "light": 4096}
LIBRARY_ARRANGEMENTS = ("2x1", "1x2")
GOAL_OF_LIBRARY = 0.9
GOAL_OF_FLOOR = {"default": 0.65, "light": 0.75}
FEWEST_UPDATES = 6
START_S, STOP_S = 120.0, 60.0
LOOK_EVERY_S = 0.25


def run(
    seconds: float,
    networks: Sequence[str] = NETWORKS,
    workload: str = "simple",
    layouts: Sequence[str] = (AUTO,),
    arrangements: Sequence[str] = LIBRARY_ARRANGEMENTS,
) -> dict[str, Any]:
    """About ``seconds`` of measuring, and the time in which processes start. layouts: ``auto``, or workers x replicas
    such as ``2x1``. UsageError for what is not known, or a run that fails."""
    check_name("workload", workload, WORKLOADS)
    for network in networks:
        check_name("networks", network, NETWORKS)
    settings = {layout: _layout_settings(layout) for layout in layouts}
    part = seconds / len(networks) / (2 * len(arrangements) + 2 * len(layouts))
    rows: list[dict[str, Any]] = []
    for network in networks:
        library = [measure_case(network, workload, MINIBATCH[network], name, part) for name in arrangements]
        runs = {layout: measure_run(network, workload, words, 2 * part) for layout, words in settings.items()}
        library += [measure_case(network, workload, MINIBATCH[network], name, part) for name in arrangements]
        rows += [_compared(network, layout, measured, library) for layout, measured in runs.items()]
    return {"machine": describe_machine(), "workload": workload, "service": rows}


def measure_run(network: str, workload: str, words: Sequence[str], seconds: float) -> dict[str, Any]:
    """Rate over the middle of a run that trains for so long, and the layout it had."""
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryFile() as output:
        command = [sys.executable, "-m", "metta_ray", "train", "--run", RUN, "--data-dir", directory]
        command += [*_settings(network, workload), *words]
        environment = {"RAY_USAGE_STATS_ENABLED": "0"} | dict(os.environ)
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
        try:
            records = _train(process, Path(directory) / RUN / "metrics.jsonl", seconds)
        finally:
            end_session(process.pid)
        output.seek(0)
        text = output.read().decode(errors="replace")
    if len(records) < FEWEST_UPDATES:
        raise UsageError(
            f"the run made {len(records)} updates in {seconds:.0f} s, too few to measure; give more --seconds:\n"
            f"{text[-2000:]}"
        )
    return middle_of(records) | {"layout": _layout_of(text)}


def middle_of(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The rate without the first third of the updates, while everything starts, and without the last."""
    kept = records[len(records) // 3 : -1]
    steps = kept[-1]["agent_step"] - kept[0]["agent_step"]
    took = sum(record["epoch_seconds"] for record in kept[1:])
    return {
        "agent_steps_per_second": round(steps / took),
        "updates": len(kept) - 1,
        "staleness": kept[-1]["staleness/mean"],
        "own_efficiency": kept[-1].get("efficiency"),
        "shares": {name.removeprefix("share/"): _mean(kept, name) for name in kept[-1] if name.startswith("share/")},
    }


def report(result: dict[str, Any]) -> str:
    machine = result["machine"]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, load {machine['load_average_1m']}; {result['workload']}, "
        f"batch {BATCH:,}, agent steps per second",
        f"{'network':<9}{'layout':<8}{'service':>10}{'library':>10}{'floor':>10}{'of library':>12}"
        f"{'of floor':>10}  shares of worker or learner time",
    ]
    for row in result["service"]:
        lines.append(
            f"{row['network']:<9}{row['asked']:<8}{row['agent_steps_per_second']:>10,}{row['library']:>10,}"
            f"{row['floor']:>10,}{row['of_library']:>12.2f}{row['of_floor']:>10.2f}  "
            + ", ".join(f"{name} {share:.0%}" for name, share in row["shares"].items())
        )
        lines.append(f"{'':<9}{row['layout']}")
    goals = ", ".join(f"{network} {goal}" for network, goal in GOAL_OF_FLOOR.items())
    minibatches = ", ".join(f"{network} {size:,}" for network, size in MINIBATCH.items())
    lines.append(f"minibatch: {minibatches}")
    return "\n".join([*lines, f"goals: {GOAL_OF_LIBRARY} of the library; of the floor {goals}"])


def _settings(network: str, workload: str) -> list[str]:
    return [
        *("--env", ENVIRONMENTS[workload], "--agent.architecture", network, "--evaluate", "false"),
        *("--trainer.batch-size", str(BATCH), "--trainer.minibatch-size", str(MINIBATCH[network])),
        *("--trainer.update-epochs", "1", "--total-timesteps", str(10**12)),
    ]


def _layout_settings(layout: str) -> list[str]:
    if layout == AUTO:
        return []
    workers, _, replicas = layout.partition("x")
    if not (workers.isdigit() and replicas.isdigit()):
        raise UsageError(f"--layouts {layout}: give {AUTO}, or workers x learner replicas such as 2x1")
    return ["--workers", workers, "--learner.replicas", replicas]


def _train(process: subprocess.Popen[bytes], metrics: Path, seconds: float) -> list[dict[str, Any]]:
    """What was recorded until ``seconds`` after the first update. Leaves early if the run ends by itself."""
    began = time.monotonic()
    deadline = began + START_S
    is_training = False
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(LOOK_EVERY_S)
        if not is_training and metrics.exists() and metrics.stat().st_size:
            is_training, deadline = True, time.monotonic() + seconds
    records = _records(metrics)
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):  # its session is ended anyway
            process.wait(STOP_S)
    return records


def _records(metrics: Path) -> list[dict[str, Any]]:
    """All whole lines."""
    if not metrics.exists():
        return []
    return [json.loads(line) for line in metrics.read_text().split("\n")[:-1]]


def _mean(records: Sequence[dict[str, Any]], name: str) -> float:
    values = [record[name] for record in records if record.get(name) is not None]
    return round(float(statistics.mean(values)), 3)


def _layout_of(text: str) -> str:
    """The line in which the run says its layout."""
    return next((line for line in text.splitlines() if line.startswith(f"run {RUN}:")), "")


def _compared(network: str, asked: str, measured: dict[str, Any], library: Sequence[dict[str, Any]]) -> dict[str, Any]:
    by_arrangement: dict[str, list[dict[str, Any]]] = {}
    for row in library:
        by_arrangement.setdefault(row["arrangement"], []).append(row)
    rates = {
        name: statistics.mean(row["agent_steps_per_second"] for row in rows) for name, rows in by_arrangement.items()
    }
    best = max(rates, key=rates.__getitem__)
    floor = statistics.mean(row["floor"] for row in library)
    rate = measured["agent_steps_per_second"]
    return measured | {
        "network": network,
        "asked": asked,
        "library": round(rates[best]),
        "library_arrangement": best,
        "floor": round(floor),
        "of_library": round(rate / rates[best], 3),
        "of_floor": round(rate / floor, 3),
    }
