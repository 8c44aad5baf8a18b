"""A run that was submitted as a Ray job, with an environment of the user's own, looked after from outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.ray.harness import Head, Lab, Run, ray_command, wait_until

MY_ENVIRONMENT = """
from oracle_envs import CartPole

class Mine(CartPole):
    pass
"""
ENDLESS = [
    *("--preset", "cartpole", "--env", "my_environment:Mine", "--evaluate", "false", "--workers", 1),
    *("--trainer.batch-size", 512, "--trainer.minibatch-size", 128, "--trainer.update-epochs", 2),
    *("--rollout.num-cpus", 0.1, "--learner.num-cpus", 0.1, "--total-timesteps", 100_000_000),
]


@pytest.fixture(scope="module")
def head(shared_lab: Lab) -> Head:
    return shared_lab.head(dashboard=True)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A directory of the user's, with code that is nowhere else."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "my_environment.py").write_text(MY_ENVIRONMENT)
    return tmp_path / "mine"


def test_a_job_is_scaled_and_stopped_from_outside(shared_lab: Lab, head: Head, mine: Path) -> None:
    run = shared_lab.submit(*ENDLESS, run="a", head=head, working_dir=mine)
    run.wait_for_version(2)
    place = ["--data-dir", shared_lab.data_dir]

    status = json.loads(shared_lab.command("status", "a", "--json", *place).stdout)
    assert status["state"] == "running"
    assert shared_lab.command("scale", "a", "--workers", 2, *place).returncode == 0
    run.wait_for_status(lambda status: status["workers"]["ready"] == 2, "two workers")
    stopped = shared_lab.command("stop", "a", *place)

    assert stopped.returncode == 0, stopped.stderr
    run.wait_for_end(None)
    assert run.recorded_state() == "stopped"
    assert run.checkpoints()[-1] == f"model_{run.version:04d}"
    run.check_books()
    print(f"nothing left after {run.check_nothing_is_left():.1f} s")


@pytest.mark.chaos
def test_ray_job_stop_leaves_a_checkpoint_and_nothing_else(shared_lab: Lab, head: Head, mine: Path) -> None:
    run: Run = shared_lab.submit(*ENDLESS, run="b", head=head, working_dir=mine)
    run.wait_for_version(2)

    stopped = shared_lab.program(ray_command(), "job", "stop", "--address", head.dashboard_url, "job-b")

    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    wait_until(lambda: run.recorded_state() == "stopped", 60.0, "the run is stopped")
    run.wait_for_end(None)
    assert run.checkpoints()[-1] == f"model_{run.version:04d}"
    run.check_books()
    run.check_nothing_is_left()
