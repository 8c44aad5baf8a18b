"""The commands of the handbook's chapter about records in a Redis, as written but for places and ports."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from metta_ray.state.open_store import open_store
from metta_ray.state.records import EventRecord, RunRecord
from tests.ray.harness import ROOT, Session, free_port, wait_until
from tests.redis_server import require_program

pytestmark = pytest.mark.chaos

CHAPTER = (ROOT / "deploy" / "README.md").read_text().partition("\n## Records of runs in a Redis\n")[2]
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", CHAPTER.partition("\n## ")[0], flags=re.DOTALL | re.MULTILINE)
OLD = RunRecord(name="old", run_dir="/data/old", state="done", generation=2, started=1.0, updated=2.0)


def test_runs_move_to_a_redis_and_back(tmp_path: Path) -> None:
    require_program("redis-server")
    require_program("openssl")
    port = free_port()

    def here(line: str) -> str:
        line = line.replace("/srv/redis", f"{tmp_path}/redis").replace("/data/", f"{tmp_path}/data/")
        line = line.replace("10.0.0.5:6380", f"127.0.0.1:{port}").replace("10.0.0.5", "127.0.0.1")
        return line + (" --total-timesteps 4096" if line.startswith("metta-ray train") else "")

    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "METTA_RAY_STATE"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = kept | {"PATH": path, "PYTHONPATH": str(ROOT), "DATA_DIR": f"{tmp_path}/data"}

    def output(script: str) -> str:
        command = ["timeout", "200", "bash", "-euxc", script]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert (tmp_path / "redis" / "metta.password").read_text() not in done.stdout + done.stderr
        return done.stdout

    old = open_store(f"sqlite:///{tmp_path}/data/runs.sqlite")
    old.put_run(OLD)
    old.add_event(EventRecord("old", 1.5, "note", "something"))

    prepare, serve = map(here, BLOCKS[0].splitlines())
    output(prepare)
    command = ["bash", "-c", f"exec {serve} --tls-port {port}"]
    server = Session(command, cwd=ROOT, env=environment, log=tmp_path / "redis.log")
    try:
        wait_until(lambda: "Ready to accept connections" in server.output, 20.0, "the Redis is up")
        printed = output("\n".join(map(here, BLOCKS[1].splitlines())))
    finally:
        server.end()

    assert printed.startswith("run old: copied; new events: 1\n")
    assert re.search(r"^first +done", printed, re.MULTILINE), printed
    assert "run first: copied" in printed
    back = open_store(f"sqlite:///{tmp_path}/data/back.sqlite")
    assert {run.name: run.state for run in back.list_runs()} == {"old": "done", "first": "done"}
    assert back.get_run("old") == OLD
    assert back.events("old") == old.events("old")
    assert old.get_run("first") is None, "there is one store"
