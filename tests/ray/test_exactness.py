"""Synchronous mode on the CPU in fp32: the service learns what the library learns, bit for bit, and resumes exactly.

Compared are the metrics of every epoch (but for clocks) and the last checkpoint: weights, optimiser, environments,
recurrent and random states, curriculum.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from metta_ray.common.util.state_directory import load_tree
from tests.ray.harness import ROOT, Head, Lab, Run

AGENTS, STEPS = 4, 40
BATCH = 4 * AGENTS * STEPS
"""4 environments for 40 steps; their episodes have 50, so every cut lies inside of episodes."""
NAVIGATION = [
    *("--preset", "navigation", "--evaluate", "false", "--env-overrides.max-steps", 50),
    *("--trainer.bptt-horizon", STEPS, "--trainer.update-epochs", 1, "--trainer.batch-size", BATCH),
    *("--trainer.minibatch-size", BATCH // 2, "--trainer.checkpoint.checkpoint-interval", 100),
    # What a cluster computes in, and not every machine: which way is faster is measured there.
    *("--trainer.autocast", "none", "--agent.gather-conv", "true"),
]
SYNCHRONOUS = ["--pacing.target-staleness", 0, "--rollout.num-cpus", 0.1, "--learner.num-cpus", 0.1]
CLOCKS = (
    "share/",
    "epoch_seconds",
    "agent_steps_per_second",
    "efficiency",
    "update_seconds",
    "workers/",
    "staleness/",
    "time",
)


@pytest.fixture(scope="module")
def head(shared_lab: Lab) -> Head:
    return shared_lab.head()


def trained(lab: Lab, head: Head, run: str, epochs: int, *options: object) -> Run:
    total = ["--total-timesteps", epochs * BATCH]
    return lab.train(*NAVIGATION, *SYNCHRONOUS, *total, *options, run=run, head=head)


def learned(run_dir: Path) -> dict[str, str]:
    """What was learned, epoch by epoch and in the end, as text so that NaN equals itself."""
    state = {}
    for line in map(text_of, metrics_of(run_dir)):
        state[f"epoch {len(state) + 1}"] = line
    last = last_checkpoint(run_dir)
    trainer = load_tree(last, "trainer")
    state["weights"] = (last / "policy.safetensors").read_bytes().hex()
    state["optimizer"] = text_of(trainer["optimizer"])
    state["counters"] = f"{trainer['epoch']} {trainer['agent_step']}"
    return state


def metrics_of(run_dir: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith(CLOCKS)} for line in lines]


def last_checkpoint(run_dir: Path) -> Path:
    return sorted((run_dir / "checkpoints").glob("model_*"))[-1]


def states_between(run_dir: Path) -> dict[str, str]:
    """Of workers and curriculum; the library's loop keeps them otherwise."""
    last = last_checkpoint(run_dir)
    workers = {path.stem: load_tree(last, path.stem) for path in last.glob("worker*.json")}
    for state in workers.values():
        del state["stream"]  # the number of the process, which another one goes on for
    return {name: text_of(state) for name, state in workers.items()} | {
        "curriculum": text_of(load_tree(last, "coordinator")["curriculum"])
    }


def text_of(tree: Any) -> str:
    if isinstance(tree, dict):
        return "{" + ", ".join(f"{key}: {text_of(tree[key])}" for key in sorted(tree, key=str)) + "}"
    if isinstance(tree, list):
        return "[" + ", ".join(map(text_of, tree)) + "]"
    return tree.tobytes().hex() if hasattr(tree, "tobytes") else repr(tree)


def assert_equal(one: dict[str, str], two: dict[str, str]) -> None:
    assert one.keys() == two.keys()
    for name in one:
        if one[name] != two[name]:
            at = next((i for i, (a, b) in enumerate(zip(one[name], two[name], strict=False)) if a != b), 0)
            here = slice(max(0, at - 100), at + 100)
            raise AssertionError(f"{name} differs at {at}:\n{one[name][here]}\n{two[name][here]}")


def test_one_worker_and_one_learner_equal_the_library(shared_lab: Lab, head: Head) -> None:
    service = trained(shared_lab, head, "service", 4, "--workers", 1, "--rollout.num-envs", 4)
    library_dir = shared_lab.directory / "library"
    command = [sys.executable, str(ROOT / "run.py"), "--run-name", "a", "--data-dir", str(library_dir)]
    command += ["--num-envs", "4", "--total-timesteps", str(4 * BATCH), *map(str, NAVIGATION)]
    subprocess.run(command, cwd=shared_lab.directory, env=shared_lab.environment(), check=True, timeout=120)
    service.wait_for_end(0)

    assert_equal(learned(service.run_dir), learned(library_dir / "a"))

    pids = [
        pid for role in ("rollout", "learner", "coordinator") for pid in service.children(role, alive=False).values()
    ]
    assert len({*pids, service.driver.pid}) == 4, "worker, learner, coordinator and driver are processes of their own"
    trained_on = [ticket for record in service.history() if record["kind"] == "commit" for ticket in record["tickets"]]
    assert trained_on == [0, 1, 2, 3], "one fragment per batch, in order"
    service.check_books()


def test_a_run_in_two_parts_equals_the_same_run_in_one(shared_lab: Lab, head: Head) -> None:
    options = ["--workers", 2, "--rollout.num-envs", 2]
    whole = trained(shared_lab, head, "whole", 8, *options)
    parts = trained(shared_lab, head, "parts", 8, *options)
    parts.wait_for_version(2)
    parts.let_off_and_wait("learner.train", "wait 2")
    parts.driver.send_signal(signal.SIGTERM)
    parts.wait_for_end(130)
    cut = parts.version
    assert 2 < cut < 8

    resumed = trained(shared_lab, head, "parts", 8, *options)
    out = resumed.wait_for_end(0)
    whole.wait_for_end(0)

    assert f"continuing parts after epoch {cut}" in out
    assert_equal(learned(whole.run_dir), learned(resumed.run_dir))
    assert_equal(states_between(whole.run_dir), states_between(resumed.run_dir))
    resumed.check_books()


def test_two_workers_and_two_learners_are_repeatable(shared_lab: Lab, head: Head) -> None:
    options = ["--workers", 2, "--learner.replicas", 2, "--rollout.num-envs", 2]
    runs = [trained(shared_lab, head, name, 3, *options) for name in ("one", "two")]
    for run in runs:
        run.wait_for_end(0)

    one, two = runs
    assert len(set(one.children("learner", alive=False).values())) == 2
    assert_equal(learned(one.run_dir), learned(two.run_dir))
    assert_equal(states_between(one.run_dir), states_between(two.run_dir))
