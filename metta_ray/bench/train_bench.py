"""The library's whole loop with real environments, beside what the machine could do if its cores never waited.

The floor is cores / (environment + inference + learning), each part by itself on one core as plain torch and the bare
engine do it (floor_parts.py), measured in the same process just before and just after the loop. Arrangements: one
process with one or two threads, and two ranks with one thread each, which exchange gradients; all of them collect and
learn the same global batch and minibatch.

``workload="cartpole"``: CartPole with an MLP, whose floor is Python itself; beside it, with ``sb3_python``, plain
Stable-Baselines3 in an interpreter that has it, with the same counts, in turn.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from metta_ray.bench.floor_parts import PARTS
from metta_ray.bench.machine import describe_machine
from metta_ray.bench.train_loop import LoopTask
from metta_ray.common.errors import UsageError

NETWORKS = ("default", "light")
WORKLOADS = ("simple", "bucketed")
ARRANGEMENTS = {"1x1": (1, 1), "1x2": (1, 2), "2x1": (2, 1)}
"""Processes × threads."""

ROWS, BATCH = 256, 16_384
MINIBATCHES = {"default": (1024,), "light": (1024, 4096)}
GOALS = {("default", 1024): 0.70, ("light", 1024): 0.70, ("light", 4096): 0.75}
CARTPOLE = {"rows": 8, "batch": 2048, "minibatch": 256, "update_epochs": 4, "horizon": 32}
CARTPOLE_TURNS = 3
GOAL_OF_SB3 = 1.6
TIMEOUT_S = 600.0
SB3_SCRIPT = Path(__file__).with_name("sb3_cartpole.py")


def run(
    seconds: float,
    networks: Sequence[str] = NETWORKS,
    workload: str = "simple",
    arrangements: Sequence[str] = tuple(ARRANGEMENTS),
    minibatches: Sequence[int] | None = None,
    sb3_python: str | None = None,
) -> dict[str, Any]:
    """About ``seconds`` of measuring, and the time in which processes start. UsageError for unknown names."""
    if workload == "cartpole":
        return {"machine": describe_machine(), "cartpole": measure_cartpole(seconds, sb3_python)}
    check_name("workload", workload, WORKLOADS)
    for name in arrangements:
        check_name("arrangements", name, ARRANGEMENTS)
    for network in networks:
        check_name("networks", network, NETWORKS)
    cases = [
        (network, minibatch, name)
        for network in networks
        for minibatch in minibatches or MINIBATCHES[network]
        for name in arrangements
    ]
    rows = [
        measure_case(network, workload, minibatch, name, seconds / len(cases)) for network, minibatch, name in cases
    ]
    return {"machine": describe_machine(), "workload": workload, "train": rows}


def measure_case(network: str, workload: str, minibatch: int, arrangement: str, seconds: float) -> dict[str, Any]:
    ranks, threads = ARRANGEMENTS[arrangement]
    task = LoopTask(
        network,
        workload,
        threads,
        rows=ROWS // ranks,
        batch=BATCH // ranks,
        minibatch=minibatch // ranks,
        seconds=seconds * 0.6,
        floor_seconds=seconds * 0.4,
    )
    measured = run_ranks(task, ranks)
    rate = statistics.median(measured["rates"])
    cores = ranks * threads
    floor = cores * 1e6 / sum(measured["floor"].values())
    return {
        "network": network,
        "minibatch": minibatch,
        "arrangement": arrangement,
        "agent_steps_per_second": round(rate),
        "floor": round(floor),
        "ratio": round(rate / floor, 3),
        "goal_ratio": GOALS.get((network, minibatch)),
        "rates": measured["rates"],
        "profile": measured["profile"],
        "floor_profile": measured["floor"],
    }


def run_ranks(task: LoopTask, ranks: int) -> dict[str, Any]:
    """What rank 0 measured. UsageError with what a rank printed where one fails."""
    command = [sys.executable, "-m", "metta_ray.bench.train_loop", json.dumps(asdict(task))]
    port = str(_free_port())
    processes = []
    for rank in range(ranks):
        group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = os.environ | ({name: str(value) for name, value in group.items()} if ranks > 1 else {})
        environment["OMP_NUM_THREADS"] = str(task.threads)
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    try:
        outputs = [process.communicate(timeout=TIMEOUT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        if process.returncode:
            raise UsageError(f"training in {ranks} process(es) failed:\n{errors.decode(errors='replace')[-2000:]}")
    result: dict[str, Any] = json.loads(outputs[0][0].decode().splitlines()[-1])
    return result


def measure_cartpole(seconds: float, sb3_python: str | None) -> dict[str, Any]:
    """Environment steps per second; with an interpreter that has Stable-Baselines3, its own in turn with ours."""
    part = seconds / CARTPOLE_TURNS / (2 if sb3_python else 1)
    task = LoopTask("mlp", "cartpole", 1, seconds=part, floor_seconds=0.0, **CARTPOLE)
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(CARTPOLE_TURNS):
        measured = run_ranks(task, 1)
        ours.append(statistics.median(measured["rates"]))
        if sb3_python:
            theirs.append(_sb3_rate(sb3_python, part))
    result: dict[str, Any] = {"settings": CARTPOLE, "ours": round(statistics.median(ours)), "rates": ours}
    result["profile"] = measured["profile"]
    if theirs:
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        result |= {"sb3": round(statistics.median(theirs)), "sb3_rates": theirs, "ratio": round(ratio, 3)}
        result["goal_ratio"] = GOAL_OF_SB3
    return result


def _sb3_rate(python: str, seconds: float) -> float:
    settings = CARTPOLE | {"seconds": seconds}
    try:
        run = subprocess.run(
            [python, str(SB3_SCRIPT), json.dumps(settings)], capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except OSError as error:
        raise UsageError(f"--sb3-python {python}: {error.strerror}; give a Python that has stable-baselines3") from None
    if run.returncode:
        raise UsageError(f"--sb3-python {python} failed:\n{run.stderr[-2000:]}")
    return float(json.loads(run.stdout.splitlines()[-1])["env_steps_per_second"])


def report(result: dict[str, Any]) -> str:
    machine = result["machine"]
    lines = [f"{machine['processor']}, {machine['cores']} cores, load {machine['load_average_1m']}"]
    if "cartpole" in result:
        return "\n".join(lines + _cartpole_lines(result["cartpole"]))
    lines += [
        f"{result['workload']}, agent steps per second; floor: the same cores if they never waited",
        f"{'network':<9}{'minibatch':>10}{'processes x threads':>21}{'ours':>10}{'floor':>10}{'ratio':>8}{'goal':>7}",
    ]
    lines += [
        f"{row['network']:<9}{row['minibatch']:>10}{row['arrangement']:>21}{row['agent_steps_per_second']:>10,}"
        f"{row['floor']:>10,}{row['ratio']:>8.2f}{row['goal_ratio'] or 0:>7.2f}"
        for row in result["train"]
    ]
    lines.append("microseconds per agent step of one process, ours / floor")
    for row in result["train"]:
        lines.append(f"{row['network']} {row['minibatch']} {row['arrangement']}: " + _profile_text(row))
    return "\n".join(lines)


def _profile_text(row: Mapping[str, Any]) -> str:
    ours, floor = row["profile"], row["floor_profile"]
    names = [*PARTS, *sorted(set(ours) - set(PARTS))]
    return ", ".join(
        f"{name} {ours.get(name, 0.0):.1f}" + (f"/{floor[name]:.1f}" if name in floor else "") for name in names
    )


def _cartpole_lines(row: dict[str, Any]) -> list[str]:
    lines = [f"CartPole, MLP 64-64, {row['settings']}", f"{'ours':<20}{row['ours']:>10,} environment steps/s"]
    if "sb3" in row:
        lines.append(f"{'Stable-Baselines3':<20}{row['sb3']:>10,}")
        lines.append(f"{'ratio':<20}{row['ratio']:>10.2f}   goal {row['goal_ratio']}")
    parts = sorted(row["profile"].items(), key=lambda part: -part[1])
    return [*lines, "microseconds per step: " + ", ".join(f"{name} {value:.1f}" for name, value in parts)]


def check_name(option: str, name: str, known: Sequence[str] | Mapping[str, Any]) -> None:
    if name not in known:
        raise UsageError(f"--{option} {name}: known are {', '.join(known)}")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
