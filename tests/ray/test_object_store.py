"""A run whose directory is in a real S3-compatible store: killed, resumed from there alone, evaluated and shown."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.ray.harness import ROOT, wait_until
from tests.ray.test_exactness import BATCH, NAVIGATION, SYNCHRONOUS, learned
from tests.s3_server import BUCKET, S3Server, s3_server

PLACE = f"s3://{BUCKET}/runs"
EPOCHS = 40
ALONE = ["--cluster.measure", "false", "--cluster.dashboard", "false", "--workers", "1", "--learner.replicas", "1"]
OPTIONS = [*NAVIGATION, *SYNCHRONOUS, *ALONE, "--trainer.checkpoint.checkpoint-interval", "4"]


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


def _is_living_member(process: psutil.Process, session: int) -> bool:
    with suppress(psutil.Error, ProcessLookupError):
        return process.status() != psutil.STATUS_ZOMBIE and os.getsid(process.pid) == session
    return False


class Machine:
    """Commands with a working directory and a Ray of their own."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.work = directory / "work"
        self.ray = tempfile.mkdtemp(prefix="s3_")  # short: it holds sockets
        self.environment = {
            **os.environ,
            **environment,
            "METTA_RAY_WORK_DIR": str(self.work),
            "METTA_RAY_CACHE": str(directory / "cache"),
            "RAY_TMPDIR": self.ray,
            "PYTHONPATH": str(ROOT),
        }
        self.directory = directory
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *words: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "metta_ray", *map(str, words)],
            cwd=self.directory,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def run(self, *words: object, expect: int = 0) -> str:
        process = self.start(*words)
        out, err = process.communicate(timeout=150)
        assert process.returncode == expect, f"exit code {process.returncode}\n{out}\n{err}"
        return out + err

    def kill(self, process: subprocess.Popen[str]) -> None:
        """With all that it started, as when the machine's power goes; Ray replaces what dies while it still lives."""
        while members := [one for one in psutil.process_iter() if _is_living_member(one, process.pid)]:
            for one in members:
                with suppress(ProcessLookupError):
                    os.kill(one.pid, signal.SIGKILL)
            process.wait()
            psutil.wait_procs(members, timeout=3.0)
        process.communicate()

    def end(self) -> None:
        for process in self._started:
            self.kill(process)
        shutil.rmtree(self.ray, ignore_errors=True)


@pytest.fixture
def machine(tmp_path: Path, s3: S3Server) -> Iterator[Machine]:
    one = Machine(tmp_path, s3.environment)
    yield one
    one.end()


def keys(s3: S3Server) -> set[str]:
    return {found["Key"] for found in s3.client().list_objects_v2(Bucket=BUCKET).get("Contents", [])}


@pytest.mark.chaos
def test_a_killed_run_is_resumed_from_the_store_alone_bit_for_bit_and_can_be_looked_at_there(
    machine: Machine, s3: S3Server, tmp_path: Path
):
    total = ["--total-timesteps", EPOCHS * BATCH]
    machine.run("train", *OPTIONS, *total, "--run", "one", "--data-dir", tmp_path / "whole")

    killed = machine.start("train", *OPTIONS, *total, "--run", "one", "--data-dir", PLACE)
    wait_until(lambda: any(key.endswith("manifest.json") for key in keys(s3)), 120, "a checkpoint in the store")
    machine.kill(killed)
    there = [key for key in keys(s3) if key.endswith("manifest.json")]
    assert there
    assert not any("model_0040" in key for key in there), "killed on the way"
    shutil.rmtree(machine.work)

    told = machine.run("train", *OPTIONS, *total, "--run", "one", "--data-dir", PLACE)

    assert f"fetched from {PLACE}/one: " in told
    assert "continuing one after epoch" in told
    assert f"uploaded: {PLACE}/one" in told
    assert learned(machine.work / "s3" / BUCKET / "runs/one") == learned(tmp_path / "whole/one")
    assert "balanced: " in machine.run("audit", "one", "--data-dir", PLACE)

    shutil.rmtree(machine.work)
    told = machine.run(
        "evaluate", f"{PLACE}/one", "--suite", "navigation", "--episodes", 1, "--against", "random",
        "--replay-dir", f"s3://{BUCKET}/replays", "--json", f"s3://{BUCKET}/scores.json",
    )  # fmt: skip
    assert "model_0040" in told
    machine.run("report", f"{PLACE}/one", "--out", f"s3://{BUCKET}/report.html")
    machine.run("replay", f"{PLACE}/one", "--out", tmp_path / "replay.html")
    recorded = next(key for key in keys(s3) if key.startswith("replays/"))
    machine.run("replay", f"s3://{BUCKET}/{recorded}", "--out", f"s3://{BUCKET}/replay.html")
    assert {"report.html", "replay.html", "scores.json", "runs/one/checkpoints/model_0040/scores.json"} <= keys(s3)


def test_a_bucket_or_credentials_that_are_missing_are_said_before_anything_starts(machine: Machine):
    command = ["train", "--preset", "cartpole", *ALONE, "--run", "one"]
    told = machine.run(*command, "--data-dir", "s3://nobody/runs", expect=2)
    assert "nothing can be kept in s3://nobody/runs" in told
    assert "does not exist" in told

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        machine.environment.pop(name)
    machine.environment["AWS_SHARED_CREDENTIALS_FILE"] = "/nowhere"
    told = machine.run(*command, "--data-dir", PLACE, expect=2)
    assert "Unable to locate credentials" in told
    assert not machine.work.exists()
