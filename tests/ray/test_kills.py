"""The shipped recurrent navigation run, asynchronous, with two learner replicas: whatever is killed, it goes on.

The tests share one run that has no end of its own; the last test lets it come to one.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from tests.ray.harness import ROLES, SLACK, Lab, Run, kill, wait_until

pytestmark = pytest.mark.chaos

WORKER_BACK_S, SURVIVORS_S, FULL_GROUP_S, COORDINATOR_GAP_S, HANG_S = 5.0, 5.0, 15.0, 5.0, 8.0
START_AGAIN_S = 30.0
BATCH = 4096
NAVIGATION = [
    *("--preset", "navigation", "--total-timesteps", 100_000_000, "--evaluate", "false"),
    *("--trainer.batch-size", BATCH, "--trainer.minibatch-size", 1024, "--rollout.num-envs", 4),
    *("--trainer.checkpoint.checkpoint-interval", 20, "--learner.replicas", 2, "--workers", 2),
    *("--learner.process-group-timeout-s", 4, "--failure.update-deadline-s", 4, "--failure.collect-deadline-s", 3),
    *("--failure.backoff-s", 0.1, "--failure.learner.per-run", 200, "--failure.window-s", 60),
]


class Survivor:
    """The shared run; a new one where the last did not survive."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._count = 0
        self.run: Run | None = None

    def alive(self) -> Run:
        if self.run is None or self.run.driver.poll() is not None:
            self._count += 1
            self.run = self._lab.train(*NAVIGATION, run=f"nav{self._count}")
            self.run.wait_for_version(2)
        return self.run


@pytest.fixture(scope="module")
def survivor(shared_lab: Lab) -> Survivor:
    return Survivor(shared_lab)


@pytest.fixture
def run(survivor: Survivor) -> Iterator[Run]:
    """In good health before the test; goes on, with balanced books, after it."""
    run = survivor.alive()
    wait_for_health(run)
    yield run
    wait_for_health(run)
    run.wait_for_version(run.version + 2)
    run.check_books()
    assert run.check_replicas() > 0


def wait_for_health(run: Run) -> None:
    run.wait_for_status(
        lambda status: (
            status["workers"]["ready"] == 2
            and len(status["learners"]) == 2
            and all(learner["state"] == "training" for learner in status["learners"])
            and status["state"] == "running"
        ),
        "two workers and two learners at work",
    )


def test_rollout_workers_killed_at_ten_random_moments_are_replaced(run: Run) -> None:
    moments = random.Random(1)
    times = []
    for _ in range(10):
        before = {worker["stream"]: worker for worker in run.status()["workers"]["list"]}
        victim = moments.choice([worker for worker in before.values() if worker["pid"]])

        killed = kill(victim["pid"])
        run.wait_for_status(
            lambda status, slot=victim["slot"], known=before: any(
                worker["slot"] == slot and worker["stream"] not in known and worker["fragments"] >= 1
                for worker in status["workers"]["list"]
            ),
            f"a new worker in slot {victim['slot']} delivers",
            WORKER_BACK_S * SLACK,
        )
        times.append(time.monotonic() - killed)
        time.sleep(moments.uniform(0.0, 1.0))
    print("worker back after", [round(seconds, 1) for seconds in times])
    assert run.status()["failures"]["crash"] >= 10


@pytest.mark.parametrize("point", ["learner.forward", "learner.all_reduce", "learner.trained", "learner.save"])
def test_a_learner_killed_while_it_works_is_replaced_and_no_update_is_lost(run: Run, point: str) -> None:
    repeated = run.status()["failures"]["repeated_updates"]

    if point == "learner.save":
        run.let_off(point, "kill")
        run.wait_for_version(run.version + 1)
    who, killed = run.let_off_and_wait(point, "kill", 60.0)
    version = run.version
    run.wait_for_version(version + 1, SURVIVORS_S * SLACK)
    survivors_s = time.monotonic() - killed
    run.wait_for_status(
        lambda status: (
            len(status["learners"]) == 2
            and all(learner["state"] == "training" and learner["name"] != who for learner in status["learners"])
        ),
        "a full group without the one that was killed",
        FULL_GROUP_S * SLACK,
    )

    print(f"{who} killed at {point}: survivors {survivors_s:.1f} s, full group {time.monotonic() - killed:.1f} s")
    assert run.status()["failures"]["repeated_updates"] <= repeated + 1


def test_a_frozen_learner_is_found_and_replaced(run: Run) -> None:
    who, frozen = run.let_off_and_wait("learner.forward", "stop")

    run.wait_for_status(
        lambda status: (
            len(status["learners"]) == 2
            and all(learner["state"] == "training" and learner["name"] != who for learner in status["learners"])
        ),
        "a full group without the frozen one",
        (FULL_GROUP_S + HANG_S) * SLACK,
    )
    print(f"{who} frozen: full group after {time.monotonic() - frozen:.1f} s")


def test_a_coordinator_killed_five_times_loses_no_update(run: Run) -> None:
    moments = random.Random(2)
    learners = run.children("learner")
    gaps = []
    for _ in range(5):
        time.sleep(moments.uniform(0.0, 2.0))
        before = run.version
        victim = run.coordinator_pid()

        killed = kill(victim)
        wait_until(lambda before=before: run.version > before + 1, COORDINATOR_GAP_S * SLACK, "training goes on")
        gaps.append(time.monotonic() - killed)
        wait_until(lambda victim=victim: run.coordinator_pid() != victim, START_AGAIN_S, "another coordinator")

    print("two updates after the coordinator's death:", [round(gap, 1) for gap in gaps])
    assert run.children("learner") == learners, "learners did not notice"
    assert run.status()["generation"] >= 6


@pytest.mark.parametrize("fault", ["sleep", "hold_gil", "stop"])
def test_a_worker_that_hangs_is_found_by_its_deadline(run: Run, fault: str) -> None:
    who, began = run.let_off_and_wait("env.step", fault)
    number = int(who.rpartition("-")[2])
    pid = run.pid_of(who)

    run.wait_for_status(
        lambda status: all(worker["stream"] != number for worker in status["workers"]["list"]),
        f"{who} is given up",
        (3.0 + HANG_S) * SLACK,
    )
    found_s = time.monotonic() - began
    wait_until(lambda: pid not in run.children("rollout").values(), 10.0, f"the process of {who} is gone")
    print(f"{who} hung ({fault}): found after {found_s:.1f} s")
    assert run.status()["failures"]["hang"] >= 1


def test_an_environment_that_raises_costs_its_worker_and_is_named(run: Run) -> None:
    who, began = run.let_off_and_wait("env.step", "raise")
    number = int(who.rpartition("-")[2])

    status = run.wait_for_status(
        lambda status: all(worker["stream"] != number for worker in status["workers"]["list"]),
        f"{who} is replaced",
        WORKER_BACK_S * SLACK,
    )
    print(f"environment raised: noticed after {time.monotonic() - began:.1f} s")
    assert any("injected at env.step" in event for event in status["events"])


def test_a_pause_longer_than_every_deadline_is_no_failure(run: Run) -> None:
    failures = run.status()["failures"]
    run.ask("pause")
    try:
        run.wait_for_status(
            lambda status: status["ledger"]["in_flight"] == 0 and status["ledger"]["queued"] < BATCH,
            "nothing in flight and no update under way",
        )
        version, processes = run.version, {role: run.children(role) for role in ROLES}

        time.sleep(3 * 4.0)  # of deadlines that are 3 and 4 s

        assert run.version == version
    finally:
        run.ask("unpause")
    run.wait_for_version(version + 2)
    assert run.status()["failures"] == failures
    assert {role: run.children(role) for role in ROLES} == processes, "the same processes"


def test_what_survived_comes_to_its_regular_end(survivor: Survivor) -> None:
    run = survivor.alive()

    run.finish()

    run.check_books()
    assert run.checkpoints()
