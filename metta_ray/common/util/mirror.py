"""A run whose directory is kept in an object store: a working copy on this machine, and a thread that carries it over.

    notes = claim(run_dir, "s3://bucket/runs/nav", is_fresh=False)   # fetches what is newer there, or refuses
    mirror = Mirror(run_dir, "s3://bucket/runs/nav")
    mirror.start()                                                   # from now on all that changes is carried over
    mirror.stop(deadline_s=120.0)                                    # the rest, too

Other files go first, then complete directories (checkpoints), each of which appears whole or not at all. Nothing that
was not carried over is lost: the working copy stays, and the next start of the run goes on with it. Who writes to the
place is written there (``.owner.json``) and renewed, so that two machines do not continue the same run.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from metta_ray.common.errors import CheckpointError, ConfigError, RunDirectoryInUse
from metta_ray.common.util import fs, stored_directories
from metta_ray.common.util.places import (
    download,
    inside,
    listed,
    opened,
    path_of_url,
    read_bytes,
    require_writable,
    write_bytes,
)
from metta_ray.common.util.state_directory import MANIFEST, read_manifest

logger = logging.getLogger(__name__)

WORK_VARIABLE = "METTA_RAY_WORK_DIR"
LEASE_S = 120.0
"""A writer on another machine that was silent for so long is taken for dead."""
UPLOAD_ONLY = ("replays/", "tensorboard/", "torch_traces/", "wandb/")
"""What nobody needs in order to go on is not fetched."""
_OWNER, _KEPT = ".owner.json", ".remote.json"
_LOOK_EVERY_S = 1.0
_WRITE_AHEAD = ("-wal", "-shm", "-journal")
Stamp = list[int]


def working_directory(place: str) -> Path:
    """Where the working copy of a place of runs lies: below $METTA_RAY_WORK_DIR, else ~/.local/share/metta_ray."""
    given = os.environ.get(WORK_VARIABLE)
    base = Path(given) if given else Path.home() / ".local" / "share" / "metta_ray"
    return (base / path_of_url(place)).absolute()


def claim(run_dir: Path, place: str, *, is_fresh: bool) -> list[str]:
    """Makes ``run_dir`` the copy to go on with, before anything starts; returns what a person should know.

    What another machine did in this run is fetched; a copy here that is behind it is set aside. With ``is_fresh``
    nothing is fetched. ConfigError where the store cannot be used, RunDirectoryInUse while another machine writes,
    CheckpointError where all that is there is damaged.
    """
    require_writable(place)
    owner, copy = _read_owner(place), _Kept(run_dir).copy
    if copy is not None and (owner is None or owner["copy"] == copy):
        return []
    if owner is not None:
        _refuse_living(owner, place)
    return [] if is_fresh else _fetch(run_dir, place)


def set_aside(place: str, suffix: str) -> str | None:
    """Moves a run to ``<place><suffix>`` in the store; None if there was none. A copy is there before anything goes."""
    target = place.rstrip("/") + suffix
    with opened(place) as (store, root):
        names = list(listed(store, root))
        shown = [name for name in names if not name.startswith(".")]
        for name in sorted(shown, key=_manifests_last):
            store.cp_file(f"{root}/{name}", f"{root}{suffix}/{name}")
        for name in sorted(names, key=_manifests_last, reverse=True):
            store.rm_file(f"{root}/{name}")
    return target if shown else None


class Mirror:
    """Carries a run's directory over. period_s: between two looks at files that merely grow; a checkpoint goes at once.
    retry_s: after a failure, then doubled up to a minute."""

    def __init__(self, run_dir: Path | str, place: str, *, period_s: float = 20.0, retry_s: float = 2.0) -> None:
        self.place = place
        self._run_dir = Path(run_dir)
        self._period_s = period_s
        self._retry_s = retry_s
        self._kept = _Kept(self._run_dir)
        self._owner: dict[str, Any] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._live, name="mirror", daemon=True)
        self._waiting: dict[str, float] = {}  # directories not yet there → since when they are known to be complete
        self._newest: str | None = None
        self._failures = self._all_failures = 0
        self._error: str | None = None
        self._seconds: float | None = None
        self._is_complete = self._is_overtaken = False

    def start(self) -> Mirror:
        self._thread.start()
        return self

    def stop(self, deadline_s: float) -> bool:
        """Carries over what is left and gives the place up; False if that did not work out in time."""
        self._stopping.set()
        self._thread.join(deadline_s)
        return self._is_complete

    def facts(self) -> dict[str, Any]:
        """For a run's status. uploaded: the newest directory that is there. behind_s: how long the oldest that is not
        there has been waiting. seconds: what carrying over took, the last time. failures: in a row."""
        waiting = list(self._waiting.values())
        return {
            "place": self.place,
            "uploaded": self._newest,
            "waiting": len(waiting),
            "behind_s": round(time.monotonic() - min(waiting), 1) if waiting else 0.0,
            "seconds": self._seconds,
            "failures": self._failures,
            "all_failures": self._all_failures,
            "error": self._error,
        }

    # The thread.

    def _live(self) -> None:
        next_look, is_first, seen = 0.0, True, None
        while not self._is_overtaken:
            is_last = self._stopping.is_set()
            there = self._complete_directories()
            if is_last or time.monotonic() >= next_look or (there != seen and not self._failures):
                self._note_waiting(there)
                if self._try(lambda: self._carry_over(is_first=is_first, is_last=is_last)):  # noqa: B023 - called now
                    next_look, is_first, seen = time.monotonic() + self._period_s, False, there
                    if is_last:
                        self._is_complete = True
                        return
                else:
                    next_look = time.monotonic() + min(60.0, self._retry_s * 2 ** min(self._failures - 1, 6))
            self._stopping.wait(_LOOK_EVERY_S)
            if is_last:
                time.sleep(self._retry_s)

    def _try(self, act: Callable[[], None]) -> bool:
        began = time.monotonic()
        try:
            act()
        except Exception as error:  # whatever it is, training goes on
            self._failures += 1
            self._all_failures += 1
            self._error = str(error) or type(error).__name__
            if not isinstance(error, OSError | ConfigError | CheckpointError | RunDirectoryInUse):
                logger.exception("carrying over to %s failed", self.place)
            return False
        self._failures, self._error = 0, None
        self._seconds = round(time.monotonic() - began, 3)
        return True

    def _note_waiting(self, there: dict[str, int]) -> None:
        sent = self._kept.directories
        self._waiting = {
            name: self._waiting.get(name, time.monotonic()) for name, stamp in there.items() if sent.get(name) != stamp
        }

    def _carry_over(self, *, is_first: bool, is_last: bool) -> None:
        self._renew(is_first=is_first)
        damaged: CheckpointError | None = None
        there = self._complete_directories()
        self._send_files()  # first: what is told of the epochs up to a checkpoint is there before the checkpoint is
        for name, stamp in sorted(there.items(), key=lambda item: -item[1]):
            try:
                if self._kept.directories.get(name) != stamp:
                    stored_directories.push(self._run_dir / name, inside(self.place, name))
                    self._kept.directories[name] = stamp
                    self._renew()
            except CheckpointError as error:
                damaged = damaged or error
            except FileNotFoundError:
                if (self._run_dir / name / MANIFEST).exists():
                    raise
                continue  # retention was quicker
            self._waiting.pop(name, None)
        self._newest = max(self._kept.directories, key=lambda name: there.get(name, 0), default=None)
        left = self._complete_directories()
        # None at all was not retention but somebody who emptied the working copy: what is in the store stays.
        for name in set(self._kept.directories) - set(left) if left else ():
            stored_directories.remove(inside(self.place, name))
            del self._kept.directories[name]
        self._kept.write()
        if is_last:
            self._renew(is_released=True)
        if damaged is not None:
            raise damaged

    def _send_files(self) -> None:
        """All that is in no complete directory, as far as it has changed."""
        present = set()
        for path in _files(self._run_dir):
            name = path.relative_to(self._run_dir).as_posix()
            if self._is_listed(name):
                continue
            try:
                stamp = _stamp(path)
                if self._kept.files.get(name) != stamp:
                    write_bytes(inside(self.place, name), _content(path))
                    self._kept.files[name] = stamp
                present.add(name)
            except FileNotFoundError:
                if path.exists():
                    raise
        for name in set(self._kept.files) - present:
            with opened(inside(self.place, name)) as (store, target):
                if store.exists(target):
                    store.rm_file(target)
            del self._kept.files[name]

    def _is_listed(self, name: str) -> bool:
        """Whether a file belongs to a complete directory, and did not come later (scores, pins)."""
        *parents, inner = name.split("/", 2)
        manifest = self._run_dir.joinpath(*parents, MANIFEST)
        if len(parents) < 2 or not manifest.is_file():
            return False
        try:
            return inner == MANIFEST or inner in read_manifest(manifest.parent)["files"]
        except CheckpointError:
            return True

    def _complete_directories(self) -> dict[str, int]:
        """Name → when it was completed, in nanoseconds."""
        found = {}
        for path in self._run_dir.glob(f"*/*/{MANIFEST}"):
            name = path.parent.relative_to(self._run_dir).as_posix()
            if not any(part.startswith(".") for part in name.split("/")):
                try:
                    found[name] = path.stat().st_mtime_ns
                except FileNotFoundError:
                    continue
        return found

    def _renew(self, *, is_first: bool = False, is_released: bool = False) -> None:
        """Says that we write here. RunDirectoryInUse where another machine has said so since."""
        if self._kept.copy is None:
            self._kept.copy = secrets.token_hex(8)
            self._kept.write()
        owner = _read_owner(self.place)
        if not is_first and owner is not None and owner["copy"] != self._kept.copy:
            self._is_overtaken = True
            raise RunDirectoryInUse(
                f"{self.place} was taken over by process {owner['pid']} on {owner['host']}; what is trained here goes "
                f"on in {self._run_dir} only"
            )
        _write_owner(self.place, self._kept.copy, is_released=is_released)


class _Kept:
    """What the working copy knows of the place (``.remote.json``): its own word ``copy``, and what it has sent.

    directories: name → stamp, files: name → stamp.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / _KEPT
        try:
            known = json.loads(self._path.read_text())
        except (OSError, ValueError):
            known = {}
        self.copy: str | None = known.get("copy")
        self.directories: dict[str, int] = known.get("directories", {})
        self.files: dict[str, Stamp] = known.get("files", {})

    def write(self) -> None:
        known = {"copy": self.copy, "directories": self.directories, "files": self.files}
        fs.atomic_write_text(self._path, json.dumps(known))


def _fetch(run_dir: Path, place: str) -> list[str]:
    notes = []
    with opened(place) as (store, root):
        names = {name: size for name, size in listed(store, root).items() if not name.startswith(".")}
    if not names:
        return []
    if run_dir.exists() and any(not entry.name.startswith(".") for entry in run_dir.iterdir()):
        aside = run_dir.with_name(f"{run_dir.name}.before_{time.strftime('%Y%m%d_%H%M%S')}_{secrets.token_hex(2)}")
        lock = fs.RunLock.acquire(run_dir)
        fs.rename(run_dir, aside)
        lock.release()
        notes.append(f"another machine has continued this run: the copy here is kept as {aside}")
    directories = [name for name in stored_directories.complete(names) if name]
    kept = _Kept(run_dir)
    damaged = []
    for name in directories:
        try:
            stored_directories.pull(inside(place, name), run_dir / name)
            kept.directories[name] = (run_dir / name / MANIFEST).stat().st_mtime_ns
        except CheckpointError as error:
            damaged.append(str(error))
            notes.append(f"a damaged checkpoint is passed over: {error}")
    if directories and not kept.directories:
        raise CheckpointError(
            f"all {len(directories)} checkpoints in {place} are damaged ({damaged[0]}). Restore one from a backup, or "
            "start afresh with --new or under another name"
        )
    with opened(place) as (store, root):
        for name in names:
            is_wanted = not name.startswith(UPLOAD_ONLY) and "checkpoints/" not in name
            if is_wanted and not any(name.startswith(f"{one}/") for one in directories):
                download(store, root, name, run_dir / name)
                kept.files[name] = _stamp(run_dir / name)
    kept.copy = secrets.token_hex(8)
    kept.write()
    _write_owner(place, kept.copy)
    count = len(kept.directories)
    notes.append(f"fetched from {place}: {count} checkpoint(s), {len(kept.files)} other file(s)")
    return notes


def _refuse_living(owner: dict[str, Any], place: str) -> None:
    silent_s = time.time() - owner["renewed"]
    is_here = owner["host"] == socket.gethostname()
    if owner["is_released"] or silent_s > LEASE_S or (is_here and not fs.is_alive(owner["pid"])):
        return
    raise RunDirectoryInUse(
        f"{place} is in use by process {owner['pid']} on {owner['host']}, heard of {silent_s:.0f} s ago; stop it, "
        f"or wait until it has been silent for {LEASE_S:.0f} s, or choose another run name"
    )


def _read_owner(place: str) -> dict[str, Any] | None:
    try:
        owner = json.loads(read_bytes(inside(place, _OWNER)))
        return {name: owner[name] for name in ("copy", "host", "pid", "renewed", "is_released")}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _write_owner(place: str, copy: str, *, is_released: bool = False) -> None:
    owner = {
        "copy": copy,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "renewed": time.time(),
        "is_released": is_released,
    }
    write_bytes(inside(place, _OWNER), json.dumps(owner).encode())


def _files(directory: Path) -> list[Path]:
    return [
        path
        for path in sorted(directory.rglob("*"))
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(directory).parts)
        and not path.name.endswith(_WRITE_AHEAD)
    ]


def _stamp(path: Path) -> Stamp:
    """Changes whenever the content does; a database is also its write-ahead log."""
    stats = [path.stat()]
    log = path.with_name(path.name + "-wal")
    if path.suffix == ".sqlite" and log.exists():
        stats.append(log.stat())
    return [number for one in stats for number in (one.st_mtime_ns, one.st_size)]


def _content(path: Path) -> bytes:
    """Of a database, one consistent state, whoever writes meanwhile."""
    if path.suffix != ".sqlite":
        return path.read_bytes()
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5.0)) as source:
        try:
            return source.serialize()
        except sqlite3.Error as error:
            raise OSError(f"{path} cannot be read: {error}") from error


def _manifests_last(name: str) -> bool:
    return name.rpartition("/")[2] == MANIFEST
