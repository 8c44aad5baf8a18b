"""What is particular about Redis: its address, its secret, its failures, and what may lie in it. The server is real."""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from metta_ray.common.errors import ConfigError, StateStoreError
from metta_ray.state.open_store import open_store
from metta_ray.state.records import EventRecord, RunRecord
from metta_ray.state.redis_address import PASSWORD_VARIABLE, RedisAddress
from tests.redis_server import RedisServer, free_port, plain_port, redis_server, with_users_of_the_handbook

RUN = RunRecord(name="a", run_dir="/data/a", state="running", generation=1, started=1.0, updated=2.0)
SECRET = "canary-5e53cc8e"
BUDGET_S = 0.25


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with with_users_of_the_handbook(tmp_path_factory.mktemp("redis"), SECRET) as running:
        yield running


@pytest.fixture
def url(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(PASSWORD_VARIABLE, SECRET)
    return f"redis://metta@127.0.0.1:{server.port}"


# --- the address -----------------------------------------------------------------------------------------


def test_a_url_says_all_but_the_password():
    address = RedisAddress.from_url("rediss://me@store.example:7000/3?ca=/etc/ca.crt&password_file=/run/p&prefix=x")

    assert address == RedisAddress("store.example", 7000, 3, "me", True, "/etc/ca.crt", "/run/p", "x")
    assert str(address) == "rediss://me@store.example:7000/3"
    assert RedisAddress.from_url("redis://h") == RedisAddress("h", 6379, 0)


@pytest.mark.parametrize(
    "url",
    [
        "redis://me:canary@host",
        "redis://:canary@host:6379/0",
        "redis://me:can/ary@host",
        "redis://host?password=canary",
        "redis://host:canary",
        "redis://host/canary",
        "redis://host?canary=1",
        "redis://host?insecure=canary",
        "redis:///canary",
    ],
)
def test_a_url_with_a_password_or_that_is_none_is_refused_and_not_repeated(url: str):
    with pytest.raises(ConfigError, match=r"state\.url") as error:
        open_store(url)

    assert "canary" not in str(error.value)


def test_a_password_comes_from_a_file_before_the_variable(tmp_path: Path):
    (tmp_path / "password").write_text("from-file\n")
    environ = {PASSWORD_VARIABLE: "from-variable"}

    assert RedisAddress.from_url("redis://h").password(environ) == "from-variable"
    assert RedisAddress.from_url(f"redis://h?password_file={tmp_path}/password").password(environ) == "from-file"
    with pytest.raises(StateStoreError, match=r"password file .* cannot be read"):
        RedisAddress.from_url(f"redis://h?password_file={tmp_path}/none").password(environ)


def test_another_machines_redis_is_not_used_without_a_password_unless_asked():
    with pytest.raises(StateStoreError, match=f"no password .*set {PASSWORD_VARIABLE}"):
        RedisAddress.from_url("redis://10.1.2.3").password({})

    assert RedisAddress.from_url("redis://10.1.2.3?insecure=true").password({}) is None
    assert RedisAddress.from_url("redis://localhost").password({}) is None


# --- secrets ---------------------------------------------------------------------------------------------


def test_a_wrong_password_is_named_and_never_shown(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(PASSWORD_VARIABLE, "canary-wrong")

    with pytest.raises(StateStoreError, match=f"invalid username-password pair .*check .*{PASSWORD_VARIABLE}") as error:
        open_store(url).list_runs()

    assert "canary" not in str(error.value)
    assert error.value.__cause__ is None


def test_no_password_is_named_too(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(PASSWORD_VARIABLE)

    with pytest.raises(StateStoreError, match=PASSWORD_VARIABLE):
        open_store(url).list_runs()


def test_a_store_and_its_parts_do_not_show_the_password(url: str):
    store = open_store(url)
    store.put_run(RUN)

    shown = [repr(store), str(store), repr(vars(store)), repr(store._redis.connection_pool), repr(store._redis)]  # type: ignore[attr-defined]
    shown += [repr(vars(one)) for one in store._redis.connection_pool._available_connections]  # type: ignore[attr-defined]

    assert len(shown) > 5
    assert SECRET not in "".join(shown)
    store.close()


def test_a_new_password_is_used_for_the_next_connection(server: RedisServer, url: str, tmp_path: Path):
    (tmp_path / "password").write_text("not-yet")
    store = open_store(f"{url}?password_file={tmp_path}/password")
    with pytest.raises(StateStoreError):
        store.list_runs()

    (tmp_path / "password").write_text(SECRET)

    store.list_runs()
    store.close()


def test_its_user_may_do_what_the_store_does_and_nothing_else(server: RedisServer, url: str):
    store = open_store(url)
    store.put_run(RUN)
    store.add_event(EventRecord("a", 1.0, "note", "told"))
    assert store.get_run("a") == RUN == store.list_runs()[0]
    assert store.events("a") == [EventRecord("a", 1.0, "note", "told")]
    store.close()

    once = Retry(NoBackoff(), 0)
    raw = redis.Redis(port=server.port, username="metta", password=SECRET, retry=once)
    for command in (["FLUSHALL"], ["KEYS", "*"], ["CONFIG", "GET", "*"], ["HSET", "RAYns@KV", "a", "b"], ["SHUTDOWN"]):
        with pytest.raises(redis.exceptions.NoPermissionError):
            raw.execute_command(*command)
    with pytest.raises(redis.exceptions.AuthenticationError):
        redis.Redis(port=server.port, retry=once).ping()
    raw.close()


# --- failures --------------------------------------------------------------------------------------------


def test_a_server_that_is_not_there_is_named_at_once():
    port = free_port()
    with pytest.raises(StateStoreError, match=rf"redis://127.0.0.1:{port}/0 cannot be used: .*refused"):
        open_store(f"redis://127.0.0.1:{port}").list_runs()


@pytest.mark.parametrize("is_connected", [True, False])
def test_a_frozen_server_costs_one_budget_and_the_store_is_good_again_afterwards(
    server: RedisServer, url: str, is_connected: bool
):
    store = open_store(url, timeout_s=BUDGET_S)
    if is_connected:
        store.put_run(RUN)
    server.freeze()
    try:
        began = time.monotonic()
        with pytest.raises(StateStoreError, match=r"no answer within 0\.25 s"):
            store.put_run(RUN)
        assert time.monotonic() - began < 4 * BUDGET_S, "a shared machine may be slow"
    finally:
        server.thaw()

    assert store.put_run(replace(RUN, agent_step=3))
    assert store.get_run("a") == replace(RUN, agent_step=3)
    store.close()


def test_a_full_server_says_so(tmp_path: Path):
    port = free_port()
    with (
        redis_server(tmp_path / "full", *plain_port(port), "--maxmemory", "1", port=port),
        pytest.raises(StateStoreError, match="maxmemory"),
    ):
        open_store(f"redis://127.0.0.1:{port}").put_run(RUN)


# --- what may lie in it ----------------------------------------------------------------------------------

HOSTILE = [
    "",
    "no json",
    "[]",
    "7",
    "null",
    '{"name": "b"}',
    "[" * 100_000,
    '{"name": "a", "updated": "x"}',
    "\x80\x04",
]


@pytest.fixture
def open_server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path / "open") as running:
        yield running


def test_what_metta_ray_did_not_write_is_an_error_that_names_it(open_server: RedisServer):
    store = open_store(f"redis://127.0.0.1:{open_server.port}")
    raw = redis.Redis(port=open_server.port, protocol=2)
    for text in HOSTILE:
        raw.hset("metta:records", "a", text)
        for ask in (lambda: store.get_run("a"), store.list_runs):
            with pytest.raises(StateStoreError, match=r"metta:records at 'a' .* was not written by metta_ray"):
                ask()
    raw.hset("metta:records", "a", b"\xff\xfe")
    with pytest.raises(StateStoreError, match="cannot be used"):
        store.list_runs()

    raw.xadd("metta:events:a", {"at": "now"})
    with pytest.raises(StateStoreError, match="metta:events:a"):
        store.events("a")
    raw.set("metta:events:b", "a string")
    with pytest.raises(StateStoreError, match="WRONGTYPE"):
        store.events("b")
    store.close()
    raw.close()


def test_what_is_too_large_is_not_sent(open_server: RedisServer):
    store = open_store(f"redis://127.0.0.1:{open_server.port}")

    with pytest.raises(StateStoreError, match="at most 1,048,576"):
        store.put_run(replace(RUN, message="x" * (1 << 20)))
    with pytest.raises(StateStoreError, match="at most 1,048,576"):
        store.add_event(EventRecord("a", 1.0, "note", "x" * (1 << 20) + "y"))

    assert store.list_runs() == []
    store.close()


def test_the_variable_is_not_needed_here():
    """Of this file: a password of the person who runs the tests would hide what the tests look for."""
    assert PASSWORD_VARIABLE not in os.environ
