import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from metta_ray.common.errors import ConfigError, StateStoreError
from metta_ray.state.base import MAX_EVENTS_PER_RUN
from metta_ray.state.open_store import open_store
from metta_ray.state.records import EventRecord, RunRecord
from metta_ray.state.sqlite_store import SCHEMA_VERSION, SqliteStore

RUN = RunRecord(name="a", run_dir="/data/a", state="running", generation=1, started=1.0, updated=2.0)


def event(number: int, run: str = "a") -> EventRecord:
    return EventRecord(run, float(number), "note", f"event {number}")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    opened = SqliteStore(tmp_path / "data" / "runs.sqlite")
    yield opened
    opened.close()


# --- runs ------------------------------------------------------------------------------------------------


def test_an_unknown_run_is_none(store: SqliteStore):
    assert store.get_run("a") is None
    assert store.list_runs() == []


def test_a_run_comes_back_as_it_was_last_put(store: SqliteStore):
    store.put_run(RUN)
    changed = replace(RUN, agent_step=64, reward=0.5, config={"trainer": {"seed": 3}}, updated=3.0)

    assert store.put_run(changed)
    assert store.get_run("a") == changed


def test_runs_are_listed_last_updated_first(store: SqliteStore):
    for name, updated in (("a", 2.0), ("b", 5.0), ("c", 1.0)):
        store.put_run(replace(RUN, name=name, updated=updated))

    assert [run.name for run in store.list_runs()] == ["b", "a", "c"]


def test_a_writer_that_has_been_replaced_is_told_and_changes_nothing(store: SqliteStore):
    newer = replace(RUN, generation=2, state="starting")
    assert store.put_run(newer)

    assert not store.put_run(replace(RUN, generation=1, state="failed", updated=99.0))

    assert store.get_run("a") == newer


def test_the_next_start_sees_what_the_last_one_left(store: SqliteStore):
    store.put_run(RUN)
    store.add_event(event(1))
    store.close()
    store.close()

    again = SqliteStore(store.path)

    assert again.get_run("a") == RUN
    assert again.events("a") == [event(1)]


# --- events ----------------------------------------------------------------------------------------------


def test_the_last_events_come_in_the_order_they_were_added(store: SqliteStore):
    for number in (3, 1, 2):
        store.add_event(event(number))
    store.add_event(event(9, run="b"))

    assert store.events("a") == [event(3), event(1), event(2)]
    assert store.events("a", limit=2) == [event(1), event(2)]
    assert store.events("a", limit=0) == store.events("a", limit=-1) == store.events("c") == []


def test_old_events_go_when_there_are_too_many(store: SqliteStore, monkeypatch: pytest.MonkeyPatch):
    assert MAX_EVENTS_PER_RUN == 1000
    monkeypatch.setattr("metta_ray.state.sqlite_store.MAX_EVENTS_PER_RUN", 5)
    store.add_event(event(0, run="b"))
    for number in range(8):
        store.add_event(event(number))

    assert store.events("a", limit=100) == [event(number) for number in range(3, 8)]
    assert store.events("b") == [event(0, run="b")], "those of other runs stay"


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


def test_a_closed_store_says_so(store: SqliteStore):
    store.close()

    with pytest.raises(StateStoreError, match="closed"):
        store.list_runs()


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


def test_threads_may_share_a_store(store: SqliteStore):
    def write(first: int) -> None:
        for number in range(first, first + 25):
            store.add_event(event(number))
            store.put_run(replace(RUN, name=f"run-{number}"))

    threads = [threading.Thread(target=write, args=(100 * index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(store.events("a", limit=1000)) == len(store.list_runs()) == 100


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


WRITER = """
import sys
from metta_ray.state.records import EventRecord
from metta_ray.state.sqlite_store import SqliteStore

sys.stdin.readline()
store = SqliteStore(sys.argv[1])
for number in range(20):
    store.add_event(EventRecord("a", float(number), "note", sys.argv[2]))
"""


def test_processes_may_create_and_fill_one_file_at_the_same_time(tmp_path: Path):
    path = tmp_path / "runs.sqlite"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(number)], stdin=subprocess.PIPE, text=True)
        for number in range(3)
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=60)

    assert [writer.returncode for writer in writers] == [0, 0, 0]
    texts = [entry.text for entry in SqliteStore(path).events("a", limit=1000)]
    assert sorted(texts) == sorted(["0", "1", "2"] * 20)


# --- any use ---------------------------------------------------------------------------------------------


class AnyUse(RuleBasedStateMachine):
    """Two connections to one store see the same as a dictionary and lists would."""

    names = st.sampled_from(["a", "b", "größe", "'; DROP TABLE runs; --"])
    path: Path

    def __init__(self) -> None:
        super().__init__()
        self.path.unlink(missing_ok=True)
        self.stores = [SqliteStore(self.path), SqliteStore(self.path)]
        self.runs: dict[str, RunRecord] = {}
        self.told: dict[str, list[EventRecord]] = {}

    @rule(which=st.integers(0, 1), name=names, generation=st.integers(0, 3), step=st.integers(0, 2**40))
    def put(self, which: int, name: str, generation: int, step: int) -> None:
        record = replace(RUN, name=name, generation=generation, agent_step=step)
        newest = self.runs.get(name)
        is_newest = newest is None or generation >= newest.generation
        assert self.stores[which].put_run(record) == is_newest
        if is_newest:
            self.runs[name] = record

    @rule(which=st.integers(0, 1), name=names, text=st.text(st.characters(exclude_categories=["Cs"])))
    def tell(self, which: int, name: str, text: str) -> None:
        record = EventRecord(name, 1.0, "note", text)
        self.stores[which].add_event(record)
        self.told.setdefault(name, []).append(record)

    @rule(which=st.integers(0, 1), name=names, limit=st.integers(1, 5))
    def look(self, which: int, name: str, limit: int) -> None:
        store = self.stores[which]
        assert store.get_run(name) == self.runs.get(name)
        assert sorted(store.list_runs(), key=lambda run: run.name) == [self.runs[key] for key in sorted(self.runs)]
        assert store.events(name, limit) == self.told.get(name, [])[-limit:]

    def teardown(self) -> None:
        for store in self.stores:
            store.close()


def test_any_use_gives_what_was_put(tmp_path: Path):
    AnyUse.path = tmp_path / "runs.sqlite"
    run_state_machine_as_test(AnyUse, settings=settings(max_examples=15, stateful_step_count=20, deadline=None))


# --- URLs ------------------------------------------------------------------------------------------------


def test_a_url_with_four_slashes_is_an_absolute_path(tmp_path: Path):
    store = open_store(f"sqlite:///{tmp_path}/runs.sqlite")

    store.put_run(RUN)
    assert SqliteStore(tmp_path / "runs.sqlite").get_run("a") == RUN


def test_a_url_with_three_slashes_is_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    open_store("sqlite:///here/runs.sqlite")

    assert (tmp_path / "here" / "runs.sqlite").exists()


def test_redis_is_announced():
    with pytest.raises(ConfigError, match="later version") as error:
        open_store("redis://:secret@localhost:6379")

    assert "secret" not in str(error.value)


@pytest.mark.parametrize("url", ["", "runs.sqlite", "sqlite:///", "sqlite://x", "postgres://me:secret@host/db"])
def test_other_urls_are_refused_with_what_is_known_and_without_secrets(url: str):
    with pytest.raises(ConfigError, match="known is sqlite:///path") as error:
        open_store(url)

    assert "secret" not in str(error.value)
