"""``metta-ray state copy``: runs that move from a SQLite file to a real Redis and back are what they were."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metta_ray import cli
from metta_ray.common.errors import StateStoreError
from metta_ray.state import copying
from metta_ray.state.base import MAX_EVENTS_PER_RUN, StateStore
from metta_ray.state.copying import Copied, Outcome, copy_runs
from metta_ray.state.open_store import open_store
from metta_ray.state.records import EventRecord, RunRecord
from metta_ray.state.redis_address import PASSWORD_VARIABLE
from tests.redis_server import RedisServer, free_port, with_users_of_the_handbook

RUN = RunRecord(name="a", run_dir="/data/a", state="done", generation=3, started=1.0, updated=2.0)
SECRET = "canary-0c1b44a5"
numbers = count()


def event(number: int, run: str = "a") -> EventRecord:
    return EventRecord(run, float(number), "note", f"event {number}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with with_users_of_the_handbook(tmp_path_factory.mktemp("redis"), SECRET) as running:
        yield running


@pytest.fixture(autouse=True)
def password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD_VARIABLE, SECRET)


class Places:
    """URLs of stores that nobody has used yet."""

    def __init__(self, directory: Path, port: int) -> None:
        self._directory, self._port = directory, port

    def sqlite(self) -> str:
        return f"sqlite:///{self._directory}/{next(numbers)}/runs.sqlite"

    def redis(self) -> str:
        return f"redis://metta@127.0.0.1:{self._port}?prefix=metta:{next(numbers)}"


@pytest.fixture
def places(tmp_path: Path, server: RedisServer) -> Places:
    return Places(tmp_path, server.port)


@pytest.fixture(params=["sqlite to redis", "redis to sqlite"])
def urls(request: pytest.FixtureRequest, places: Places) -> tuple[str, str]:
    """Where from, and where to."""
    pair = places.sqlite(), places.redis()
    return pair if request.param == "sqlite to redis" else pair[::-1]


@pytest.fixture
def stores(urls: tuple[str, str]) -> Iterator[tuple[StateStore, StateStore]]:
    opened = open_store(urls[0]), open_store(urls[1])
    yield opened
    for store in opened:
        store.close()


def copied(stores: tuple[StateStore, StateStore]) -> list[Copied]:
    return list(copy_runs(*stores, lambda record: record.state != "running"))


def contents(store: StateStore) -> list[tuple[RunRecord, list[EventRecord]]]:
    return [(record, store.events(record.name, MAX_EVENTS_PER_RUN)) for record in store.list_runs()]


# --- what arrives ----------------------------------------------------------------------------------------

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
values = st.dictionaries(words, st.none() | st.booleans() | st.integers() | words | st.lists(st.integers()), max_size=3)
times = st.floats(0, 1e10)
records = st.builds(
    RunRecord,
    name=st.sampled_from(["a", "b", "größe", "'; DROP TABLE runs; --", "x:y"]),
    run_dir=words,
    state=st.sampled_from(["done", "stopped", "failed"]),
    generation=st.integers(0, 2**40),
    started=times,
    updated=times,
    ray_address=st.none() | words,
    job_id=st.none() | words,
    driver_pid=st.none() | st.integers(1, 2**22),
    agent_step=st.integers(0, 2**52),
    reward=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    message=words,
    best=st.none() | values,
    evaluations=values,
    config=values,
)
events = st.lists(st.tuples(times, words, words), max_size=5)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(runs=st.lists(st.tuples(records, events), max_size=4, unique_by=lambda run: run[0].name))
def test_there_and_back_is_as_it_was(
    runs: list[tuple[RunRecord, list[tuple[float, str, str]]]], places: Places
) -> None:
    here, there, back = (open_store(url) for url in (places.sqlite(), places.redis(), places.sqlite()))
    for record, told in runs:
        here.put_run(record)
        for at, kind, text in told:
            here.add_event(EventRecord(record.name, at, kind, text))

    for pair in ((here, there), (there, back)):
        assert {entry.outcome for entry in copied(pair)} <= {Outcome.COPIED}
        assert {entry.outcome for entry in copied(pair)} <= {Outcome.THERE}, "once more changes nothing"

    assert contents(here) == contents(there) == contents(back)
    for store in (here, there, back):
        store.close()


def test_as_many_events_as_are_kept_arrive_in_their_order(
    stores: tuple[StateStore, StateStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (copying.__name__, *(type(store).__module__ for store in stores)):
        monkeypatch.setattr(f"{module}.MAX_EVENTS_PER_RUN", 20)
    source, target = stores
    source.put_run(RUN)
    for number in [*range(25), 24, 24]:
        source.add_event(event(number))

    assert copied(stores) == [Copied("a", Outcome.COPIED, events=20)]

    assert target.events("a", 100) == source.events("a", 100) == [*map(event, range(7, 25)), event(24), event(24)]


def test_what_broke_off_is_completed(stores: tuple[StateStore, StateStore], monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = stores
    source.put_run(RUN)
    for number in (1, 2, 2, 3):
        source.add_event(event(number))
    add_event, room = target.add_event, iter([True] * 2)

    def with_little_room(entry: EventRecord) -> None:
        if not next(room, False):
            raise StateStoreError("full")
        add_event(entry)

    monkeypatch.setattr(target, "add_event", with_little_room)
    with pytest.raises(StateStoreError, match="full"):
        copied(stores)
    assert target.list_runs() == []
    monkeypatch.undo()

    assert copied(stores) == [Copied("a", Outcome.COPIED, events=2)]
    assert contents(target) == contents(source)


# --- what does not ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"generation": 4, "updated": 1.0}, {"updated": 9.0, "agent_step": 7}])
def test_what_is_newer_there_stays(stores: tuple[StateStore, StateStore], changes: dict[str, float]) -> None:
    source, target = stores
    source.put_run(RUN)
    source.add_event(event(1))
    newer = replace(RUN, **changes)
    target.put_run(newer)

    assert copied(stores) == [Copied("a", Outcome.NEWER)]
    assert contents(target) == [(newer, [])]


def test_what_went_on_since_the_last_copy_follows(stores: tuple[StateStore, StateStore]) -> None:
    source, target = stores
    source.put_run(RUN)
    source.add_event(event(1))
    copied(stores)
    source.put_run(replace(RUN, generation=4, agent_step=64))
    source.add_event(event(2))

    assert copied(stores) == [Copied("a", Outcome.COPIED, events=1)]
    assert contents(target) == contents(source)


def test_a_run_that_goes_on_and_another_of_that_name_are_left_out_and_the_others_are_copied(
    stores: tuple[StateStore, StateStore],
) -> None:
    source, target = stores
    for name, state, updated in (("a", "done", 1.0), ("b", "running", 2.0), ("c", "failed", 3.0)):
        source.put_run(replace(RUN, name=name, state=state, updated=updated))
    elsewhere = replace(RUN, run_dir="/other/a")
    target.put_run(elsewhere)

    outcomes = {entry.run: entry.outcome for entry in copied(stores)}

    assert outcomes == {"a": Outcome.OTHER, "b": Outcome.GOES_ON, "c": Outcome.COPIED}
    assert target.get_run("a") == elsewhere
    assert target.get_run("b") is None


# --- the command -----------------------------------------------------------------------------------------


def test_the_command_copies_and_says_what(urls: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    source = open_store(urls[0])
    source.put_run(RUN)
    source.add_event(event(1))

    assert cli.main(["state", "copy", *urls]) == cli.DONE
    assert capsys.readouterr().out == "run a: copied; new events: 1\n"
    assert cli.main(["state", "copy", *urls]) == cli.DONE
    assert capsys.readouterr().out == "run a: there already\n"
    assert cli.main(["runs", "--json", "--state", urls[1]]) == cli.DONE
    assert [RunRecord.from_json(run) for run in json.loads(capsys.readouterr().out)] == [RUN]

    source.put_run(replace(RUN, state="running", generation=4))
    assert cli.main(["state", "copy", *urls]) == cli.FAILED
    said = capsys.readouterr()
    assert said.out == "run a: not copied: it goes on, and would go on writing to the store that it has\n"
    assert f"metta-ray stop RUN --state {urls[0]}" in said.err
    source.close()


def test_places_that_are_none_are_refused_and_nothing_is_made(
    places: Places, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known, new = places.redis(), places.sqlite()
    nobody = f"redis://metta@127.0.0.1:{free_port()}"

    def refusal(source: str, target: str, code: int) -> str:
        assert cli.main(["state", "copy", source, target]) == code
        said = capsys.readouterr()
        assert said.out == ""
        return said.err

    assert "FROM: there is no file" in refusal(new, known, cli.BAD_INPUT)
    assert "the same store" in refusal(known, known, cli.BAD_INPUT)
    assert "TO: " in refusal(known, "mysql://host", cli.BAD_INPUT)
    assert "state.url holds a password" in refusal("redis://metta:canary-x@host", new, cli.BAD_INPUT)
    assert nobody in refusal(nobody, new, cli.FAILED)
    assert not Path(new.removeprefix("sqlite:///")).parent.exists()
    (tmp_path / "text").write_text("no database" * 100)
    assert "not a database" in refusal(f"sqlite:///{tmp_path}/text", known, cli.FAILED)


def test_a_wrong_password_is_told_and_never_shown(
    places: Places, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSWORD_VARIABLE, "canary-wrong")
    url = places.sqlite()
    store = open_store(url)
    store.put_run(RUN)
    store.close()

    for pair in ((url, places.redis()), (places.redis(), places.sqlite())):
        assert cli.main(["state", "copy", *pair]) == cli.FAILED
        said = capsys.readouterr()
        assert "invalid username-password pair" in said.err
        assert "canary" not in said.out + said.err
