"""A real Redis in a process of its own, on a port and in a directory of its own."""

from __future__ import annotations

import hashlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

START_S = 20.0


def require_program(name: str) -> str:
    """Its path. Without it the test is skipped, which tests/conftest.py turns into a failure where CI=true."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"needs {name}: apt-get install {name}")
    return path


class RedisServer:
    """options: more words of redis-server's command line. port: where it answers, also after a restart."""

    def __init__(self, directory: Path, *options: str, config: Path | None = None, port: int | None = None) -> None:
        self.directory = directory
        self.port = port or free_port()
        self._command = [require_program("redis-server"), *([str(config)] if config else [])]
        self._command += ["--dir", str(directory), *(options or plain_port(self.port))]
        self.process = self._started()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        if self.process.poll() is None:
            self.kill()
        self.process = self._started()

    def output(self) -> str:
        return (self.directory / "redis.log").read_text()

    def _started(self) -> subprocess.Popen[bytes]:
        with (self.directory / "redis.log").open("wb") as log:
            process = subprocess.Popen(self._command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + START_S
        while "Ready to accept connections" not in self.output():
            assert process.poll() is None, self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.01)
        return process


def plain_port(port: int) -> tuple[str, ...]:
    """Nothing is kept on a disk."""
    return ("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no")


def with_users_of_the_handbook(directory: Path, password: str) -> AbstractContextManager[RedisServer]:
    """Its default user may do nothing; ``metta`` has this password and the rights that ``deploy/redis`` gives."""
    digest = hashlib.sha256(password.encode()).hexdigest()
    rights = Path(__file__).parents[1] / "deploy" / "redis" / "users.acl"
    lines = rights.read_text().replace("METTA_PASSWORD_SHA256", digest).replace("RAY_PASSWORD_SHA256", "0" * 64)
    (directory / "users.acl").write_text(lines)
    port = free_port()
    return redis_server(directory, *plain_port(port), "--aclfile", "users.acl", port=port)


@contextmanager
def redis_server(
    directory: Path, *options: str, config: Path | None = None, port: int | None = None
) -> Iterator[RedisServer]:
    directory.mkdir(parents=True, exist_ok=True)
    server = RedisServer(directory, *options, config=config, port=port)
    try:
        yield server
    finally:
        server.thaw()
        server.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
