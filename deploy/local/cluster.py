#!/usr/bin/env python3
"""A Ray cluster of several nodes on this machine, with a token; dashboard and job API on loopback only.

    python deploy/local/cluster.py up --workers 2
    metta-ray train deploy/runs/smoke.yaml --run first --address 127.0.0.1:6379

``up`` prints the variables that a shell needs to reach it, ``status`` what lives, ``down`` ends it. Every node is a
session of its own, noted in the directory (``$METTA_RAY_LOCAL``, else ~/.metta_ray/local), and is ended by the
processes of that session: other clusters on this machine are left alone. Ray's ports between nodes are on all
interfaces, whatever address a node is given; they ask for the token as well.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

LOOPBACK = "127.0.0.1"
START_TIMEOUT_S = 90.0
STARTED = "Ray runtime started"
FIRST_AGENT_PORT = 52365
"""Of the head; each worker node takes the next."""


class LocalClusterError(RuntimeError):
    """Told in one line."""


class LocalCluster:
    """What ``directory`` says about the cluster that was started from it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._nodes_file = directory / "nodes.json"
        self.token_file = directory / "auth_token"

    def up(self, *, workers: int, cpus: int, port: int, dashboard_port: int, store_bytes: int) -> None:
        """Starts a head and so many more nodes; LocalClusterError with the log's end if one does not come."""
        if any(self.nodes()):
            raise LocalClusterError(f"a cluster of {self._directory} runs already; end it with: {sys.argv[0]} down")
        for wanted in (port, dashboard_port):
            _require_free(wanted)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._write_token()
        address = f"{LOOPBACK}:{port}"
        common = ["--block", "--disable-usage-stats", f"--object-store-memory={store_bytes}"]
        head = ["--head", f"--port={port}", f"--dashboard-host={LOOPBACK}", f"--dashboard-port={dashboard_port}"]
        # Trainings share this machine's cores; the head's are its workers'.
        head += ["--include-dashboard=true", f"--temp-dir={self._temp_dir()}", "--num-cpus=0"]
        try:
            self._start("head", [*head, *common, f"--dashboard-agent-listen-port={FIRST_AGENT_PORT}"])
            for number in range(workers):
                agent = f"--dashboard-agent-listen-port={FIRST_AGENT_PORT + 1 + number}"
                self._start(f"worker-{number}", [f"--address={address}", f"--num-cpus={cpus}", *common, agent])
        except LocalClusterError:
            self.down()
            raise

    def down(self) -> int:
        """Ends every node; returns how many there were."""
        nodes = list(self.nodes())
        _end_sessions({node["session"] for node in nodes})
        self._nodes_file.unlink(missing_ok=True)
        shutil.rmtree(self._temp_dir(), ignore_errors=True)
        return len(nodes)

    def nodes(self) -> Iterator[dict[str, Any]]:
        """Those that live. A number that now belongs to another process is not one of them."""
        for node in self._noted():
            with suppress(psutil.NoSuchProcess):
                if abs(psutil.Process(node["session"]).create_time() - node["created"]) < 1.0:
                    yield node

    def variables(self) -> dict[str, str]:
        """What a shell must export to be let in."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_file)}

    def _start(self, name: str, words: Sequence[str]) -> None:
        log = self._directory / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [_ray_command(), "start", *words],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        node = {"name": name, "session": process.pid, "created": psutil.Process(process.pid).create_time()}
        self._nodes_file.write_text(json.dumps([*self._noted(), node]))
        deadline = time.monotonic() + START_TIMEOUT_S
        while STARTED not in log.read_text(errors="replace"):
            if process.poll() is not None or time.monotonic() > deadline:
                end = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
                raise LocalClusterError(f"node {name} did not start; the end of {log}:\n{end}")
            time.sleep(0.1)

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        # A job's python is the first in the PATH of the node that runs it.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        return kept | {"PATH": path, "RAY_USAGE_STATS_ENABLED": "0", **self.variables()}

    def _write_token(self) -> None:
        if not self.token_file.exists():
            descriptor = os.open(self.token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            os.write(descriptor, secrets.token_hex(32).encode())
            os.close(descriptor)

    def _temp_dir(self) -> Path:
        # Sockets lie in it, whose paths must be short.
        return Path(f"/tmp/metta_ray_local_{os.getuid()}_{_short_hash(str(self._directory))}")

    def _noted(self) -> list[dict[str, Any]]:
        with suppress(FileNotFoundError):
            noted: list[dict[str, Any]] = json.loads(self._nodes_file.read_text())
            return noted
        return []


def _short_hash(text: str) -> str:
    """The same in every process, unlike ``hash``."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _ray_command() -> str:
    """The one of this Python, whatever PATH says."""
    command = Path(sys.executable).parent / "ray"
    if not command.exists():
        raise LocalClusterError(f"{command} does not exist; run this with the Python that metta_ray is installed in")
    return str(command)


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise LocalClusterError(f"port {port} is taken ({error.strerror}); choose another, see --help") from None


def _end_sessions(sessions: set[int]) -> None:
    """TERM to all of them, then KILL until none is left: Ray's processes outlive a TERM and start others."""
    for patience_s, number in ((5.0, signal.SIGTERM), *[(3.0, signal.SIGKILL)] * 5):
        members = list(_members(sessions))
        if not members:
            return
        for member in members:
            with suppress(psutil.Error):
                member.send_signal(number)
        psutil.wait_procs(members, timeout=patience_s)
    raise LocalClusterError(f"processes do not end: {[process.pid for process in _members(sessions)]}")


def _members(sessions: set[int]) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getsid(process.pid) in sessions and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("up", "status", "down"))
    parser.add_argument("--workers", type=int, default=2, help="nodes beside the head (2)")
    parser.add_argument("--cpus", type=int, default=2, help="cores that each of them offers (2)")
    parser.add_argument("--port", type=int, default=6379, help="the cluster's (6379)")
    parser.add_argument("--dashboard-port", type=int, default=8265, help="of dashboard and job API (8265)")
    parser.add_argument("--object-store-memory", type=int, default=400_000_000, help="bytes per node (400 MB)")
    default = os.environ.get("METTA_RAY_LOCAL", "~/.metta_ray/local")
    parser.add_argument("--directory", default=default, help=f"token, logs and what was started ({default})")
    options = parser.parse_args(argv)
    cluster = LocalCluster(Path(options.directory).expanduser().absolute())
    try:
        if options.command == "up":
            cluster.up(
                workers=options.workers,
                cpus=options.cpus,
                port=options.port,
                dashboard_port=options.dashboard_port,
                store_bytes=options.object_store_memory,
            )
            print(f"# cluster {LOOPBACK}:{options.port}, dashboard http://{LOOPBACK}:{options.dashboard_port}")
            print("# to use it in this shell:")
            for name, value in cluster.variables().items():
                print(f"export {name}={value}")
        elif options.command == "status":
            for node in cluster.nodes():
                print(f"{node['name']}: process {node['session']}")
        else:
            print(f"ended {cluster.down()} nodes")
    except LocalClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
