"""What is particular about the store in a file; see test_store_contract for what all stores do."""

import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from metta_ray.common.errors import ConfigError, StateStoreError
from metta_ray.state.open_store import open_store
from metta_ray.state.records import RunRecord
from metta_ray.state.sqlite_store import SCHEMA_VERSION, SqliteStore

RUN = RunRecord(name="a", run_dir="/data/a", state="running", generation=1, started=1.0, updated=2.0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    opened = SqliteStore(tmp_path / "data" / "runs.sqlite")
    yield opened
    opened.close()


# --- the file --------------------------------------------------------------------------------------------


def test_it_is_a_write_ahead_log(store: SqliteStore):
    with sqlite3.connect(store.path) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)


@pytest.mark.parametrize("prepare", ["PRAGMA user_version = 7", "CREATE TABLE runs (name TEXT)"])
def test_a_file_of_another_version_or_program_is_refused_and_left_alone(tmp_path: Path, prepare: str):
    path = tmp_path / "runs.sqlite"
    with sqlite3.connect(path) as db:
        db.execute(prepare)

    with pytest.raises(StateStoreError, match=rf"{path} has schema version \d, this metta_ray knows 1"):
        SqliteStore(path)

    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'events'").fetchone() == (0,)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path):
    path = tmp_path / "runs.sqlite"
    path.write_text("these are notes about runs, not a database of them" * 100)

    with pytest.raises(StateStoreError, match=f"{path} cannot be used: file is not a database"):
        SqliteStore(path)


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").touch()

    with pytest.raises(StateStoreError, match="cannot be used"):
        SqliteStore(tmp_path / "file" / "runs.sqlite")


def test_a_writer_that_holds_the_file_for_too_long_is_an_error_and_readers_go_on(tmp_path: Path):
    path = tmp_path / "runs.sqlite"
    store = SqliteStore(path, busy_timeout_s=0.05)
    store.put_run(RUN)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(StateStoreError, match="locked"):
        store.put_run(replace(RUN, agent_step=1))
    assert store.get_run("a") == RUN

    other.execute("ROLLBACK")
    other.close()
    assert store.put_run(replace(RUN, agent_step=1))


def test_many_may_create_one_file_at_the_same_moment(tmp_path: Path):
    errors: list[StateStoreError] = []
    for attempt in range(10):
        start = threading.Barrier(6)

        def create(path: Path = tmp_path / f"{attempt}.sqlite", start: threading.Barrier = start) -> None:
            start.wait()
            try:
                SqliteStore(path).close()
            except StateStoreError as error:
                errors.append(error)

        threads = [threading.Thread(target=create) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert errors == []


# --- URLs ------------------------------------------------------------------------------------------------


def test_a_url_with_four_slashes_is_an_absolute_path(tmp_path: Path):
    store = open_store(f"sqlite:///{tmp_path}/runs.sqlite")

    store.put_run(RUN)
    assert SqliteStore(tmp_path / "runs.sqlite").get_run("a") == RUN


def test_a_url_with_three_slashes_is_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    open_store("sqlite:///here/runs.sqlite")

    assert (tmp_path / "here" / "runs.sqlite").exists()


@pytest.mark.parametrize("url", ["", "runs.sqlite", "sqlite:///", "sqlite://x", "postgres://me:secret@host/db"])
def test_other_urls_are_refused_with_what_is_known_and_without_secrets(url: str):
    with pytest.raises(ConfigError, match="known is sqlite:///path") as error:
        open_store(url)

    assert "secret" not in str(error.value)
