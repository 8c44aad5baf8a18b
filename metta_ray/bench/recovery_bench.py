"""How long a run takes to get over the death of each of its parts: a real one, killed from outside.

Recurrent navigation in asynchronous mode with two rollout workers and two learner replicas, on a Ray of its own. Each
time is the median of several kills, from the signal until what the row says was seen from outside.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from metta_ray.bench.own_ray import in_own_ray
from metta_ray.common.errors import MettaRayError, UsageError

RUN = "recovery"
COLLECT_DEADLINE_S = 3.0
PATIENCE_S = 120.0
SETTINGS = [
    *("--preset", "navigation", "--total-timesteps", "1000000000", "--evaluate", "false", "--workers", "2"),
    *("--trainer.batch-size", "4096", "--trainer.minibatch-size", "1024", "--rollout.num-envs", "4"),
    *("--learner.replicas", "2", "--trainer.checkpoint.checkpoint-interval", "20"),
    *("--failure.collect-deadline-s", str(COLLECT_DEADLINE_S), "--failure.update-deadline-s", "4"),
    *("--learner.process-group-timeout-s", "4", "--failure.learner.per-run", "1000", "--failure.backoff-s", "0"),
    *("--failure.crash.per-slot", "1000", "--failure.crash.per-run", "1000"),
]
ROWS = {
    "worker": ("rollout worker killed: its successor has delivered", 5.0),
    "survivors": ("learner replica killed: the next update is committed", 5.0),
    "group": ("learner replica killed: both replicas train again", 15.0),
    "coordinator": ("coordinator killed: the next update is committed", 5.0),
    "hang": (f"worker frozen: noticed (deadline {COLLECT_DEADLINE_S:g} s, or 5 × the usual)", COLLECT_DEADLINE_S + 8.0),
}
"""Measured time → what it is, and the seconds it should take at most."""

Status = Mapping[str, Any]


def run(seconds: float = 120.0) -> dict[str, Any]:
    """Median seconds by row, all single times, and what the run itself counted."""
    timeout_s = seconds + 5 * PATIENCE_S
    measured: dict[str, Any] = in_own_ray(f"{__name__}:measure", {"seconds": seconds}, num_cpus=8, timeout_s=timeout_s)
    return measured


def report(result: Mapping[str, Any]) -> str:
    lines = [f"{'':62}  {'median':>7}  {'worst':>7}  {'at most':>7}  times"]
    for name, (what, limit) in ROWS.items():
        times = result["times"][name]
        lines.append(f"{what:62}  {result['medians'][name]:5.1f} s  {max(times):5.1f} s  {limit:5.0f} s  {len(times)}")
    lines.append(
        f"{result['updates']} updates meanwhile, {result['repeated_updates']} of them repeated, "
        f"{result['imbalance']} agent steps unaccounted for"
    )
    return "\n".join(lines)


def measure(seconds: float) -> dict[str, Any]:
    """In a process that is connected to the Ray the run is to use."""
    import ray

    from metta_ray.service.connection import coordinator_of

    with tempfile.TemporaryDirectory() as directory:
        address = str(ray.get_runtime_context().gcs_address)
        command = [sys.executable, "-m", "metta_ray", "train", "--run", RUN, "--address", address]
        command += ["--data-dir", directory, *SETTINGS]
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            watcher = Watcher(lambda: coordinator_of(RUN).status(), driver)
            times = _until(seconds, watcher)
            status = watcher.see(_is_healthy)
        finally:
            driver.terminate()
            driver.wait(PATIENCE_S)
    return {
        "times": times,
        "medians": {name: statistics.median(values) for name, values in times.items()},
        "updates": status["policy_version"],
        "repeated_updates": status["failures"]["repeated_updates"],
        "imbalance": status["ledger"]["imbalance"],
    }


class Watcher:
    """Looks at a run from outside, also while its coordinator is away."""

    def __init__(self, ask: Callable[[], Status], driver: subprocess.Popen[bytes]) -> None:
        self._ask = ask
        self._driver = driver

    def see(self, condition: Callable[[Status], Any]) -> Status:
        """The first status for which the condition holds."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if self._driver.poll() is not None:
                raise UsageError(f"the run has ended with exit code {self._driver.returncode}")
            try:
                status = self._ask()
                if condition(status):
                    return status
            except MettaRayError:
                pass  # on its way back
            time.sleep(0.02)
        raise UsageError(f"the run has not recovered within {PATIENCE_S:.0f} s")


def _until(seconds: float, watcher: Watcher) -> dict[str, list[float]]:
    """Every kind of death in turn, at least once each."""
    times: dict[str, list[float]] = defaultdict(list)
    watcher.see(lambda status: _is_healthy(status) and status["policy_version"] >= 3)
    began = time.monotonic()
    while not times or time.monotonic() - began < seconds:
        for kill in (_kill_worker, _kill_learner, _kill_coordinator, _freeze_worker):
            for name, value in kill(watcher, turn=len(times["worker"])).items():
                times[name].append(value)
    return dict(times)


def _is_healthy(status: Status) -> bool:
    workers, learners = status.get("workers", {}), status.get("learners", [])
    delivers = [worker["fragments"] > 0 for worker in workers.get("list", [])]
    return len(delivers) == 2 and all(delivers) and len(_training(learners)) == 2


def _training(learners: list[Any]) -> list[str]:
    return [learner["name"] for learner in learners if learner["state"] == "training"]


def _kill_worker(watcher: Watcher, turn: int) -> dict[str, float]:
    status = watcher.see(_is_healthy)
    victim = status["workers"]["list"][turn % 2]
    known = {worker["stream"] for worker in status["workers"]["list"]}
    began = _signal(victim["pid"], signal.SIGKILL)
    watcher.see(
        lambda status: any(
            worker["stream"] not in known and worker["fragments"] > 0 for worker in status["workers"]["list"]
        )
    )
    return {"worker": time.monotonic() - began}


def _kill_learner(watcher: Watcher, turn: int) -> dict[str, float]:
    victim = watcher.see(_is_healthy)["learners"][turn % 2]
    version = watcher.see(_is_healthy)["policy_version"]
    began = _signal(victim["pid"], signal.SIGKILL)
    watcher.see(lambda status: status["policy_version"] > version + 1)  # one may have been finished already
    survivors = time.monotonic() - began
    watcher.see(
        lambda status: len(_training(status["learners"])) == 2 and victim["name"] not in str(status["learners"])
    )
    return {"survivors": survivors, "group": time.monotonic() - began}


def _kill_coordinator(watcher: Watcher, turn: int) -> dict[str, float]:
    del turn
    status = watcher.see(_is_healthy)
    began = _signal(status["pid"], signal.SIGKILL)
    watcher.see(
        lambda after: after["pid"] != status["pid"] and after.get("policy_version", 0) > status["policy_version"]
    )
    return {"coordinator": time.monotonic() - began}


def _freeze_worker(watcher: Watcher, turn: int) -> dict[str, float]:
    victim = watcher.see(_is_healthy)["workers"]["list"][turn % 2]
    began = _signal(victim["pid"], signal.SIGSTOP)
    watcher.see(
        lambda status: (
            "workers" in status and all(worker["stream"] != victim["stream"] for worker in status["workers"]["list"])
        )
    )
    return {"hang": time.monotonic() - began}


def _signal(pid: int, number: signal.Signals) -> float:
    os.kill(pid, number)
    return time.monotonic()
