"""A run whose records are kept in a Redis, set up by the files of deploy/redis: encrypted, with users and passwords.

Everything happens to one server of one run; the run goes on, is shown again, and nobody learns the password.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from metta_ray.state.redis_address import PASSWORD_VARIABLE
from tests.ray.harness import ROOT, SLACK, Lab, Run, free_port, wait_until
from tests.redis_server import RedisServer, redis_server, require_program
from tests.slow_proxy import SlowProxy

pytestmark = pytest.mark.chaos

REDIS = ROOT / "deploy" / "redis"
TRAINING = [
    *("--preset", "cartpole", "--env", "oracle_envs:CartPole", "--evaluate", "false", "--workers", 1),
    *("--trainer.batch-size", 512, "--trainer.minibatch-size", 128, "--trainer.update-epochs", 2),
    *("--rollout.num-envs", 4, "--trainer.checkpoint.checkpoint-interval", 50, "--total-timesteps", 100_000_000),
]
OUTAGE_S = 5.0
SHOWN_AGAIN_S = 10.0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by the script that the handbook names."""
    require_program("openssl")
    directory = tmp_path_factory.mktemp("redis")
    subprocess.run([REDIS / "prepare.sh", directory, "localhost", "127.0.0.1"], check=True, capture_output=True)
    return directory


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[RedisServer]:
    port = free_port()
    with redis_server(place, "--tls-port", str(port), config=REDIS / "redis.conf", port=port) as running:
        yield running


@pytest.fixture(scope="module")
def proxy(server: RedisServer) -> Iterator[SlowProxy]:
    between = SlowProxy(server.port)
    yield between
    between.close()


class Told:
    """The run, and what the store says of it to somebody on another machine, who has a file with the password."""

    def __init__(self, lab: Lab, run: Run, port: int, place: Path) -> None:
        self.lab, self.run = lab, run
        self.url = f"rediss://metta@localhost:{port}?ca={place}/ca.crt&password_file={place}/metta.password"

    def records(self) -> list[dict[str, Any]]:
        answer = self.lab.command("runs", "--json", "--state", self.url, "--data-dir", self.lab.directory / "elsewhere")
        assert answer.returncode == 0, answer.stderr
        records: list[dict[str, Any]] = json.loads(answer.stdout)
        return records

    def version(self) -> int:
        return max((int(record["policy_version"]) for record in self.records()), default=0)

    def speed(self, seconds: float) -> float:
        """Updates per second that are committed during so many seconds."""
        before, began = self.run.version, time.monotonic()
        time.sleep(seconds)
        return (self.run.version - before) / (time.monotonic() - began)

    def goes_through(self, what: str, hurt: Callable[[], object], heal: Callable[[], object]) -> None:
        calm = self.speed(OUTAGE_S)
        hurt()
        hurting = self.speed(OUTAGE_S)
        version, healed = self.run.version, time.monotonic()
        heal()
        wait_until(lambda: self.version() >= version, SHOWN_AGAIN_S * SLACK, f"shown again after: {what}")
        print(
            f"{what}: {calm:.2f} updates/s before, {hurting:.2f} meanwhile; "
            f"shown again after {time.monotonic() - healed:.1f} s"
        )
        assert hurting > 0, f"training stood still: {what}"


@pytest.fixture(scope="module")
def told(shared_lab: Lab, server: RedisServer, proxy: SlowProxy, place: Path) -> Told:
    url = f"rediss://metta@localhost:{proxy.port}?ca={place}/ca.crt"
    password = {PASSWORD_VARIABLE: (place / "metta.password").read_text()}
    run = shared_lab.train(*TRAINING, "--state", url, run="a", env=password)
    run.wait_for_version(3)
    return Told(shared_lab, run, server.port, place)


def test_another_machine_lists_the_run_and_sees_it_go_on(told: Told) -> None:
    wait_until(lambda: told.version() >= 1, 30.0, "the run is listed")
    first = told.records()[0]

    told.run.wait_for_version(told.run.version + 3)

    wait_until(lambda: told.version() > first["policy_version"], 30.0, "it has gone on")
    assert first["name"] == "a"
    assert not (told.lab.data_dir / "runs.sqlite").exists(), "there is one store"


def test_a_frozen_server(told: Told, server: RedisServer) -> None:
    told.goes_through("server frozen", server.freeze, server.thaw)


def test_a_killed_server_that_kept_its_files(told: Told, server: RedisServer) -> None:
    told.goes_through("server killed and restarted", server.kill, server.restart)


def test_a_server_that_comes_back_empty(told: Told, server: RedisServer, place: Path) -> None:
    def come_back_empty() -> None:
        shutil.rmtree(place / "appendonlydir")
        server.restart()

    told.goes_through("server lost its data", server.kill, come_back_empty)
    assert told.version() > 0


def test_answers_that_take_five_seconds(told: Told, proxy: SlowProxy) -> None:
    told.goes_through("5 s latency", lambda: setattr(proxy, "delay_s", 5.0), lambda: setattr(proxy, "delay_s", 0.0))


def test_a_password_that_was_changed_on_the_server(told: Told, server: RedisServer, place: Path) -> None:
    users = (place / "users.acl").read_text()

    def restart_with(text: str) -> None:
        (place / "users.acl").write_text(text)
        server.restart()

    other = re.sub(r"(user metta on #)\w+", r"\g<1>" + "0" * 64, users)
    told.goes_through("wrong password", lambda: restart_with(other), lambda: restart_with(users))
    assert "invalid username-password pair" in told.run.output + log_of(told.run)


def test_nobody_has_learnt_the_password(told: Told, place: Path) -> None:
    """While it runs: argument lists. At its end: all that anybody wrote, files of Ray and of the run."""
    secret = (place / "metta.password").read_bytes()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            assert secret.decode() not in " ".join(process.cmdline())

    version = told.run.version
    told.run.driver.send_signal(signal.SIGTERM)
    told.run.wait_for_end(130)

    assert told.records()[0]["state"] == "stopped"
    assert told.version() >= version
    told.run.check_books()
    written = [path for root in (told.lab.directory, told.lab.ray_dir) for path in root.rglob("*") if path.is_file()]
    assert any(path.name == "run.log" or path.suffix == ".log" for path in written)
    assert [path for path in written if secret in path.read_bytes()] == []
    kept = b"".join(path.read_bytes() for path in (place / "appendonlydir").iterdir())
    assert b"policy_version" in kept
    assert secret not in kept


def log_of(run: Run) -> str:
    return "".join(
        path.read_text(errors="replace") for path in run.run_dir.rglob("*.log") if path.name != "journal.log"
    )
