"""What runs in an environment worker: one batch on rows of shared arrays, stepped on command.

Messages are byte strings over one socket. To the worker: empty = step; else a pickled (name, argument). Back:
empty = stepped and no episode ended; else a pickled (kind, value) with kind ``results``, ``value`` or
``error``. Both ends are of the same run, so pickle carries no foreign data.

A worker never outlives its parent: the socket's end of file ends an idle one, a watching thread a busy one.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from metta_ray.envs import shared_arrays
from metta_ray.envs.env_batch import EnvBatch
from metta_ray.envs.registry import EnvFactory

PARENT_CHECK_S = 0.5


@dataclass(frozen=True)
class Assignment:
    """Environments ``first_env … first_env + num_envs - 1`` on their rows of the arrays."""

    factory: EnvFactory
    layout: shared_arrays.Layout
    num_envs: int
    first_env: int
    agents_per_env: int


def main(command_fd: int, memory_fd: int, stack_fd: int, parent_pid: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    # A silent worker is asked by this signal where it stands; the handler runs even inside C code.
    faulthandler.register(signal.SIGUSR1, file=stack_fd, all_threads=True)
    threading.Thread(target=_end_with_parent, args=(parent_pid,), daemon=True).start()
    connection = Connection(command_fd)
    try:
        batch = _build(pickle.loads(connection.recv_bytes()), memory_fd)
        os.close(memory_fd)
        connection.send_bytes(pickle.dumps(("value", os.getpid())))
        _serve(connection, batch)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent has gone
    except BaseException as error:
        _report(connection, error)
        sys.exit(1)


def _build(assignment: Assignment, memory_fd: int) -> EnvBatch:
    arrays = shared_arrays.attach(memory_fd, assignment.layout)
    start = assignment.first_env * assignment.agents_per_env
    rows = arrays.rows(start, start + assignment.num_envs * assignment.agents_per_env)
    return assignment.factory.build(assignment.num_envs, assignment.first_env, rows)


def _serve(connection: Connection, batch: EnvBatch) -> None:
    while True:
        message = connection.recv_bytes()
        name, argument = pickle.loads(message) if message else ("step", None)
        if name == "close":
            batch.close()
            return
        if name == "step":
            if argument is not None:
                batch.set_tasks(argument)
            results = batch.step()
            connection.send_bytes(pickle.dumps(("results", results)) if results else b"")
        else:
            connection.send_bytes(pickle.dumps(("value", _perform(batch, name, argument))))


def _perform(batch: EnvBatch, name: str, argument: Any) -> Any:
    if name == "snapshot":
        return batch.snapshot()
    table, start = argument
    if table is not None:
        batch.set_tasks(table)
    if name == "reset":
        return batch.reset(start)
    if name == "restore":
        return batch.restore(start)
    raise ValueError(f"unknown command {name!r}")


def _report(connection: Connection, error: BaseException) -> None:
    """Sends what the parent needs to raise a readable error: kind, message and traceback."""
    text = "".join(traceback.format_exception(error))
    try:
        connection.send_bytes(pickle.dumps(("error", (type(error).__name__, str(error), text))))
    except OSError:
        sys.stderr.write(text)


def _end_with_parent(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(PARENT_CHECK_S)
    os._exit(1)
