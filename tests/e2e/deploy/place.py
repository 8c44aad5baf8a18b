"""Runs the commands of the files in ``deploy`` and ``docker`` here, as processes.

A command is changed only where a container has something of its own: ports, the addresses of other containers, and
directories. Everything else, flags and all, is what the file says.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.ray.harness import ROOT, START_S, Session, free_port, node_address, wait_until

TOKEN = "0123456789abcdef" * 4
PASSWORD = "fedcba9876543210" * 4


class Place:
    """One test's machine: what containers call ``/data``, ``/etc/metta-ray`` or port 6379 is a part of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._temporary = Path(tempfile.mkdtemp(prefix="mr"))  # short: sockets lie in it
        self.ports = {
            name: free_port()
            for name in ("6379", "8265", "9090", "10001", "44217", "44227")  # of the head, and shared
        }
        self.redis_port = free_port()
        self._sessions: list[Session] = []
        for name in ("data", "home", "run", "secrets", "redis"):
            (directory / name).mkdir()

    def here(self, text: str, *, ports: Mapping[str, int]) -> str:
        """A command or a value as it is here: directories, addresses, ports."""
        data = self.directory / "data"
        for there, new in (
            ("metta-ray-redis:6379", f"127.0.0.1:{self.redis_port}"),
            ("redis:6379", f"127.0.0.1:{self.redis_port}"),
            ("head:6379", f"{node_address()}:{self.ports['6379']}"),
            ("$RAY_HEAD_IP:6379", f"{node_address()}:{self.ports['6379']}"),
            ("127.0.0.1:6379", f"127.0.0.1:{self.ports['6379']}"),
            ("--port=6379", f"--port={self.ports['6379']}"),
            ("--dashboard-port=8265", f"--dashboard-port={self.ports['8265']}"),
            ("/etc/metta-ray", str(self.directory / "run")),
            ("/etc/redis", str(self.directory / "redis")),
            ("/opt/metta-ray/runs", str(ROOT / "deploy" / "runs")),
            ("/run/secrets", str(self.directory / "secrets")),
            ("0.0.0.0", "127.0.0.1"),
            ("dir /data", f"port {self.redis_port}\\nbind 127.0.0.1\\ndir {self.directory / 'redis'}"),
            ("redis-cli ", f"redis-cli -p {self.redis_port} "),
            *((f"localhost:{name}", f"localhost:{port}") for name, port in {**self.ports, **ports}.items()),
            *((f"={name} ", f"={port} ") for name, port in ports.items()),
        ):
            text = text.replace(there, new)
        return str(data) if text == "/data" else text

    def environment(self, given: Mapping[str, object], *, ports: Mapping[str, int]) -> dict[str, str]:
        """Of a container: what the file gives it, and nothing of Ray's that this test was started with."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "DATA_DIR"))}
        return {
            **kept,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.directory / "home"),
            **{name: self.here(str(value), ports=ports) for name, value in given.items()},
        }

    def agent_ports(self) -> dict[str, int]:
        """Ports that every node has, and that nodes of one machine cannot share."""
        return {"52365": free_port(), "8080": free_port()}

    def start(
        self, command: Sequence[str], environment: Mapping[str, object], *, name: str, ports: Mapping[str, int]
    ) -> Session:
        """A container's command, in a session of its own."""
        env = self.environment(environment, ports=ports)
        if "--head" in command[-1]:
            env["RAY_TMPDIR"] = str(self._temporary)  # other nodes are told by the head
        words = [self.here(f"{word} ", ports=ports).rstrip() if " " in word else word for word in command]
        session = Session(words, cwd=self.directory, env=env, log=self.directory / f"{name}.log")
        self._sessions.append(session)
        return session

    def start_node(
        self, line: str, environment: Mapping[str, object], *, name: str, ports: Mapping[str, int]
    ) -> Session:
        """``ray start … --block`` as a line for a shell; waits until the node is up."""
        if "--head" in line:
            line += f" --port={self.ports['6379']} --dashboard-port={self.ports['8265']}"
            line += f" --ray-client-server-port={self.ports['10001']}"
        session = self.start(["bash", "-c", f"exec {line}"], environment, name=name, ports=ports)
        self.wait_for_node(session)
        return session

    def wait_for_node(self, session: Session) -> None:
        def is_up() -> bool:
            assert session.process.poll() is None, session.output
            return "Ray runtime started" in session.output

        wait_until(is_up, START_S, "the node is up")

    def run(
        self,
        command: Sequence[str],
        environment: Mapping[str, object],
        *,
        ports: Mapping[str, int],
        timeout_s: float = 90,
    ) -> subprocess.CompletedProcess[str]:
        """A command that ends: a probe, a submission."""
        return subprocess.run(
            [self.here(f"{word} ", ports=ports).rstrip() if " " in word else word for word in command],
            cwd=self.directory,
            env=self.environment(environment, ports=ports),
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def wait_for_success(
        self,
        command: Sequence[str],
        environment: Mapping[str, object],
        *,
        ports: Mapping[str, int],
        timeout_s: float = 30,
    ) -> None:
        """A probe, repeated as whoever probes would."""
        deadline = time.monotonic() + timeout_s
        while (answer := self.run(command, environment, ports=ports)).returncode != 0:
            words = self.here(" ".join(command), ports=ports)
            assert time.monotonic() < deadline, f"{words}\n{answer.stdout[-2000:]}\n{answer.stderr[-2000:]}"
            time.sleep(0.5)

    def end(self) -> None:
        for session in reversed(self._sessions):
            session.end()
        shutil.rmtree(self._temporary, ignore_errors=True)
