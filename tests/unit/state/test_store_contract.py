"""What every store of run records promises, of whatever kind it is."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from metta_ray.common.errors import StateStoreError
from metta_ray.state.base import MAX_EVENTS_PER_RUN, StateStore
from metta_ray.state.open_store import open_store
from metta_ray.state.records import EventRecord, RunRecord
from tests.redis_server import RedisServer, redis_server

RUN = RunRecord(name="a", run_dir="/data/a", state="running", generation=1, started=1.0, updated=2.0)


def event(number: int, run: str = "a") -> EventRecord:
    return EventRecord(run, float(number), "note", f"event {number}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture(params=["sqlite", "redis"])
def fresh_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Each call names a store that nobody has used yet."""
    numbers = count()
    if request.param == "sqlite":
        return lambda: f"sqlite:///{tmp_path}/{next(numbers)}/runs.sqlite"
    port = request.getfixturevalue("server").port
    return lambda: f"redis://127.0.0.1:{port}?prefix={tmp_path}:{next(numbers)}"


@pytest.fixture
def url(fresh_url: Callable[[], str]) -> str:
    return fresh_url()


@pytest.fixture
def store(url: str) -> Iterator[StateStore]:
    opened = open_store(url)
    yield opened
    opened.close()


# --- runs ------------------------------------------------------------------------------------------------


def test_an_unknown_run_is_none(store: StateStore):
    assert store.get_run("a") is None
    assert store.list_runs() == []


def test_a_run_comes_back_as_it_was_last_put(store: StateStore):
    store.put_run(RUN)
    changed = replace(RUN, agent_step=64, reward=0.5, config={"trainer": {"seed": 3}}, updated=3.25)

    assert store.put_run(changed)
    assert store.get_run("a") == changed


def test_runs_are_listed_last_updated_first(store: StateStore):
    for name, updated in (("a", 2.0), ("b", 5.0), ("d", 1.0), ("c", 1.0)):
        store.put_run(replace(RUN, name=name, updated=updated))

    assert [run.name for run in store.list_runs()] == ["b", "a", "c", "d"]


def test_a_writer_that_has_been_replaced_is_told_and_changes_nothing(store: StateStore):
    newer = replace(RUN, generation=10, state="starting")
    assert store.put_run(newer)

    assert not store.put_run(replace(RUN, generation=9, state="failed", updated=99.0))

    assert store.get_run("a") == newer


def test_two_clients_see_the_same_and_the_next_start_what_the_last_one_left(store: StateStore, url: str):
    other = open_store(url)
    store.put_run(RUN)
    store.add_event(event(1))
    assert other.list_runs() == [RUN]
    other.put_run(replace(RUN, agent_step=7))
    assert store.get_run("a") == replace(RUN, agent_step=7)
    for one in (store, other):
        one.close()
        one.close()

    again = open_store(url)

    assert again.get_run("a") == replace(RUN, agent_step=7)
    assert again.events("a") == [event(1)]
    again.close()


# --- events ----------------------------------------------------------------------------------------------


def test_the_last_events_come_in_the_order_they_were_added(store: StateStore):
    for number in (3, 1, 2):
        store.add_event(event(number))
    store.add_event(event(9, run="b"))

    assert store.events("a") == [event(3), event(1), event(2)]
    assert store.events("a", limit=2) == [event(1), event(2)]
    assert store.events("a", limit=0) == store.events("a", limit=-1) == store.events("c") == []


def test_old_events_go_when_there_are_too_many(store: StateStore, monkeypatch: pytest.MonkeyPatch):
    assert MAX_EVENTS_PER_RUN == 1000
    monkeypatch.setattr(f"{type(store).__module__}.MAX_EVENTS_PER_RUN", 5)
    store.add_event(event(0, run="b"))
    for number in range(8):
        store.add_event(event(number))

    assert store.events("a", limit=100) == [event(number) for number in range(3, 8)]
    assert store.events("b") == [event(0, run="b")], "those of other runs stay"


# --- sharing ---------------------------------------------------------------------------------------------


def test_a_closed_store_says_so(store: StateStore):
    store.close()

    with pytest.raises(StateStoreError, match="closed"):
        store.list_runs()


def test_threads_may_share_a_store(store: StateStore):
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


WRITER = """
import sys
from metta_ray.state.open_store import open_store
from metta_ray.state.records import EventRecord, RunRecord

sys.stdin.readline()
store = open_store(sys.argv[1])
number = int(sys.argv[2])
for _ in range(20):
    store.add_event(EventRecord("a", 1.0, "note", str(number)))
    store.put_run(RunRecord("a", "/data/a", "running", generation=number, started=1.0, updated=1.0))
"""


def test_processes_may_fill_one_store_at_the_same_time_and_the_newest_generation_wins(url: str):
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, url, str(number)], stdin=subprocess.PIPE, text=True)
        for number in range(3)
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=60)

    assert [writer.returncode for writer in writers] == [0, 0, 0]
    store = open_store(url)
    assert sorted(entry.text for entry in store.events("a", limit=1000)) == sorted(["0", "1", "2"] * 20)
    assert store.list_runs()[0].generation == 2
    store.close()


# --- any use ---------------------------------------------------------------------------------------------


class AnyUse(RuleBasedStateMachine):
    """Two connections to one store see the same as a dictionary and lists would."""

    names = st.sampled_from(["a", "b", "größe", "'; DROP TABLE runs; --"])
    fresh_url: Callable[[], str]

    def __init__(self) -> None:
        super().__init__()
        url = type(self).fresh_url()
        self.stores = [open_store(url), open_store(url)]
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


def test_any_use_gives_what_was_put(fresh_url: Callable[[], str]):
    AnyUse.fresh_url = staticmethod(fresh_url)
    run_state_machine_as_test(AnyUse, settings=settings(max_examples=15, stateful_step_count=20, deadline=None))


def test_a_reward_that_is_no_number_is_kept_as_none(store: StateStore):
    store.put_run(replace(RUN, reward=float("nan")))

    kept = store.get_run("a")

    assert kept is not None
    assert kept.reward is None
    json.dumps(kept.to_json(), allow_nan=False)
