import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from metta_ray.common.errors import RunDirectoryInUse
from metta_ray.common.util import fs


class Crash(BaseException):
    """The process dies here: nothing may clean up after it."""


@pytest.fixture(autouse=True)
def _no_hook_is_left() -> Iterator[None]:
    yield
    fs.io_hook = None


def crash_after(operations: int) -> list[tuple[str, Path]]:
    """Stops the world after so many operations; the list fills with what was done."""
    done: list[tuple[str, Path]] = []

    def hook(operation: str, path: Path) -> None:
        done.append((operation, path))
        if len(done) == operations:
            raise Crash

    fs.io_hook = hook
    return done


def every_crash_point(write: Callable[[], None], check: Callable[[bool], None]) -> int:
    """Runs ``write`` with a crash after each of its operations; ``check(finished)`` after each run."""
    for operations in range(1, 1000):
        crash_after(operations)
        try:
            write()
        except Crash:
            fs.io_hook = None
            check(False)
            continue
        fs.io_hook = None
        check(True)
        return operations
    raise AssertionError("the write never finished")


def write_two_files(target: Path) -> None:
    with fs.atomic_directory(target) as directory:
        fs.write_file(directory / "a", b"aa")
        fs.make_directories(directory / "deep")
        fs.write_file(directory / "deep" / "b", b"bb")


def test_a_directory_is_complete_or_absent_at_every_crash_point(tmp_path: Path):
    number = iter(range(1000))
    target = tmp_path

    def write() -> None:
        nonlocal target
        target = tmp_path / f"runs{next(number)}" / "checkpoint"
        write_two_files(target)

    def check(finished: bool) -> None:
        if target.exists():
            assert (target / "a").read_bytes() == b"aa"
            assert (target / "deep" / "b").read_bytes() == b"bb"
        else:
            assert not finished
            assert not [entry for entry in target.parent.iterdir() if not entry.name.startswith(".")]

    assert every_crash_point(write, check) > 10


def test_files_and_directories_are_synced_before_the_rename_and_the_parent_after(tmp_path: Path):
    done = crash_after(-1)

    write_two_files(tmp_path / "checkpoint")

    operations = [operation for operation, _ in done]
    rename = operations.index("rename")
    assert {path.name for operation, path in done[:rename] if operation == "fsync"} == {"a", "b"}
    assert operations[rename - 1] == "fsync_dir"
    assert done[rename + 1] == ("fsync_dir", tmp_path)


def test_a_file_is_old_or_new_at_every_crash_point(tmp_path: Path):
    path = tmp_path / "state"
    path.write_text("old")

    def check(finished: bool) -> None:
        assert path.read_text() in (("new",) if finished else ("old", "new"))
        path.write_text("old")

    every_crash_point(lambda: fs.atomic_write_text(path, "new"), check)


def test_an_error_while_writing_leaves_nothing(tmp_path: Path):
    with contextlib.suppress(ZeroDivisionError), fs.atomic_directory(tmp_path / "checkpoint") as directory:
        fs.write_file(directory / "a", b"")
        raise ZeroDivisionError

    assert list(tmp_path.iterdir()) == []


def test_an_existing_directory_is_replaced_only_when_asked(tmp_path: Path):
    target = tmp_path / "checkpoint"
    write_two_files(target)

    with pytest.raises(FileExistsError, match="exists already"):
        write_two_files(target)
    with fs.atomic_directory(target, replace=True) as directory:
        fs.write_file(directory / "c", b"")

    assert [entry.name for entry in target.iterdir()] == ["c"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]


def test_what_a_dead_writer_left_is_removed_and_a_living_one_is_left_alone(tmp_path: Path):
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    host = os.uname().nodename
    stale = tmp_path / f".checkpoint.tmp-{host}-{dead.stdout.strip()}-0123abcd-0"
    earlier_life = tmp_path / f".checkpoint.tmp-{host}-{os.getpid()}-other-0"
    living = tmp_path / f".checkpoint.tmp-{host}-{os.getppid()}-0123abcd-0"
    elsewhere = tmp_path / ".checkpoint.tmp-another-host-7-0123abcd-0"
    for directory in (stale, earlier_life, living, elsewhere):
        directory.mkdir()

    write_two_files(tmp_path / "checkpoint")

    assert {entry.name for entry in tmp_path.iterdir()} == {"checkpoint", living.name, elsewhere.name}


def test_removing_a_tree_takes_its_name_away_first(tmp_path: Path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").touch()
    crash_after(1)

    with pytest.raises(Crash):
        fs.remove_tree(tmp_path / "old")

    assert not (tmp_path / "old").exists()


def test_a_run_directory_in_use_is_refused_with_the_holder(tmp_path: Path):
    code = "import sys; from metta_ray.common.util.fs import RunLock; RunLock.acquire(sys.argv[1]); print('ok')"
    hold = code + "; sys.stdout.flush(); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "ok\n"
        with pytest.raises(RunDirectoryInUse, match=f"process {holder.pid} on "):
            fs.RunLock.acquire(tmp_path)
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()

    fs.RunLock.acquire(tmp_path).release()  # the lock went with its process


def test_a_lock_is_reentrant_in_its_process_and_can_be_taken_again_after_release(tmp_path: Path):
    lock = fs.RunLock.acquire(tmp_path)
    assert fs.RunLock.acquire(tmp_path / "." / "") is lock
    assert fs.RunLock.held(tmp_path) is lock

    lock.release()
    lock.release()

    assert fs.RunLock.held(tmp_path) is None
    fs.RunLock.acquire(tmp_path).release()


def test_a_forked_child_does_not_keep_its_parents_lock(tmp_path: Path):
    code = (
        "import os, sys, time; from metta_ray.common.util.fs import RunLock; RunLock.acquire(sys.argv[1]);"
        "pid = os.fork();"
        "print(pid, flush=True) if pid else None;"
        "os._exit(0) if pid else (os.close(1), time.sleep(30))"
    )
    parent = subprocess.run([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, check=True)
    try:
        fs.RunLock.acquire(tmp_path).release()
    finally:
        os.kill(int(parent.stdout), 9)


def test_sha256_of_a_file(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"abc")
    assert fs.sha256_file(tmp_path / "file").startswith("ba7816bf8f01cfea")


def test_a_file_that_is_not_to_be_replaced_is_whole_or_absent_and_then_stays(tmp_path: Path):
    path = tmp_path / "answer"

    def check(finished: bool) -> None:
        assert path.read_text() == "first" if path.exists() else not finished
        path.unlink(missing_ok=True)

    every_crash_point(lambda: fs.atomic_write_text(path, "first", replace=False), check)

    fs.io_hook = None
    fs.atomic_write_text(path, "first", replace=False)
    fs.remove_stale_temporaries(tmp_path)
    names = sorted(entry.name for entry in tmp_path.iterdir())
    with pytest.raises(FileExistsError):
        fs.atomic_write_text(path, "second", replace=False)
    assert path.read_text() == "first"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == names
