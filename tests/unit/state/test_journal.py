import resource
import socket
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metta_ray.common.errors import JournalError
from metta_ray.common.util import fs
from metta_ray.state.journal import Journal, read_records

RECORDS: list[dict[str, Any]] = [{"kind": "issue", "ticket": 1}, {"kind": "note", "text": "größer\r\n\n"}, {"n": [1.5]}]


class Crash(BaseException):
    """The process dies here."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "journal"


@pytest.fixture(autouse=True)
def _no_hook_is_left() -> Iterator[None]:
    yield
    fs.io_hook = None


def written(path: Path, records: list[dict[str, Any]] = RECORDS) -> bytes:
    with Journal.open(path)[0] as journal:
        for record in records:
            journal.append(record)
    return path.read_bytes()


def reopened(path: Path) -> tuple[int, list[dict[str, Any]]]:
    journal, records = Journal.open(path)
    journal.close()
    return journal.cut_off_bytes, records


@contextmanager
def disk_of(size_bytes: int) -> Iterator[None]:
    """The kernel refuses to let any file of this process grow beyond ``size_bytes``, after filling it up to there."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# --- reading and writing ---------------------------------------------------------------------------------


def test_a_new_journal_is_empty_and_makes_its_directory(path: Path):
    assert reopened(path) == (0, [])
    assert path.exists()


def test_records_come_back_in_order(path: Path):
    written(path)

    assert reopened(path) == (0, RECORDS)
    assert read_records(path) == RECORDS


def test_a_line_is_the_checksum_of_its_json_and_the_json(path: Path):
    data = written(path, [{"a": 1}])

    assert data == b'%08x {"a":1}\n' % zlib.crc32(b'{"a":1}')


def test_a_record_is_in_the_file_before_append_returns(path: Path):
    journal, _ = Journal.open(path)

    journal.append({"n": 1})
    assert read_records(path) == [{"n": 1}]
    journal.append({"n": 2}, sync=True)
    assert read_records(path) == [{"n": 1}, {"n": 2}]
    assert journal.size_bytes == path.stat().st_size


def test_a_reopened_journal_goes_on_at_the_end(path: Path):
    written(path, [{"n": 1}])
    written(path, [{"n": 2}])

    assert read_records(path) == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize("record", [{"x": float("nan")}, {"x": b"bytes"}, {"x": {1, 2}}])
def test_what_is_not_json_is_refused_and_not_written(path: Path, record: dict[str, Any]):
    journal, _ = Journal.open(path)

    with pytest.raises(JournalError, match="JSON"):
        journal.append(record)

    assert path.read_bytes() == b""


def test_a_missing_journal_cannot_be_read_only(path: Path):
    with pytest.raises(JournalError, match=str(path)):
        read_records(path)


def test_a_directory_is_no_journal(tmp_path: Path):
    with pytest.raises(JournalError, match=str(tmp_path)):
        Journal.open(tmp_path)


def test_a_closed_journal_takes_nothing(path: Path):
    journal, _ = Journal.open(path)
    journal.close()
    journal.close()

    with pytest.raises(JournalError, match="closed"):
        journal.append({})
    with pytest.raises(JournalError, match="closed"):
        journal.compact({})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(st.dictionaries(st.text(), json_values, max_size=3), max_size=5))
def test_any_json_comes_back(tmp_path: Path, records: list[dict[str, Any]]):
    path = tmp_path / "any"
    path.unlink(missing_ok=True)
    written(path, records)

    assert reopened(path) == (0, records)


# --- damage ----------------------------------------------------------------------------------------------


def test_every_truncation_gives_the_records_that_were_whole(path: Path):
    data = written(path)
    ends = [index + 1 for index, byte in enumerate(data) if byte == ord("\n")]

    for length in range(len(data)):
        path.write_bytes(data[:length])
        whole = sum(end <= length for end in ends)
        torn_bytes = length - ([0, *ends][whole])

        assert read_records(path) == RECORDS[:whole]
        assert reopened(path) == (torn_bytes, RECORDS[:whole])
        assert path.stat().st_size == length - torn_bytes, "the torn line is gone from the file"
        written(path, [{"after": length}])
        assert reopened(path) == (0, [*RECORDS[:whole], {"after": length}])


def test_every_flipped_bit_of_the_last_record_cuts_it_off(path: Path):
    data = written(path)
    start = data[:-1].rindex(b"\n") + 1

    for index in range(start, len(data)):
        for bit in range(8):
            path.write_bytes(data[:index] + bytes([data[index] ^ 1 << bit]) + data[index + 1 :])
            assert reopened(path) == (len(data) - start, RECORDS[:-1])


def test_every_flipped_bit_before_it_is_an_error_that_changes_nothing(path: Path):
    data = written(path)
    # A lost newline joins a record to the next: with the last one that looks like a torn tail, see below.
    first_line, second_newline = data.index(b"\n"), data[:-1].rindex(b"\n")

    for index in range(second_newline):
        damaged = data[:index] + bytes([data[index] ^ 0x10]) + data[index + 1 :]
        path.write_bytes(damaged)

        line = 1 if index <= first_line else 2
        with pytest.raises(JournalError, match=f"damaged in line {line}"):
            Journal.open(path)
        with pytest.raises(JournalError, match=f"damaged in line {line}"):
            read_records(path)
        assert path.read_bytes() == damaged


def test_a_tail_of_zeros_is_cut_off(path: Path):
    data = written(path)
    path.write_bytes(data + bytes(4096))

    assert reopened(path) == (4096, RECORDS)


def test_json_that_is_no_record_is_damage(path: Path):
    text = b"[1]"
    path.parent.mkdir()
    path.write_bytes(b"%08x %s\n" % (zlib.crc32(text), text))

    assert reopened(path)[1] == []


# --- a full disk -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 1, 20])
def test_a_full_disk_is_named_and_leaves_whole_records(path: Path, room: int):
    written(path, [{"n": 1}])
    journal, _ = Journal.open(path)
    size = path.stat().st_size

    with disk_of(size + room), pytest.raises(JournalError, match=f"{path} cannot be written: .*File too large"):
        journal.append({"n": 2, "text": "longer than the room that is left"})

    assert path.stat().st_size == journal.size_bytes == size
    journal.append({"n": 3})
    assert read_records(path) == [{"n": 1}, {"n": 3}]


def test_a_torn_record_that_cannot_be_removed_at_once_is_removed_before_the_next(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    written(path, [{"n": 1}])
    journal, _ = Journal.open(path)

    def cannot(*_: object) -> None:
        raise OSError("input/output error")

    monkeypatch.setattr("os.ftruncate", cannot)
    with disk_of(path.stat().st_size + 5), pytest.raises(JournalError, match="cannot be written"):
        journal.append({"n": 2})
    with pytest.raises(JournalError, match="input/output error"):
        journal.append({"n": 3})
    assert path.stat().st_size == journal.size_bytes + 5
    monkeypatch.undo()

    journal.append({"n": 4})
    assert read_records(path) == [{"n": 1}, {"n": 4}]


@pytest.mark.parametrize("is_full", [True, False])
def test_a_compaction_of_a_torn_journal_is_whole_whether_it_succeeds_or_not(
    path: Path, monkeypatch: pytest.MonkeyPatch, is_full: bool
):
    written(path, [{"n": 1}])
    journal, _ = Journal.open(path)

    def cannot(*_: object) -> None:
        raise OSError("input/output error")

    monkeypatch.setattr("os.ftruncate", cannot)
    with disk_of(path.stat().st_size + 5), pytest.raises(JournalError):
        journal.append({"n": 2})
    monkeypatch.undo()

    if is_full:
        with disk_of(10), pytest.raises(JournalError, match="cannot be compacted"):
            journal.compact({"version": 3})
    else:
        journal.compact({"version": 3})
    journal.append({"n": 4})

    assert read_records(path) == [{"n": 1} if is_full else {"version": 3, "kind": "snapshot"}, {"n": 4}]
    assert journal.size_bytes == path.stat().st_size


def test_a_journal_that_somebody_removed_is_an_error_when_it_is_compacted(path: Path):
    journal, _ = Journal.open(path)
    path.unlink()
    path.parent.rmdir()
    path.parent.write_text("no directory any more")

    with pytest.raises(JournalError, match=str(path)):
        journal.compact({})


def test_a_record_that_could_not_be_synced_is_not_there(path: Path, monkeypatch: pytest.MonkeyPatch):
    journal, _ = Journal.open(path)
    journal.append({"n": 1})

    def cannot(*_: object) -> None:
        raise OSError("input/output error")

    monkeypatch.setattr("os.fsync", cannot)
    with pytest.raises(JournalError, match="cannot be written"):
        journal.append({"n": 2}, sync=True)

    assert read_records(path) == [{"n": 1}]


def test_a_full_disk_while_compacting_leaves_the_old_journal_in_use(path: Path):
    written(path)
    journal, _ = Journal.open(path)

    with disk_of(10), pytest.raises(JournalError, match="cannot be compacted"):
        journal.compact({"state": "too long for the disk"})

    journal.append({"n": 3})
    assert read_records(path) == [*RECORDS, {"n": 3}]
    assert [entry.name for entry in path.parent.iterdir()] == ["journal"]


# --- compaction ------------------------------------------------------------------------------------------


def test_a_snapshot_takes_the_place_of_everything_and_the_journal_goes_on_after_it(path: Path):
    journal, _ = Journal.open(path)
    journal.append({"n": 1})

    journal.compact({"ledger": {"version": 3}})
    journal.append({"n": 2})

    assert journal.size_bytes == path.stat().st_size
    assert reopened(path) == (0, [{"ledger": {"version": 3}, "kind": "snapshot"}, {"n": 2}])


def test_a_crash_anywhere_in_a_compaction_leaves_the_old_or_the_new_journal(path: Path):
    snapshot = {"kind": "snapshot", "version": 3}
    outcomes = []
    for operations in range(1, 100):
        path.unlink(missing_ok=True)
        written(path)
        journal, _ = Journal.open(path)
        done: list[str] = []

        def die(operation: str, _: Path, done: list[str] = done, last: int = operations) -> None:
            done.append(operation)
            if len(done) == last:
                raise Crash

        fs.io_hook = die
        try:
            journal.compact({"version": 3})
        except Crash:
            fs.io_hook = None
            cut_off, records = reopened(path)
            assert cut_off == 0
            assert records in (RECORDS, [snapshot])
            outcomes.append(records)
            continue
        break

    assert RECORDS in outcomes
    assert [snapshot] in outcomes
    assert done == ["write", "fsync", "rename", "fsync_dir"]


def test_a_failure_after_the_rename_goes_on_in_the_new_file(path: Path):
    journal, _ = Journal.open(path)
    journal.append({"n": 1})

    def fail(operation: str, _: Path) -> None:
        if operation == "rename":
            raise OSError("input/output error")

    fs.io_hook = fail
    with pytest.raises(JournalError, match="cannot be compacted"):
        journal.compact({"version": 3})
    fs.io_hook = None
    journal.append({"n": 2})

    assert read_records(path) == [{"version": 3, "kind": "snapshot"}, {"n": 2}]


def test_a_journal_that_could_not_be_opened_after_a_compaction_is_opened_by_the_next_append(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    journal, _ = Journal.open(path)

    def cannot(_: Path) -> int:
        raise OSError("too many open files")

    monkeypatch.setattr("metta_ray.state.journal._open_for_append", cannot)
    with pytest.raises(JournalError, match="too many open files"):
        journal.compact({"version": 3})
    with pytest.raises(JournalError, match="too many open files"):
        journal.append({"n": 1})
    monkeypatch.undo()

    journal.append({"n": 2})
    assert read_records(path) == [{"version": 3, "kind": "snapshot"}, {"n": 2}]


def test_what_a_dead_compaction_left_is_removed_at_the_next_start(path: Path):
    written(path)
    left = path.parent / f".journal.tmp-{socket.gethostname()}-999999999-abcd1234-00000000"
    left.write_bytes(b"half")

    reopened(path)

    assert not left.exists()
