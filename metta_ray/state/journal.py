"""The journal of one run: an append-only file of JSON records that outlives any death of its writer.

One record per line, ``crc32 json\\n``. A process that dies leaves at most one unfinished line, which the next
``open`` cuts off. Records appended with ``sync`` outlive the machine too, with all records before them. Damage
that good records follow is none that a crash leaves: it is an error, not something to repair silently.

Written by one process at a time (the holder of the run directory's lock), read by any.
"""

from __future__ import annotations

import io
import json
import os
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from metta_ray.common.errors import JournalError
from metta_ray.common.util import fs

Record = dict[str, Any]

SNAPSHOT = "snapshot"
"""The ``kind`` of a record that takes the place of all records before it."""


class Journal:
    """An open journal. Made by ``Journal.open``; closing it is never needed for what was appended to survive."""

    def __init__(self, path: Path, descriptor: int, cut_off_bytes: int = 0) -> None:
        self.path = path
        self.cut_off_bytes = cut_off_bytes
        """Bytes of a damaged tail that opening removed; 0 after a clean end."""
        self._descriptor: int | None = descriptor
        self._size = os.fstat(descriptor).st_size
        self._is_torn = False
        self._is_closed = False

    @classmethod
    def open(cls, path: Path | str) -> tuple[Self, list[Record]]:
        """The journal, ready to go on, and the records in it; a new one where there is none.

        Raises JournalError if a damaged record is followed by a good one, or if the file cannot be opened.
        """
        path = Path(path)
        try:
            fs.make_directories(path.parent)
            fs.remove_stale_temporaries(path.parent)  # of a compaction that died
            content = _parse(path.read_bytes() if path.exists() else b"", path)
            if content.tail_bytes:
                os.truncate(path, content.good_bytes)
            descriptor = _open_for_append(path)
            os.fsync(descriptor)
            fs.sync_directory(path.parent)
        except OSError as error:
            raise JournalError(f"journal {path} cannot be opened: {error}") from error
        return cls(path, descriptor, content.tail_bytes), content.records

    @property
    def size_bytes(self) -> int:
        return self._size

    def append(self, record: Mapping[str, Any], sync: bool = False) -> None:
        """Adds one record: it outlives this process, and with ``sync`` the machine.

        JournalError if it is not JSON, or if the disk does not take it (full, say). Then the file ends with the
        last whole record, and appending can be tried again.
        """
        line = _encode(record)
        descriptor = self._writable()
        try:
            self._mend()
            _write_all(descriptor, line)
            if sync:
                os.fsync(descriptor)
        except OSError as error:
            self._is_torn = True
            with suppress(OSError):  # where even that fails, the next append tries it first
                self._mend()
            raise JournalError(f"journal {self.path} cannot be written: {error}; free space and try again") from error
        self._size += len(line)

    def compact(self, snapshot: Mapping[str, Any]) -> None:
        """Puts ``snapshot``, as one record of kind "snapshot", in the place of everything; goes on after it.

        A crash leaves the old or the new journal, each complete, and so does a failure (JournalError).
        """
        line = _encode({**snapshot, "kind": SNAPSHOT})
        self._writable()
        try:
            fs.atomic_write_bytes(self.path, line)
        except OSError as error:
            raise JournalError(f"journal {self.path} cannot be compacted: {error}") from error
        finally:
            self._follow_the_name()

    def close(self) -> None:
        """Safe to call twice."""
        self._is_closed = True
        self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _writable(self) -> int:
        if self._is_closed:
            raise JournalError(f"journal {self.path} is closed; open it again")
        return self._reopen() if self._descriptor is None else self._descriptor

    def _mend(self) -> None:
        """Removes what was written of a record that did not fit: nothing may be appended behind it."""
        if self._is_torn:
            os.ftruncate(self._writable(), self._size)
            self._is_torn = False

    def _follow_the_name(self) -> None:
        """Goes on in the file that has the journal's name now: a compaction may fail before or after its rename."""
        try:
            is_ours = os.path.samestat(os.fstat(self._writable()), os.stat(self.path))
        except OSError as error:
            raise JournalError(f"journal {self.path} cannot be found any more: {error}") from error
        if not is_ours:
            self._reopen()

    def _reopen(self) -> int:
        self._let_go()
        try:
            self._descriptor = _open_for_append(self.path)
        except OSError as error:
            raise JournalError(f"journal {self.path} cannot be opened: {error}") from error
        self._size = os.fstat(self._descriptor).st_size
        self._is_torn = False
        return self._descriptor

    def _let_go(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def read_records(path: Path | str) -> list[Record]:
    """The records of a journal that another process may be writing: a line not yet finished is left out.

    JournalError if there is no such file, or if it is damaged before its end.
    """
    path = Path(path)
    try:
        return _parse(path.read_bytes(), path).records
    except OSError as error:
        raise JournalError(f"journal {path} cannot be read: {error}") from error


# --- lines -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Content:
    records: list[Record]
    good_bytes: int
    tail_bytes: int


def _encode(record: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(record, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise JournalError(f"a journal keeps JSON values only: {error} in {record!r}") from error
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _decode(line: bytes) -> Record | None:
    """None for a line that is damaged or not finished."""
    checksum, _, text = line[:-1].partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
        return None
    try:
        record = json.loads(text)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _parse(data: bytes, path: Path) -> _Content:
    lines = list(io.BytesIO(data))  # unlike bytes.splitlines, only at newlines
    decoded = [_decode(line) for line in lines]
    good = next((number for number, record in enumerate(decoded) if record is None), len(decoded))
    if any(record is not None for record in decoded[good:]):
        raise JournalError(
            f"journal {path} is damaged in line {good + 1}, and good records follow: no crash leaves that. "
            "Keep a copy of the file; to go on from the last checkpoint, move it away"
        )
    good_bytes = sum(map(len, lines[:good]))
    return _Content([record for record in decoded[:good] if record is not None], good_bytes, len(data) - good_bytes)


# --- files -----------------------------------------------------------------------------------------------


def _open_for_append(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _write_all(descriptor: int, data: bytes) -> None:
    """A disk that fills up takes a part of the data first and fails only then."""
    remaining = memoryview(data)
    while remaining:
        remaining = remaining[os.write(descriptor, remaining) :]
