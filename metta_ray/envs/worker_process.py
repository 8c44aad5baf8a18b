"""The parent's side of one environment worker: start it, command it, and say what became of it.

A worker is a fresh interpreter (nothing is inherited by fork, the user's script is not run a second time and
needs no ``__main__`` guard). It gets the parent's module search path and one thread per numerical library.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from metta_ray.common.errors import CheckpointError, ConfigError, EnvironmentFault
from metta_ray.envs.tasks import EpisodeResult
from metta_ray.envs.worker_main import Assignment

_BOOTSTRAP = """import sys
sys.path[:] = {path!r}
from metta_ray.envs.worker_main import main
main({command_fd}, {memory_fd}, {stack_fd}, {parent_pid})
"""
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
_STACK_WAIT_S = 0.3
_EXIT_WAIT_S = 2.0


class WorkerProcess:
    """Worker ``index``. ``is_waiting`` while a command is unanswered; at most one command at a time."""

    def __init__(self, index: int, assignment: Assignment, memory_fd: int) -> None:
        self.index = index
        self.is_waiting = False
        self.results: list[EpisodeResult] = []
        self.value: Any = None
        self._environments = _range_text(assignment.first_env, assignment.num_envs)
        message = _portable(assignment)  # may refuse: before anything has started
        ours, theirs = socket.socketpair()
        self._stack_fd, their_stack_fd = os.pipe()
        os.set_blocking(self._stack_fd, False)
        try:
            self._process = _start_interpreter(theirs.fileno(), memory_fd, their_stack_fd)
        finally:
            theirs.close()
            os.close(their_stack_fd)
        self._connection = Connection(ours.detach())
        self._send(message)

    def fileno(self) -> int:
        """Readable when an answer has come or the worker has ended."""
        return self._connection.fileno()

    @property
    def pid(self) -> int:
        return self._process.pid

    def step(self) -> None:
        self._send(b"")

    def command(self, name: str, argument: Any = None) -> None:
        self._send(_portable((name, argument)))

    def read_answer(self) -> None:
        """Takes the answer into ``results`` or ``value``. EnvironmentFault (or the worker's CheckpointError
        or ConfigError) where the worker failed or ended."""
        try:
            answer = self._connection.recv_bytes()
        except (EOFError, OSError):
            raise EnvironmentFault(f"{self} {self._how_it_ended()}") from None
        self.is_waiting = False
        kind, value = pickle.loads(answer) if answer else ("results", [])
        if kind == "error":
            raise self._error(*value)
        if kind == "results":
            self.results = value
        else:
            self.value = value

    def silence(self, timeout_s: float, setting: str) -> EnvironmentFault:
        """The error for a worker that has not answered in time, with the place where it stands."""
        return EnvironmentFault(
            f"{self} did not answer within {timeout_s:g} s ({setting}); raise the limit if its environments "
            f"are this slow\n{self._stack()}"
        )

    def ask_to_end(self) -> None:
        with suppress(OSError):  # it may have ended
            self._connection.send_bytes(pickle.dumps(("close", None)))

    def end(self, deadline: float) -> None:
        """Waits until ``deadline`` (monotonic seconds), then kills; leaves no process and no descriptor."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._connection.close()
        os.close(self._stack_fd)

    def __str__(self) -> str:
        return f"environment worker {self.index} (pid {self.pid}, {self._environments})"

    def _send(self, message: bytes) -> None:
        self.is_waiting = True
        with suppress(OSError):  # reading the answer finds what it left and how it ended
            self._connection.send_bytes(message)

    def _error(self, kind: str, message: str, text: str) -> Exception:
        """The worker's exception as ours: what the user can act on keeps its class."""
        classes: dict[str, type[Exception]] = {"CheckpointError": CheckpointError, "ConfigError": ConfigError}
        if kind in classes:
            return classes[kind](f"{self}: {message}")
        cause = message if kind == "EnvironmentFault" else f"{kind}: {message}"
        return EnvironmentFault(f"{self} failed: {cause}\n\nIn the worker:\n{text}")

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(_EXIT_WAIT_S)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        if code >= 0:
            return f"ended with exit code {code}"
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"was killed by {name}{hint}"

    def _stack(self) -> str:
        """Where the worker's threads stand, asked by signal; empty if it cannot say."""
        try:
            self._process.send_signal(signal.SIGUSR1)
        except OSError:
            return ""
        pieces = []
        while select.select([self._stack_fd], [], [], _STACK_WAIT_S)[0]:
            piece = os.read(self._stack_fd, 65536)
            if not piece:
                break
            pieces.append(piece)
        text = b"".join(pieces).decode(errors="replace")
        return f"The worker's stack:\n{text}" if text else ""


def _start_interpreter(command_fd: int, memory_fd: int, stack_fd: int) -> subprocess.Popen[bytes]:
    bootstrap = _BOOTSTRAP.format(
        path=sys.path, command_fd=command_fd, memory_fd=memory_fd, stack_fd=stack_fd, parent_pid=os.getpid()
    )
    return subprocess.Popen(
        [sys.executable, "-c", bootstrap],
        stdin=subprocess.DEVNULL,
        pass_fds=(command_fd, memory_fd, stack_fd),
        env={**os.environ, **_ONE_THREAD},
    )


def _range_text(first_env: int, num_envs: int) -> str:
    return f"environment {first_env}" if num_envs == 1 else f"environments {first_env} to {first_env + num_envs - 1}"


def _portable(message: Any) -> bytes:
    """Pickled for a worker. ConfigError for what only the running script knows."""
    try:
        data = pickle.dumps(message)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"not everything can be sent to worker processes: {error}; use importable names and plain "
            f"values, or vectorization='serial'"
        ) from error
    if b"__main__" in data:
        raise ConfigError(
            "something defined in the running script (__main__) would have to be sent to worker processes, "
            "which cannot import it; move it into a module, or use vectorization='serial'"
        )
    return data
