"""Places for workers come and go while a run trains: nodes of a ``ray.cluster_utils.Cluster``."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ray.harness import START_S, Lab, Session, wait_until

pytestmark = pytest.mark.chaos  # nodes end with what runs on them

BATCH = 512
RUN = [
    *("--preset", "cartpole", "--env", "slow_parts:CartPole", "--evaluate", "false"),
    *("--trainer.batch-size", BATCH, "--trainer.minibatch-size", 128, "--trainer.update-epochs", 2),
    *("--rollout.num-envs", 4, "--total-timesteps", 100_000_000),
]


class NodeCluster:
    """A head with room for a learner and one worker, and nodes that are added."""

    def __init__(self, lab: Lab) -> None:
        command = [sys.executable, str(Path(__file__).parent / "node_cluster.py"), "2"]
        log = lab.log("cluster")
        self.session = Session(command, cwd=lab.directory, env=lab.environment(), log=log, stdin=subprocess.PIPE)
        self._answers = 0
        self.address = str(self._answer())

    def add(self, num_cpus: int) -> int:
        return int(self._ask("add", num_cpus))

    def remove(self, node: int) -> None:
        self._ask("remove", node)

    def end(self) -> None:
        self.session.end()

    def _ask(self, command: str, number: int) -> Any:
        assert self.session.process.stdin is not None
        self.session.process.stdin.write(json.dumps([command, number]).encode() + b"\n")
        self.session.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        def answers() -> list[str]:
            assert self.session.process.poll() is None, self.session.output
            return [line[2:] for line in self.session.output.splitlines() if line.startswith("> ")]

        wait_until(lambda: len(answers()) > self._answers, START_S, "the cluster obeys")
        self._answers += 1
        return json.loads(answers()[-1])


@pytest.fixture(scope="module")
def cluster(shared_lab: Lab) -> Iterator[NodeCluster]:
    cluster = NodeCluster(shared_lab)
    yield cluster
    for run in shared_lab.runs:
        run.end()
    cluster.end()


def test_workers_start_where_there_is_room_and_again_where_room_returns(shared_lab: Lab, cluster: NodeCluster) -> None:
    run = shared_lab.train(*RUN, "--workers", 3, run="three", head=cluster)
    run.wait_for_version(2)
    status = run.wait_for_status(lambda status: status["waiting_for"], "two lack a core")
    assert status["workers"]["ready"] == 1, "trains with the first"
    assert status["waiting_for"] == "1 CPU (0 free) for each of 2 rollout workers"
    wait_until(lambda: f"waiting for {status['waiting_for']}" in run.output, 10.0, "whoever watches is told")

    node = cluster.add(num_cpus=2)
    all_deliver = lambda status: [bool(w["fragments"]) for w in status["workers"]["list"]] == [True] * 3  # noqa: E731
    status = run.wait_for_status(all_deliver, "all three deliver")
    assert status["waiting_for"] is None
    before = {worker["stream"]: worker["node"] for worker in status["workers"]["list"]}

    cluster.remove(node)
    lost = lambda status: status["workers"]["ready"] == 1 and status["waiting_for"]  # noqa: E731
    run.wait_for_status(lost, "one is left, two wait for room")
    run.wait_for_version(run.version + 2)
    cluster.add(num_cpus=2)
    status = run.wait_for_status(all_deliver, "all three deliver again")

    after = {worker["stream"]: worker["node"] for worker in status["workers"]["list"]}
    assert len(before.keys() & after.keys()) == 1, "two are new"
    run.finish()
    assert set(run.ledger().totals()["lost"]) <= {"node_lost"}
    run.check_books()


def test_the_automatic_number_grows_while_the_learner_waits_and_keeps_its_bounds(
    shared_lab: Lab, cluster: NodeCluster
) -> None:
    slow = shared_lab.directory / "oracle" / "slow-environments"
    slow.write_text("0.003")
    run = shared_lab.train(*RUN, "--workers", "1:3", "--rollout.num-workers", 1, run="auto", head=cluster)

    status = run.wait_for_status(lambda status: status.get("workers", {}).get("ready") == 3, "three workers")
    run.wait_for_version(run.version + 3)
    slow.unlink()

    print(status["events"])
    assert any("workers wanted: learner waited" in event for event in status["events"])
    wanted = [line["workers"]["wanted"] for line in run.ask("progress", -1, 0.1)["lines"] if "workers" in line]
    assert wanted[0] == 1
    assert wanted == sorted(wanted)
    assert max(wanted) == 3
    run.driver.send_signal(signal.SIGTERM)
    run.wait_for_end(130)
    run.check_books()


def test_a_second_learner_takes_its_share_of_the_same_batch(shared_lab: Lab, cluster: NodeCluster) -> None:
    before = [run for run in shared_lab.runs if run.name == "auto"][-1].metrics()[-1]["epoch"]
    resumed = shared_lab.train(*RUN, "--workers", 1, "--learner.replicas", 2, run="auto", head=cluster)

    resumed.wait_for_version(before + 3)
    status = resumed.status()
    resumed.finish()

    assert f"continuing auto after epoch {before}" in resumed.output
    assert [learner["rank"] for learner in status["learners"]] == [0, 1]
    steps = [line["agent_step"] for line in resumed.metrics()]
    assert steps == [BATCH * (epoch + 1) for epoch in range(len(steps))], "each batch as large as before"
    assert resumed.check_replicas() >= 3
    resumed.check_books()
