"""A cluster of hosts with links of their own, started with the commands of ``deploy/README.md``, cut and healed."""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray.harness import ROOT, START_S, Lab, Session, ray_command, wait_until
from tests.ray.hosts import Host, Network, NoNamespacesError

pytestmark = pytest.mark.chaos

CHAPTER = (ROOT / "deploy" / "README.md").read_text().partition("\n## Machines that you start by hand\n")[2]
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", CHAPTER.partition("\n## ")[0], flags=re.DOTALL | re.MULTILINE)
TOKEN = "0123456789abcdef" * 4
RUN = [
    *("--preset", "cartpole", "--env", "oracle_envs:CartPole", "--evaluate", "false", "--workers", 1),
    *("--trainer.batch-size", 512, "--trainer.minibatch-size", 128, "--trainer.update-epochs", 2),
    *("--rollout.num-envs", 4, "--rollout.num-cpus", 0.5, "--rollout.resources", '{"rollout": 1}'),
    *("--learner.replicas", 2, "--learner.num-cpus", 2, "--total-timesteps", 100_000_000),
    *("--failure.collect-deadline-s", 3, "--failure.update-deadline-s", 3),
    # Whoever waits for a replica that was cut off hears nothing, not even that it is gone.
    *("--learner.process-group-timeout-s", 5, "--trainer.checkpoint.checkpoint-interval", 50),
]


class HandMade:
    """The cluster that the chapter's blocks make: one head, and two hosts with room for a learner and a worker each."""

    def __init__(self, lab: Lab, network: Network) -> None:
        self.head, *self.others = network.hosts
        self.address = f"{self.head.address}:6379"
        self.dashboard_url = f"http://{self.head.address}:8265"
        self._lab = lab
        self._network = network
        home = lab.directory / "home"
        (home / ".ray").mkdir(parents=True)
        (home / ".ray" / "auth_token").write_text(TOKEN)
        lab.variables = {"HOME": str(home), "RAY_AUTH_MODE": "token"}
        lab.enter = self.head.inside([], lab.directory)
        self._temporary = [Path(tempfile.mkdtemp(prefix="mr")) for _ in network.hosts]  # short: sockets lie in it
        self._nodes: dict[str, Session] = {}

    def start(self, host: Host) -> None:
        """``ray start`` as the chapter says it."""
        is_head = host is self.head
        (line,) = [line for line in BLOCKS[0 if is_head else 1].splitlines() if line.startswith("ray start")]
        temporary = self._temporary[self._network.hosts.index(host)]
        line += f" --temp-dir={temporary} --object-store-memory=200000000" + ("" if is_head else " --num-cpus=3")
        env = self._lab.environment()
        env.pop("RAY_TMPDIR")  # --temp-dir says it
        if is_head:
            # As the chapter has it, but sooner.
            env |= {f"RAY_health_check_{name}_ms": "500" for name in ("period", "timeout", "initial_delay")}
            env |= {"RAY_health_check_failure_threshold": "3"}
        command = ["bash", "-c", f"exec {self.here(line, host)}"]
        node = self._network.session(host, command, env=env, log=self._lab.log(host.name))
        self._nodes[host.name] = node

        def is_up() -> bool:
            assert node.process.poll() is None, node.output
            return "Ray runtime started" in node.output

        wait_until(is_up, START_S, f"the node on {host.name} is up")

    def node(self, host: Host) -> Session:
        return self._nodes[host.name]

    def here(self, line: str, host: Host) -> str:
        return line.replace("10.0.0.10", self.head.address).replace("10.0.0.11", host.address)

    def end(self) -> None:
        self._network.end()
        for directory in self._temporary:
            shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def cluster(lab: Lab) -> Iterator[HandMade]:
    try:
        network = Network(3, lab.directory)
    except NoNamespacesError as error:
        pytest.skip(f"no hosts of our own here: {error}")
    cluster = HandMade(lab, network)
    try:
        yield cluster
        lab.end_runs()
    finally:
        cluster.end()


def test_a_run_on_three_hosts_outlives_the_loss_of_one_and_takes_it_back(
    lab: Lab, cluster: HandMade, tmp_path: Path
) -> None:
    for host in (cluster.head, *cluster.others):
        cluster.start(host)
    (tmp_path / "mine").mkdir()
    run = lab.submit(*RUN, run="far", head=cluster, working_dir=tmp_path / "mine")
    run.wait_for_version(2)

    # Grows onto the other host.
    scaled = lab.command("scale", "far", "--workers", 2, "--data-dir", lab.data_dir)
    assert scaled.returncode == 0, scaled.stderr
    status = run.wait_for_status(lambda status: status["workers"]["ready"] == 2, "two workers")
    names = {host.name for host in cluster.others}
    assert {worker["host"] for worker in status["workers"]["list"]} == names, "a worker on each"
    assert {learner["host"] for learner in status["learners"]} == names, "a replica on each"

    # Loses the one where rank 0 is, which says nothing and goes on by itself.
    leader = next(learner for learner in status["learners"] if learner["rank"] == 0)
    (cut,) = [host for host in cluster.others if host.name == leader["host"]]
    version = run.version
    cut.unplug()
    unplugged = time.monotonic()
    run.wait_for_version(version + 3, 60.0)
    print(f"cut off: three more updates after {time.monotonic() - unplugged:.1f} s")
    learners = [(learner["rank"], learner["host"]) for learner in run.status()["learners"]]
    assert (0, cut.name) not in learners, "another one leads"

    # Back again: what was left there ends, and the host joins as a new node.
    cut.plug()
    plugged = time.monotonic()
    wait_until(lambda: cluster.node(cut).process.poll() is not None, 60.0, "the node that was given up has ended")
    print(f"healed: the old node has ended after {time.monotonic() - plugged:.1f} s")
    cluster.start(cut)
    run.wait_for_status(
        lambda status: (
            [(learner["rank"], learner["host"] == cut.name) for learner in status["learners"]]
            == [(0, False), (1, True)]
        ),
        "a replica on the host that came back",
        90.0,
    )
    print(f"whole again after {time.monotonic() - plugged:.1f} s")
    run.wait_for_version(run.version + 2)

    stopped = lab.program(ray_command(), "job", "stop", "--address", cluster.dashboard_url, "job-far")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    wait_until(lambda: run.recorded_state() == "stopped", 60.0, "the run is stopped")
    run.wait_for_end(None)
    run.check_books()
    assert run.check_replicas() > 0
