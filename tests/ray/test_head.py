"""A cluster whose head keeps what it knows, in a Redis or in Ray's own RocksDB: it is lost and comes back, the run goes
on. The Redis is that of ``deploy/redis``, with its user for Ray: encrypted, by password."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.ray.harness import ROOT, SLACK, Head, Lab, Run, Session, free_port, kill, wait_until
from tests.redis_server import redis_server, require_program

pytestmark = pytest.mark.chaos

REDIS = ROOT / "deploy" / "redis"
CHAPTER = (ROOT / "deploy" / "README.md").read_text().partition("\n## When the head is lost\n")[2]
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", CHAPTER.partition("\n## ")[0], flags=re.DOTALL | re.MULTILINE)
RUN = [
    *("--preset", "cartpole", "--env", "oracle_envs:CartPole", "--evaluate", "false", "--workers", 2),
    *("--trainer.batch-size", 512, "--trainer.minibatch-size", 128, "--trainer.update-epochs", 2),
    *("--rollout.num-envs", 4, "--rollout.resources", '{"rollout": 1}', "--rollout.num-cpus", 0.1),
    *("--trainer.checkpoint.checkpoint-interval", 50, "--total-timesteps", 100_000_000, "--detach"),
]
AWAY_S = 5.0
RECOVERY_S = 20.0


@pytest.fixture(params=["redis", "rocksdb"])
def head(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Head]:
    """Started with what the handbook says for this store."""
    place, port = lab.directory / "redis", free_port()
    here = {"/srv/": f"{lab.directory}/", "10.0.0.5:6380": f"localhost:{port}"}
    (line,) = [line for line in BLOCKS if request.param in line]
    for there, ours in here.items():
        line = line.replace(there, ours)
    storage = dict(word.split("=", 1) for word in line.split()[1:])
    if request.param == "rocksdb":
        yield lab.head(num_cpus=0, own_env=storage)
        return
    require_program("openssl")
    subprocess.run([REDIS / "prepare.sh", place, "localhost"], check=True, capture_output=True)
    with redis_server(place, "--tls-port", str(port), config=REDIS / "redis.conf", port=port):
        password = (place / "ray.password").read_text()
        head = lab.head(num_cpus=0, own_env=storage, options=["--redis-username=ray", f"--redis-password={password}"])
        yield head
        lab.end_runs()
        head.end()


def test_a_run_goes_on_while_the_head_is_lost_and_after_it_has_come_back(lab: Lab, head: Head) -> None:
    head.add_node(num_cpus=3, resources={"rollout": 3})
    run = lab.train(*RUN, run="a", head=head)
    run.wait_for_status(lambda status: status["workers"]["ready"] == 2, "two workers")
    run.wait_for_version(3)
    run.hang_up()

    # The server that knows the cluster is gone, all else is there.
    gcs = gcs_server(head)
    head.session.process.send_signal(signal.SIGSTOP)  # it would end the whole head
    command, environment, before = gcs.cmdline(), gcs.environ(), processes(run)
    version = run.version
    kill(gcs.pid)
    time.sleep(AWAY_S)
    print(f"without a GCS for {AWAY_S:g} s: {run.version - version} updates")
    run.wait_for_version(version + 3, AWAY_S * SLACK)
    back = Session(command, cwd=lab.directory, env=environment, log=lab.log("gcs"))
    began = time.monotonic()
    kill(run.pid_of("rollout-0"))
    run.wait_for_status(
        lambda status: status["workers"]["ready"] == 2 and status["failures"].get("crash"), "a new worker"
    )
    print(f"a worker is replaced {time.monotonic() - began:.1f} s after the GCS is back")
    after = processes(run)
    assert before.keys() ^ after.keys() == {"rollout-0", "rollout-2"}
    assert [who for who in before if who in after and after[who] != before[who]] == []
    run.hang_up()

    # All of the head is gone, and with it the coordinator, which lives there.
    version = run.version
    head.kill()
    back.end()
    lost = time.monotonic()
    time.sleep(AWAY_S)
    head.start_again()
    began = time.monotonic()
    run.wait_for_version(run.version + 2, RECOVERY_S * SLACK)
    print(f"head lost at version {version}: two more {began - lost:.1f} + {time.monotonic() - began:.1f} s later")
    now = processes(run)
    assert now["coordinator"] != after["coordinator"]
    assert [who for who in after if who != "coordinator" and now[who] != after[who]] == [], "all others stay"

    assert run.ask("stop")["ok"]
    wait_until(lambda: run.recorded_state() == "stopped", 60.0, "the run is stopped")
    run.check_books()
    history = run.history()
    assert "roll_back" not in {record["kind"] for record in history}, "no update is lost"
    print(f"nothing left after {run.check_nothing_is_left():.1f} s")


def gcs_server(head: Head) -> psutil.Process:
    """Of what the head's ``ray start`` has started."""
    (found,) = [member for member in head.session.members() if member.name() == "gcs_server"]
    return found


def processes(run: Run) -> dict[str, int]:
    """Who → process id."""
    members = {f"{role}-{number}": pid for role in ("learner", "rollout") for number, pid in run.children(role).items()}
    return {**members, "coordinator": run.coordinator_pid()}
