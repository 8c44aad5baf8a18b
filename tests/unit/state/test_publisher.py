"""A publisher keeps a store informed whatever the store does. The store is a real Redis, and the failures are real."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from metta_ray.state.base import StateStore
from metta_ray.state.open_store import open_store
from metta_ray.state.publisher import MAX_TEXT, Publisher
from metta_ray.state.records import EventRecord, RunRecord
from metta_ray.state.timed_store import TimedStore
from tests.redis_server import RedisServer, redis_server

RUN = RunRecord(name="a", run_dir="/data/a", state="running", generation=2, started=1.0, updated=2.0)
PATIENCE_S = 15.0
REST_S = 0.1


class Watched:
    """A publisher, what it said, and what its calls took."""

    def __init__(self, url: str) -> None:
        self.said: list[str] = []
        self.calls: list[tuple[float, bool]] = []
        store = TimedStore(open_store(url, timeout_s=0.25), lambda *call: self.calls.append(call))
        self.publisher = Publisher(store, "a", self.said.append, first_rest_s=REST_S)

    def tell(self, number: int) -> float:
        """Seconds that it took to say an event and a record."""
        began = time.perf_counter()
        self.publisher.add_event(EventRecord("a", float(number), "note", f"event {number}"))
        self.publisher.put_run(replace(RUN, agent_step=number))
        return time.perf_counter() - began


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path / "redis") as running:
        yield running


@pytest.fixture
def url(server: RedisServer) -> str:
    return f"redis://127.0.0.1:{server.port}"


@pytest.fixture
def watched(url: str) -> Iterator[Watched]:
    started = Watched(url)
    yield started
    started.publisher.close(1.0)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s"
        time.sleep(0.02)


def knows(url: str, last: int, *, first: int = 0) -> bool:
    """Whether the store has the events ``first`` … ``last`` and the record of the last."""
    store: StateStore = open_store(url)
    record, events = store.get_run("a"), store.events("a", 1000)
    store.close()
    return (
        record is not None
        and record.agent_step == last
        and [event.at for event in events] == list(map(float, range(first, last + 1)))
    )


def test_news_are_told_in_order(watched: Watched, url: str):
    for number in range(50):
        watched.tell(number)

    assert watched.publisher.close(PATIENCE_S)

    assert knows(url, 49)
    assert watched.said == []


def test_what_a_frozen_server_missed_it_is_told_when_it_answers_again_and_nobody_waited(
    watched: Watched, server: RedisServer, url: str
):
    watched.tell(0)
    wait_until(lambda: knows(url, 0))
    server.freeze()
    waited = [watched.tell(number) for number in range(1, 20)]
    wait_until(lambda: sum(is_failed for _, is_failed in watched.calls) >= 2)
    server.thaw()

    wait_until(lambda: knows(url, 19))
    assert max(waited) < 0.2, "who has news never waits for the store, whose answers would take 0.25 s"
    wait_until(lambda: len(watched.said) == 2)
    assert "the run goes on" in watched.said[0]
    assert "is back" in watched.said[1]


def test_a_server_that_is_away_is_asked_ever_more_seldom(watched: Watched, server: RedisServer, url: str):
    server.kill()
    began = time.monotonic()
    while time.monotonic() - began < 0.6:
        watched.tell(int(100 * (time.monotonic() - began)))
        time.sleep(0.02)

    assert len(watched.said) == 1, "trouble is told once"
    assert len(watched.calls) <= 4, "rests of 0.1, 0.2, 0.4 seconds"
    watched.tell(1000)
    server.restart()
    wait_until(lambda: open_store(url).events("a", 1)[-1:] == [EventRecord("a", 1000.0, "note", "event 1000")])


@pytest.mark.parametrize("how", ["flushed", "restarted without its data"])
def test_a_store_that_has_forgotten_is_told_again(watched: Watched, server: RedisServer, url: str, how: str):
    for number in range(5):
        watched.tell(number)
    wait_until(lambda: knows(url, 4))

    if how == "flushed":
        raw = redis.Redis(port=server.port, protocol=2)
        raw.flushall()
        raw.close()
    else:
        server.restart()
    watched.publisher.put_run(replace(RUN, agent_step=4))  # as a coordinator does every second

    wait_until(lambda: knows(url, 4))


def test_a_run_that_ends_while_its_store_is_away_ends_in_time(watched: Watched, server: RedisServer):
    server.freeze()
    watched.tell(1)
    began = time.monotonic()

    assert not watched.publisher.close(0.5)

    assert time.monotonic() - began < PATIENCE_S
    server.thaw()


def test_a_run_that_starts_while_its_store_is_away_is_shown_later(server: RedisServer, url: str):
    server.kill()
    late = Watched(url)
    late.tell(0)
    wait_until(lambda: late.said)

    server.restart()

    wait_until(lambda: knows(url, 0))
    assert late.publisher.close(1.0)


def test_a_writer_that_was_replaced_says_so_once(watched: Watched, url: str):
    store = open_store(url)
    store.put_run(replace(RUN, generation=3))

    for number in range(3):
        watched.tell(number)
        wait_until(lambda: watched.said)

    assert watched.publisher.close(1.0)
    assert len(watched.said) == 1
    assert "newer generation" in watched.said[0]
    store.close()


def test_a_long_text_is_told_in_part(watched: Watched, url: str):
    watched.publisher.add_event(EventRecord("a", 1.0, "note", "x" * (2 << 20)))
    watched.tell(2)

    assert watched.publisher.close(PATIENCE_S)

    assert len(open_store(url).events("a")[0].text) == MAX_TEXT


def test_its_thread_ends_with_it(url: str):
    one = Watched(url)
    one.tell(0)
    one.publisher.close(PATIENCE_S)

    assert not [thread for thread in threading.enumerate() if thread.name == "publisher"]
