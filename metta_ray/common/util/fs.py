"""Files that are complete or absent, whenever the process or the machine dies.

Order of a safe write: write beside, fsync each file, fsync the directory, rename, fsync the parent. Every
operation that touches the disk is one small function here and reports to ``io_hook``, so that a test can stop
the world after each of them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from metta_ray.common.errors import RunDirectoryInUse

io_hook: Callable[[str, Path], None] | None = None
"""Called with (operation, path) after each operation that changed the disk. For tests."""

_PROCESS_TOKEN = secrets.token_hex(4)
# A temporary of another host cannot be asked whether its process lives: after an hour it is taken for dead.
_FOREIGN_TEMPORARY_MAX_AGE_S = 3600.0


@contextmanager
def atomic_directory(path: Path | str, *, replace: bool = False) -> Iterator[Path]:
    """Yields a hidden directory to write into; it becomes ``path`` when the block ends without an error.

    A crash at any point leaves ``path`` complete or absent; what lies beside it is hidden (``.name.tmp-…``)
    and removed by the next call. FileExistsError if ``path`` exists, unless ``replace``: then the old
    directory is moved aside first, and a crash between the two renames leaves ``path`` absent.
    """
    path = Path(path)
    if path.exists() and not replace:
        raise FileExistsError(f"{path} exists already; remove it or choose another name")
    make_directories(path.parent)
    remove_stale_temporaries(path.parent)
    temporary = _temporary_beside(path)
    make_directories(temporary)
    try:
        yield temporary
        for entry in sorted(temporary.rglob("*")):
            sync_directory(entry) if entry.is_dir() else sync_file(entry)
        sync_directory(temporary)
    except Exception:  # the block failed; after a kill the temporary stays and is found later
        remove_tree(temporary)
        raise
    if path.exists():
        old = _temporary_beside(path)
        rename(path, old)
        rename(temporary, path)
        sync_directory(path.parent)
        remove_tree(old)
    else:
        rename(temporary, path)
        sync_directory(path.parent)


def atomic_write_bytes(path: Path | str, data: bytes, *, replace: bool = True) -> None:
    """Writes a file: readers and crashes see the old or the new content, never a part.

    Raises FileExistsError if it exists and is not to be replaced: of several writers one succeeds.
    """
    path = Path(path)
    make_directories(path.parent)
    temporary = _temporary_beside(path)
    try:
        write_file(temporary, data)
        if replace:
            rename(temporary, path)
        else:
            link(temporary, path)
            remove_file(temporary)
    except Exception:
        if temporary.exists():
            remove_file(temporary)
        raise
    sync_directory(path.parent)


def atomic_write_text(path: Path | str, text: str, *, replace: bool = True) -> None:
    """``atomic_write_bytes`` of UTF-8 text."""
    atomic_write_bytes(path, text.encode(), replace=replace)


def sha256_file(path: Path | str) -> str:
    """Hex digest of a file's content, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_stale_temporaries(directory: Path) -> None:
    """Removes what writers that are dead left in ``directory``; leaves those of living writers alone."""
    for entry in directory.glob(".*.tmp-*"):
        if _is_stale(entry):
            remove_tree(entry) if entry.is_dir() else remove_file(entry)


# --- the operations, one function each -------------------------------------------------------------------


def make_directories(path: Path) -> None:
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        _report("mkdir", path)


def write_file(path: Path, data: bytes) -> None:
    """Writes a new file and fsyncs it."""
    with open(path, "wb") as file:
        file.write(data)
        _report("write", path)
        file.flush()
        os.fsync(file.fileno())
    _report("fsync", path)


def sync_file(path: Path) -> None:
    _fsync_path(path)
    _report("fsync", path)


def sync_directory(path: Path) -> None:
    _fsync_path(path)
    _report("fsync_dir", path)


def rename(source: Path, target: Path) -> None:
    os.rename(source, target)
    _report("rename", target)


def link(source: Path, target: Path) -> None:
    """Gives a file a second name, where there is none of that name."""
    os.link(source, target)
    _report("link", target)


def remove_file(path: Path) -> None:
    path.unlink(missing_ok=True)
    _report("remove", path)


def remove_tree(path: Path) -> None:
    """Removes a directory at once for readers: it is renamed to a hidden name before its files go."""
    if not path.name.startswith("."):
        hidden = _temporary_beside(path)
        rename(path, hidden)
        path = hidden
    shutil.rmtree(path, ignore_errors=True)
    _report("rmtree", path)


def _fsync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _report(operation: str, path: Path) -> None:
    if io_hook is not None:
        io_hook(operation, path)


# --- temporaries -----------------------------------------------------------------------------------------


def _temporary_beside(path: Path) -> Path:
    writer = f"{socket.gethostname()}-{os.getpid()}-{_PROCESS_TOKEN}"
    return path.parent / f".{path.name}.tmp-{writer}-{secrets.token_hex(4)}"


def _is_stale(temporary: Path) -> bool:
    writer = temporary.name.rpartition(".tmp-")[2]
    host, pid, token = writer.rsplit("-", 3)[:3] if writer.count("-") >= 3 else ("", "", "")
    if host == socket.gethostname() and pid.isdigit():
        if int(pid) == os.getpid():
            return token != _PROCESS_TOKEN  # an earlier life under the same process id
        return not is_alive(int(pid))
    try:
        return time.time() - temporary.stat().st_mtime > _FOREIGN_TEMPORARY_MAX_AGE_S
    except FileNotFoundError:
        return False


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


# --- one writer per run directory ------------------------------------------------------------------------


class RunLock:
    """Exclusive right to write to a run directory, held until ``release`` or the end of the process.

    The kernel drops it with the process, so nothing stale has to be cleaned. Within one process the lock is
    re-entrant: ``acquire`` returns the lock that is held already.
    """

    FILE_NAME = ".lock"
    _held: dict[Path, RunLock] = {}  # noqa: RUF012 - one per process on purpose

    def __init__(self, run_dir: Path, file: IO[str]) -> None:
        self.run_dir = run_dir
        self._file = file

    @classmethod
    def acquire(cls, run_dir: Path | str) -> RunLock:
        """Raises RunDirectoryInUse naming the process that holds the lock."""
        run_dir = Path(run_dir).resolve()
        if run_dir in cls._held:
            return cls._held[run_dir]
        make_directories(run_dir)
        file = open(run_dir / cls.FILE_NAME, "a+", encoding="utf-8")  # noqa: SIM115 - lives as long as the lock
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read_holder(file)
            file.close()
            raise RunDirectoryInUse(
                f"run directory {run_dir} is in use by {holder}; stop that process or choose another run name"
            ) from None
        _write_holder(file)
        cls._held[run_dir] = cls(run_dir, file)
        return cls._held[run_dir]

    @classmethod
    def held(cls, run_dir: Path | str) -> RunLock | None:
        """The lock that this process holds on ``run_dir``, if it does."""
        return cls._held.get(Path(run_dir).resolve())

    def release(self) -> None:
        """Gives the right up. Safe to call twice."""
        if self._held.pop(self.run_dir, None) is not None:
            self._file.close()

    @classmethod
    def forget_after_fork(cls) -> None:
        """A forked child must not keep its parent's locks alive by holding their descriptors."""
        for lock in cls._held.values():
            lock._file.close()
        cls._held.clear()


os.register_at_fork(after_in_child=RunLock.forget_after_fork)


def _write_holder(file: IO[str]) -> None:
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    file.truncate(0)
    file.write(json.dumps(holder))
    file.flush()


def _read_holder(file: IO[str]) -> str:
    file.seek(0)
    try:
        holder: dict[str, Any] = json.loads(file.read())
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError):
        return "another process"
