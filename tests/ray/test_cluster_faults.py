"""Runs on a cluster that outlives them: drivers, nodes, messages and disks fail."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.ray.harness import SLACK, Head, Lab, Run, kill, wait_until
from tests.ray.ray_compat import lossy_calls

pytestmark = pytest.mark.chaos

CARTPOLE = [
    *("--preset", "cartpole", "--env", "oracle_envs:CartPole", "--evaluate", "false", "--workers", 2),
    *("--trainer.batch-size", 512, "--trainer.minibatch-size", 128, "--trainer.update-epochs", 2),
    *("--rollout.num-envs", 4, "--failure.collect-deadline-s", 3, "--failure.update-deadline-s", 3),
    *("--failure.driver-timeout-s", 3, "--trainer.checkpoint.checkpoint-interval", 50),
]
ENDLESS = [*CARTPOLE, "--total-timesteps", 100_000_000]
SMALL_SHARES = ["--rollout.num-cpus", 0.1, "--learner.num-cpus", 0.1]
NODE_BACK_S, NOTICE_S = 20.0, 2.0


@pytest.fixture(scope="module")
def head(shared_lab: Lab) -> Head:
    return shared_lab.head()


@pytest.fixture(autouse=True)
def no_run_outlives_its_test(shared_lab: Lab) -> Iterator[None]:
    yield
    shared_lab.end_runs()


# Drivers.


def test_a_run_whose_driver_is_killed_stops_with_a_checkpoint(shared_lab: Lab, head: Head) -> None:
    run = shared_lab.train(*ENDLESS, *SMALL_SHARES, run="attached", head=head)
    run.wait_for_version(2)

    killed = kill(run.driver.pid)
    wait_until(lambda: run.recorded_state() == "stopped", (3.0 + 10.0) * SLACK, "the run is stopped")

    print(f"driver killed: stopped cleanly after {time.monotonic() - killed:.1f} s (driver-timeout-s 3)")
    assert run.checkpoints()[-1] == f"model_{run.version:04d}"
    run.check_books()
    print(f"nothing left after {run.check_nothing_is_left():.1f} s")


def test_a_detached_run_goes_on_without_its_driver(shared_lab: Lab, head: Head) -> None:
    run = shared_lab.train(*ENDLESS, *SMALL_SHARES, "--detach", run="detached", head=head)
    wait_until(lambda: run.children("coordinator"), 60.0, "a coordinator")

    for member in run.session.members():  # the whole group, unless it has left by itself
        member.send_signal(signal.SIGKILL)
    run.driver.wait(10.0)
    time.sleep(4.0)  # longer than an attached driver may be silent

    wait_until(lambda: run.version >= 3, 60.0, "it trains")
    assert run.ask("stop")["ok"]
    wait_until(lambda: run.recorded_state() == "stopped", 60.0, "the run is stopped")
    run.check_books()
    print(f"nothing left after {run.check_nothing_is_left():.1f} s")


def test_a_second_run_on_the_same_directory_is_refused_and_told_who_has_it(shared_lab: Lab, head: Head) -> None:
    run = shared_lab.train(*ENDLESS, *SMALL_SHARES, run="twice", head=head)
    run.wait_for_version(2)

    second = shared_lab.train(*ENDLESS, run="twice")  # on a Ray of its own, so that only the directory is shared
    out = second.wait_for_end(2)

    assert "in use by process" in out
    assert any(f"process {pid} " in out for pid in run.children("coordinator").values())
    run.wait_for_version(run.version + 2)
    run.driver.send_signal(signal.SIGTERM)
    run.wait_for_end(130)
    run.check_books()


def test_a_bad_observation_reaches_no_learner(shared_lab: Lab, head: Head) -> None:
    run = shared_lab.train(*ENDLESS, *SMALL_SHARES, run="nan", head=head)
    run.wait_for_version(2)

    run.let_off_and_wait("env.step", "nan")
    wait_until(lambda: run.ledger().dropped.get("invalid"), 30.0, "a fragment is dropped as invalid")
    run.wait_for_version(run.version + 3)
    run.finish()

    losses = [value for line in run.metrics() for name, value in line.items() if name == "losses/policy_loss"]
    assert all(loss == loss for loss in losses), "no loss is NaN"
    run.check_books()


# Messages.


def test_lost_requests_and_answers_lose_and_double_nothing(lab: Lab) -> None:
    head = lab.head(env=lossy_calls(request_percent=10, response_percent=10))
    run = lab.train(*CARTPOLE, *SMALL_SHARES, "--total-timesteps", 16 * 512, run="lossy", head=head)

    run.wait_for_end(0, 420.0)  # some of what is lost Ray notices only after a minute

    assert run.version >= 16
    run.check_books()
    print("failures met on the way:", [line for line in run.output.splitlines() if "lost" in line][:5])


# Nodes.


@pytest.fixture(scope="module")
def two_places(shared_lab: Lab) -> Head:
    """A head for coordinator and learner; rollout workers live on nodes of their own."""
    env = {f"RAY_health_check_{name}_ms": "500" for name in ("period", "timeout", "initial_delay")}
    return shared_lab.head(num_cpus=2, env={**env, "RAY_health_check_failure_threshold": "3"})


# The learner fits on the head alone.
ON_NODES = ["--rollout.resources", '{"rollout": 1}', "--rollout.num-cpus", 0.1, "--learner.num-cpus", 1.5]


def nodes_of(run: Run) -> set[str]:
    return {worker["node"] for worker in run.status()["workers"]["list"] if worker["state"] == "ready"}


def test_a_killed_node_costs_what_was_in_flight_and_its_workers_come_back_elsewhere(
    shared_lab: Lab, two_places: Head
) -> None:
    first = two_places.add_node(num_cpus=1, resources={"rollout": 1})
    second = two_places.add_node(num_cpus=1, resources={"rollout": 1})
    run = shared_lab.train(*ENDLESS, *ON_NODES, run="nodes", head=two_places)
    run.wait_for_status(lambda _: len(nodes_of(run)) == 2, "a worker on each node")

    killed = time.monotonic()
    for member in first.members():
        member.send_signal(signal.SIGKILL)
    version = run.version
    run.wait_for_version(version + 2, 10.0 * SLACK)
    print(f"node killed: two more updates after {time.monotonic() - killed:.1f} s")
    third = two_places.add_node(num_cpus=1, resources={"rollout": 1})
    added = time.monotonic()
    run.wait_for_status(lambda _: len(nodes_of(run)) == 2, "a worker on the new node", NODE_BACK_S * SLACK)
    print(f"its worker delivers on another node after {time.monotonic() - added:.1f} s")
    run.finish()
    run.check_books()
    for node in (second, third):
        node.end()


def test_a_node_that_is_taken_away_with_notice_loses_nothing(shared_lab: Lab, two_places: Head) -> None:
    first = two_places.add_node(num_cpus=1, resources={"rollout": 1})
    run = shared_lab.train(*ENDLESS, *ON_NODES, run="notice", head=two_places)
    run.wait_for_status(lambda status: status["workers"]["ready"] == 1, "a worker on the only node")
    leaving = run.status()["workers"]["list"][0]["node"]
    second = two_places.add_node(num_cpus=1, resources={"rollout": 2})
    run.wait_for_status(lambda status: status["workers"]["ready"] == 2, "a worker on the other node too")

    assert run.ask("drain", leaving, 20_000)
    noticed = time.monotonic()
    run.wait_for_status(
        lambda status: (
            status["workers"]["ready"] == 2 and all(worker["node"] != leaving for worker in status["workers"]["list"])
        ),
        "all workers have left that node",
        20.0 * SLACK,
    )
    print(f"drain notice: node left after {time.monotonic() - noticed:.1f} s")
    for member in first.members():
        member.send_signal(signal.SIGKILL)
    run.wait_for_version(run.version + 3)

    assert not run.ledger().totals()["lost"], "nothing was lost"
    assert any("taken away" in event for event in run.status()["events"])
    run.finish()
    run.check_books()
    second.end()


# Disks.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """40 MB that nobody else writes to."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no disk of its own to fill: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_stops_no_training_and_spoils_no_checkpoint(small_disk: Path, shared_lab: Lab, head: Head) -> None:
    often = ["--trainer.checkpoint.checkpoint-interval", 5, "--trainer.checkpoint.keep-last", 2]
    run = shared_lab.train(*ENDLESS, *SMALL_SHARES, *often, run="full", head=head, data_dir=small_disk)
    wait_until(lambda: run.checkpoints(), 60.0, "a first checkpoint")

    fill(small_disk / "filler")
    status = run.wait_for_status(
        lambda status: status["checkpoint"].get("failures", 0) >= 1, "a checkpoint fails", 60.0
    )
    good, version = status["checkpoint"]["path"], status["policy_version"]
    run.wait_for_status(lambda status: status["policy_version"] > version + 3, "training goes on", 60.0)
    assert (Path(good) / "manifest.json").exists()
    (small_disk / "filler").unlink()

    run.wait_for_status(lambda status: (status["checkpoint"]["epoch"] or 0) > version, "a checkpoint again", 60.0)
    run.wait_for_status(lambda status: status["unwritten_events"] == 0, "the journal has caught up", 60.0)
    run.finish()
    run.check_books()


def fill(path: Path) -> None:
    """With all that there is room for."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass
