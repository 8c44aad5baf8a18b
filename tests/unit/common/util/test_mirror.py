"""A run's working copy and what is in the store: carried over, fetched, and never two writers."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from metta_ray.common.errors import CheckpointError, RunDirectoryInUse
from metta_ray.common.util import fs, mirror, places
from metta_ray.common.util.mirror import Mirror
from tests.unit.common.util.test_stored_directories import FlakyFileSystem, made

PLACE = "flaky://bucket/runs/one"


@pytest.fixture(autouse=True)
def _empty_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(mirror, "_LOOK_EVERY_S", 0.02)
    FlakyFileSystem.left, FlakyFileSystem.error = float("inf"), PermissionError
    empty_memory()  # other files' tests may have left something there
    yield
    FlakyFileSystem.left = float("inf")
    empty_memory()


def empty_memory() -> None:
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run of two checkpoints, with a live database."""
    run_dir = tmp_path / "here" / "one"
    made(run_dir / "checkpoints/model_0001", 1)
    made(run_dir / "checkpoints/model_0002", 2)
    (run_dir / "metrics.jsonl").write_text("1\n")
    (run_dir / "replays").mkdir()
    (run_dir / "replays/a.json.z").write_bytes(b"r")
    (run_dir / "stats").mkdir()
    with closing(sqlite3.connect(run_dir / "stats/evaluations.sqlite")) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE t (x)")
        database.execute("INSERT INTO t VALUES (7)")
        database.commit()
    return run_dir


def carried_over(run_dir: Path) -> Mirror:
    one = Mirror(run_dir, PLACE, retry_s=0.01).start()
    assert one.stop(deadline_s=20.0), one.facts()
    return one


def names() -> set[str]:
    with places.opened(PLACE) as (store, root):
        return set(places.listed(store, root))


def until(condition: Callable[[], object], what: object = "") -> None:
    deadline = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_another_machine_goes_on_with_all_that_was_carried_over(run_dir: Path, tmp_path: Path):
    facts = carried_over(run_dir).facts()
    assert (facts["uploaded"], facts["waiting"], facts["error"]) == ("checkpoints/model_0002", 0, None)

    there = tmp_path / "there" / "one"
    notes = mirror.claim(there, PLACE, is_fresh=False)

    assert notes == [f"fetched from {PLACE}: 2 checkpoint(s), 2 other file(s)"]
    for name in ("model_0001", "model_0002"):
        for file in (run_dir / "checkpoints" / name).iterdir():
            assert (there / "checkpoints" / name / file.name).read_bytes() == file.read_bytes()
    with closing(sqlite3.connect(there / "stats/evaluations.sqlite")) as database:
        assert database.execute("SELECT x FROM t").fetchall() == [(7,)]
    assert "replays/a.json.z" in names()
    assert not (there / "replays").exists(), "nobody needs those in order to go on"


def test_what_retention_deletes_here_is_deleted_there_and_what_came_later_is_kept(run_dir: Path):
    carried_over(run_dir)
    places.write_bytes(f"{PLACE}/checkpoints/model_0002/scores.json", b"{}")  # by an evaluation elsewhere
    fs.remove_tree(run_dir / "checkpoints/model_0001")

    carried_over(run_dir)

    assert not [name for name in names() if "model_0001" in name]
    assert "checkpoints/model_0002/scores.json" in names()


def test_a_working_copy_that_somebody_emptied_takes_nothing_away(run_dir: Path, tmp_path: Path):
    running = Mirror(run_dir, PLACE, period_s=0.05).start()
    until(lambda: running.facts()["uploaded"] and "metrics.jsonl" in names())
    (run_dir / "checkpoints").rename(tmp_path / "gone")

    assert running.stop(deadline_s=20.0)

    assert "checkpoints/model_0002/manifest.json" in names()


def test_a_store_that_is_away_is_told_and_tried_again_and_nothing_is_lost(run_dir: Path):
    FlakyFileSystem.left = 0
    one = Mirror(run_dir, PLACE, retry_s=0.01).start()
    until(lambda: one.facts()["failures"] >= 2 and one.facts()["behind_s"] > 0, one.facts())
    facts = one.facts()
    assert facts["waiting"] == 2
    assert "no more" in facts["error"]

    FlakyFileSystem.left = float("inf")

    assert one.stop(deadline_s=20.0)
    assert (one.facts()["failures"], one.facts()["error"], one.facts()["waiting"]) == (0, None, 0)
    assert one.facts()["seconds"] > 0
    assert one.facts()["all_failures"] >= 2
    assert "checkpoints/model_0002/manifest.json" in names()


def test_a_run_that_ends_while_the_store_is_away_is_uploaded_by_its_next_start(run_dir: Path):
    carried_over(run_dir)
    made(run_dir / "checkpoints/model_0003", 3)
    FlakyFileSystem.left = 0
    assert not Mirror(run_dir, PLACE, retry_s=0.01).start().stop(deadline_s=0.3)

    FlakyFileSystem.left = float("inf")
    assert mirror.claim(run_dir, PLACE, is_fresh=False) == [], "the copy here is ahead: nothing is fetched over it"
    carried_over(run_dir)

    assert "checkpoints/model_0003/manifest.json" in names()


def test_a_copy_that_is_behind_another_machine_is_set_aside(run_dir: Path, tmp_path: Path):
    carried_over(run_dir)
    there = tmp_path / "there" / "one"
    mirror.claim(there, PLACE, is_fresh=False)
    made(there / "checkpoints/model_0003", 3)
    carried_over(there)

    notes = mirror.claim(run_dir, PLACE, is_fresh=False)

    assert "another machine has continued this run" in notes[0]
    assert (run_dir / "checkpoints/model_0003").is_dir()
    assert len(list(run_dir.parent.glob("one.before_*"))) == 1


def owned_by_another_machine(age_s: float) -> None:
    owner = {"copy": "other", "host": "far", "pid": 1, "renewed": time.time() - age_s, "is_released": False}
    places.write_bytes(f"{PLACE}/.owner.json", json.dumps(owner).encode())


def test_a_run_that_another_machine_writes_is_refused_until_that_is_silent(run_dir: Path):
    owned_by_another_machine(age_s=30.0)
    with pytest.raises(RunDirectoryInUse, match=r"in use by process 1 on far, heard of 30 s ago; stop it"):
        mirror.claim(run_dir, PLACE, is_fresh=False)

    owned_by_another_machine(age_s=mirror.LEASE_S + 1)
    mirror.claim(run_dir, PLACE, is_fresh=False)


def test_a_writer_that_was_taken_over_writes_no_more_and_says_so(run_dir: Path):
    one = Mirror(run_dir, PLACE, period_s=0.05).start()
    until(lambda: one.facts()["uploaded"])
    owned_by_another_machine(age_s=0.0)

    made(run_dir / "checkpoints/model_0003", 3)

    until(lambda: "was taken over by process 1 on far" in str(one.facts()["error"]), one.facts())
    assert not one.stop(deadline_s=5.0)
    assert "checkpoints/model_0003/manifest.json" not in names()


def test_damaged_checkpoints_are_passed_over_by_name_unless_all_are(run_dir: Path, tmp_path: Path):
    carried_over(run_dir)
    places.write_bytes(f"{PLACE}/checkpoints/model_0002/trainer.json", b"{}")

    notes = mirror.claim(tmp_path / "there" / "one", PLACE, is_fresh=False)

    assert f"{PLACE}/checkpoints/model_0002/trainer.json is damaged" in notes[0]
    assert (tmp_path / "there/one/checkpoints/model_0001").is_dir()
    assert not (tmp_path / "there/one/checkpoints/model_0002").exists()
    places.write_bytes(f"{PLACE}/checkpoints/model_0001/trainer.json", b"{}")
    MemoryFileSystem.store.pop("/bucket/runs/one/.owner.json")
    owned_by_another_machine(age_s=mirror.LEASE_S + 1)
    with pytest.raises(CheckpointError, match=r"all 2 checkpoints in .* are damaged"):
        mirror.claim(tmp_path / "third" / "one", PLACE, is_fresh=False)


def test_a_run_set_aside_is_whole_under_its_new_name(run_dir: Path, tmp_path: Path):
    carried_over(run_dir)

    assert mirror.set_aside(PLACE, ".before_now") == f"{PLACE}.before_now"

    assert names() == set()
    notes = mirror.claim(tmp_path / "old", f"{PLACE}.before_now", is_fresh=False)
    assert notes == [f"fetched from {PLACE}.before_now: 2 checkpoint(s), 2 other file(s)"]
    assert mirror.set_aside(PLACE, ".before_now") is None
