"""Every ``bash`` block of ``deploy/README.md`` runs, in their order; the cluster of ``deploy/local`` keeps its word.

What is in ``text`` blocks needs a cloud, a Kubernetes cluster or a Docker engine. A line is changed only in its ports,
and shortened where it would train for long.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import psutil
import pytest

from tests.ray.harness import ROOT, free_port

pytestmark = pytest.mark.chaos

HANDBOOK = (ROOT / "deploy" / "README.md").read_text()
LINES = [
    line
    for block in re.findall(r"^```bash\n(.*?)^```$", HANDBOOK, flags=re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]
UP = next(line for line in LINES if "cluster.py up" in line)
DOWN = next(line for line in LINES if "cluster.py down" in line)
SHORTER = "--total-timesteps 8192"


class Reader:
    """Somebody at a shell in the root of the repository."""

    def __init__(self, directory: Path) -> None:
        self.ports = {"6379": free_port(), "8265": free_port()}
        self.local = directory / "local"
        self._directory = directory
        shutil.copytree(ROOT / "deploy", directory / "deploy")
        ours = ("DATA_DIR", "METTA_RUN")
        kept = {name: v for name, v in os.environ.items() if name not in ours and not name.startswith("RAY_")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = kept | {"PATH": path, "METTA_RAY_LOCAL": str(self.local), "PYTHONPATH": str(ROOT)}

    def run(self, line: str) -> subprocess.CompletedProcess[str]:
        if line == UP:
            line += f" --port {self.ports['6379']} --dashboard-port {self.ports['8265']}"
        for there, here in self.ports.items():
            line = line.replace(f"127.0.0.1:{there}", f"127.0.0.1:{here}")
        if re.match(r"metta-ray (train|submit) deploy/runs", line) and "--total-timesteps" not in line:
            line += f" {SHORTER}"
        return subprocess.run(
            ["timeout", "150", "bash", "-euc", line],
            cwd=self._directory,
            env=self.environment,
            capture_output=True,
            text=True,
        )

    def require(self, line: str) -> str:
        answer = self.run(line)
        assert answer.returncode == 0, f"{line}\n{answer.stdout[-3000:]}\n{answer.stderr[-3000:]}"
        return answer.stdout

    def export(self, printed: str) -> None:
        self.environment |= dict(re.findall(r"^export (\w+)=(.*)$", printed, flags=re.MULTILINE))

    def processes(self) -> list[psutil.Process]:
        """All whose arguments name this cluster's address."""
        return [
            p for p in psutil.process_iter(["cmdline"]) if f"{self.ports['6379']}" in " ".join(p.info["cmdline"] or [])
        ]


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path)
    yield reader
    reader.run(DOWN)


def test_the_handbooks_commands_run_from_first_to_last(reader: Reader) -> None:
    assert LINES[0] == UP
    for line in LINES:
        printed = reader.require(line)
        if line == UP:
            reader.export(printed)
            the_cluster_is_closed(reader)
        if line.startswith("metta-ray train deploy/runs") or "logs" in line:
            assert "evaluation of model_" in printed, printed[-2000:]
        if "--total-timesteps 12288" in line:
            assert "continuing first" in printed
        if line == DOWN:
            assert printed == "ended 3 nodes\n"
            assert reader.processes() == []
            assert not (reader.local / "nodes.json").exists()


def the_cluster_is_closed(reader: Reader) -> None:
    """No token or a wrong one: no entry, and it is said. The dashboard on loopback; one cluster for one directory; the
    token is the user's alone."""
    with pytest.raises(HTTPError, match="401"):
        urlopen(f"http://127.0.0.1:{reader.ports['8265']}/api/jobs/", timeout=10)
    dashboards = [
        connection.laddr.ip
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == reader.ports["8265"]
    ]
    assert dashboards == ["127.0.0.1"]
    submit = next(line for line in LINES if line.startswith("metta-ray submit"))
    join = next(line for line in LINES if line.startswith("metta-ray train"))
    known = reader.environment
    without = {name: value for name, value in known.items() if not name.startswith("RAY_")}
    without["HOME"] = str(reader.local)
    for token in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
        reader.environment = without | token
        for line in (submit, join):
            refused = reader.run(line)
            assert refused.returncode != 0, line
            assert "a missing or wrong token looks the same: RAY_AUTH_MODE and RAY_AUTH_TOKEN" in refused.stderr, line
            assert "Traceback" not in refused.stderr, refused.stderr
    reader.environment = known | {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1"}
    refused = reader.run(submit)
    assert refused.returncode == 2
    assert "name different clusters" in refused.stderr
    reader.environment = known
    again = reader.run(UP)
    assert again.returncode == 1
    assert "runs already" in again.stderr
    assert (reader.local / "auth_token").stat().st_mode & 0o777 == 0o600


def test_a_port_that_is_taken_is_named(reader: Reader) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answer = subprocess.run(
            [sys.executable, str(ROOT / "deploy" / "local" / "cluster.py"), "up", "--port", str(port)],
            env=reader.environment,
            capture_output=True,
            text=True,
        )

    assert answer.returncode == 1
    assert f"port {port} is taken" in answer.stderr
