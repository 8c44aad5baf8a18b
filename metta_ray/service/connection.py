"""From the name of a run to its coordinator: the record in the state store, else the named actors of a cluster.

    with connected(where, "nav-7") as handle:
        handle.scale("8")

Loads ray only when a cluster is to be reached.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from metta_ray.common.errors import ConfigError, RunUnknownError, RunUnreachableError
from metta_ray.common.util.typed_config import did_you_mean
from metta_ray.service.identity import coordinator_name, namespace_of
from metta_ray.service.run_config import STATE_VARIABLE, data_directory, store_url
from metta_ray.service.run_handle import CoordinatorCall, RunHandle, coordinator_gone, first_line
from metta_ray.state.base import StateStore
from metta_ray.state.open_store import SQLITE, check_store_url, open_store
from metta_ray.state.records import RunRecord

REACH_TIMEOUT_S = 3.0
TOLD_S = 1.0
"""Well below the time after which those that were told end by themselves."""
TOKEN_HINT = (
    "a missing or wrong token looks the same: RAY_AUTH_MODE and RAY_AUTH_TOKEN (or ~/.ray/auth_token) must be those "
    "of the cluster"
)
_COORDINATOR_PREFIX, _COORDINATOR_SUFFIX = coordinator_name("|").split("|")


@dataclass(frozen=True)
class Where:
    """Where runs are looked for: a store, and a cluster if one is named.

    address: host:port of a cluster. is_explicit: it was asked for, not merely found in RAY_ADDRESS.
    """

    store_url: str
    address: str | None = None
    is_explicit: bool = False

    @classmethod
    def of(cls, data_dir: str | None, state_url: str | None, address: str | None, environ: Mapping[str, str]) -> Self:
        return cls(
            store_url=store_url(state_url or environ.get(STATE_VARIABLE), data_directory(data_dir, environ)),
            address=address or environ.get("RAY_ADDRESS") or None,
            is_explicit=address is not None,
        )


@contextmanager
def connected(where: Where, run: str) -> Iterator[RunHandle]:
    """A handle of a live run; the connection ends with the block.

    RunUnknownError names the runs that are known; RunUnreachableError says what to do about a lost coordinator.
    """
    record = recorded(where, run)
    address = where.address if where.is_explicit or record is None else record.ray_address or where.address
    if address is None:
        raise unknown_run(where, run) if record is None else _no_address(record)
    with cluster(address, namespace_of(run), auth_of(record)):
        yield coordinator_of(run, where if record is None else None)


def find_run(where: Where, run: str) -> RunRecord:
    """The record of a run. RunUnknownError if the store has none."""
    record = recorded(where, run)
    if record is None:
        raise unknown_run(where, run)
    return record


def recorded(where: Where, run: str) -> RunRecord | None:
    """The record of a run, or None."""
    if not _store_exists(where):
        return None
    with _store(where) as store:
        return store.get_run(run)


def records(where: Where) -> list[RunRecord]:
    """All records, last updated first."""
    if not _store_exists(where):
        return []
    with _store(where) as store:
        return store.list_runs()


def put_record(where: Where, record: RunRecord) -> None:
    with _store(where) as store:
        store.put_run(record)


@contextmanager
def stores_of_copy(source: str, target: str) -> Iterator[tuple[StateStore, StateStore]]:
    """Two stores, by URL; the second may be a new one. ConfigError for what is no store, and if both are the same."""
    for name, url in (("FROM", source), ("TO", target)):
        try:
            check_store_url(url)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from None
    if source == target:
        raise ConfigError(f"FROM and TO are the same store, {source}")
    if not _exists(source):
        raise ConfigError(f"FROM: there is no file {source.removeprefix(SQLITE)}; sqlite:////PATH is an absolute path")
    with closing(open_store(source)) as opened:
        opened.list_runs()  # one that cannot be used is told before a file is made for the other
        with closing(open_store(target)) as other:
            yield opened, other


def record_as_status(record: RunRecord) -> dict[str, Any]:
    """What is known of a run that has ended, with the names of a live run's status."""
    facts = record.to_json()
    return {"run": facts.pop("name"), **{name: value for name, value in facts.items() if name != "config"}}


def coordinator_of(run: str, where: Where | None = None) -> RunHandle:
    """The handle of a run in the connected cluster. Without a record (``where``) the name itself may be wrong."""
    import ray

    try:
        actor = ray.get_actor(coordinator_name(run), namespace=namespace_of(run))
    except ValueError:
        if where is not None:
            raise unknown_run(where, run, live_runs()) from None
        raise coordinator_gone(run) from None
    return RunHandle(run, CoordinatorCall(run, actor))


def live_runs() -> list[str]:
    """Names of the runs that have a coordinator in the connected cluster."""
    from ray.util import list_named_actors

    names = [str(actor["name"]) for actor in list_named_actors(all_namespaces=True)]
    return sorted(
        name.removeprefix(_COORDINATOR_PREFIX).removesuffix(_COORDINATOR_SUFFIX)
        for name in names
        if name.startswith(_COORDINATOR_PREFIX) and name.endswith(_COORDINATOR_SUFFIX)
    )


def kill_actors(run: str) -> list[str]:
    """Kills all actors of a run in the connected cluster and removes its placement groups; returns their names."""
    import ray
    from ray.util import list_named_actors, placement_group_table, remove_placement_group
    from ray.util.placement_group import get_placement_group

    namespace, coordinator = namespace_of(run), coordinator_name(run)
    names = [str(actor["name"]) for actor in list_named_actors(all_namespaces=True) if actor["namespace"] == namespace]
    actors = {}
    for name in names:
        with suppress(ValueError):  # it ended by itself meanwhile
            actors[name] = ray.get_actor(name, namespace=namespace)
    prefix = coordinator.removesuffix(_COORDINATOR_SUFFIX)
    groups = [
        get_placement_group(group["name"])
        for group in placement_group_table().values()
        if group["name"].startswith(f"{prefix}/") and group["state"] != "REMOVED"
    ]
    # There are children that Ray cannot kill, see ``leave``. All questions come before the first kill: a run's driver
    # ends with its coordinator, and where the cluster is the driver's own, there is nobody to ask any more.
    told: list[Any] = [
        actor.leave.options(max_task_retries=0).remote() for actor in actors.values() if hasattr(actor, "leave")
    ]
    if told:
        ray.wait(told, num_returns=len(told), timeout=TOLD_S)
    # The coordinator first, or it would replace what is killed.
    for name in sorted(actors, key=lambda name: name != coordinator):
        ray.kill(actors[name], no_restart=True)
    for group in groups:
        remove_placement_group(group)
    return names


@contextmanager
def cluster(address: str, namespace: str, auth: str | None = None) -> Iterator[None]:
    """A connection as a driver that only asks: its own logs and Ray's stay out of the answer.

    auth: RAY_AUTH_MODE of the cluster, where it is known; else what the environment says.
    """
    check_reachable(address)
    # Ray reads these when it is loaded; its default of 20 tries takes as many seconds.
    os.environ["RAY_AUTH_MODE"] = auth or auth_mode(os.environ)
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "5")
    import ray

    try:
        with _no_standard_error():
            ray.init(address=address, namespace=namespace, log_to_driver=False, logging_level=logging.WARNING)
    except Exception as error:  # Ray raises a dozen kinds here; all mean that there is no connection
        raise RunUnreachableError(
            f"no connection to the Ray cluster at {address}: {first_line(error)}; {TOKEN_HINT}"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def auth_of(record: RunRecord | None) -> str | None:
    """The authentication mode of an embedded cluster; of a joined one only the environment knows it."""
    settings = (record.config if record is not None else {}).get("cluster") or {}
    return None if settings.get("address") else settings.get("auth")


@contextmanager
def _store(where: Where) -> Iterator[StateStore]:
    store = open_store(where.store_url)
    try:
        yield store
    finally:
        store.close()


def _store_exists(where: Where) -> bool:
    """A question must not create the file that it asks."""
    return _exists(where.store_url)


def _exists(store_url: str) -> bool:
    return not store_url.startswith(SQLITE) or Path(store_url.removeprefix(SQLITE)).exists()


@contextmanager
def _no_standard_error() -> Iterator[None]:
    """Ray's native code writes a line for every try there; what went wrong comes as an exception as well."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def auth_mode(environ: Mapping[str, str]) -> str:
    """``token`` where there is one. Ray itself, joining a cluster, uses a token only where RAY_AUTH_MODE says so."""
    files = (environ.get("RAY_AUTH_TOKEN_PATH"), Path.home() / ".ray" / "auth_token")
    has_token = bool(environ.get("RAY_AUTH_TOKEN")) or any(file and Path(file).is_file() for file in files)
    return environ.get("RAY_AUTH_MODE") or ("token" if has_token else "disabled")


def unknown_run(where: Where, run: str, live: list[str] | None = None) -> RunUnknownError:
    names = sorted({record.name for record in records(where)} | set(live or ()))
    places = f"{where.store_url}" + (f" and the cluster {where.address}" if where.address else "")
    remedy = "" if where.address else "; for a run on a cluster give --address host:port or set RAY_ADDRESS"
    known = did_you_mean(run, names) if names else "; there is none yet"
    return RunUnknownError(f"run {run!r} is unknown in {places}{known}{remedy}")


def _no_address(record: RunRecord) -> RunUnreachableError:
    return RunUnreachableError(
        f"run {record.name} was submitted as job {record.job_id} and has not yet said where its cluster is; "
        "wait until it runs, or give the cluster's address with --address host:port"
    )


def check_reachable(address: str) -> None:
    """Ray tries for a minute to reach an address where nothing listens; a person should not have to wait for that."""
    if address.startswith(("http://", "https://")):
        raise RunUnreachableError(
            f"{address} is the address of a dashboard; give the cluster's own, host:port (port 6379 unless changed)"
        )
    refusal = refused(address)
    if refusal:
        raise RunUnreachableError(
            f"no Ray cluster answers at {address} ({refusal}): it has ended, or the address is wrong; "
            "metta-ray train --run NAME continues a run from its last checkpoint, metta-ray stop NAME --force "
            "marks it stopped"
        )


def refused(address: str) -> str:
    """Why no connection to host:port can be made, or nothing."""
    host, _, port = address.rpartition("://")[2].split("/")[0].rpartition(":")
    if not host or not port.isdigit():
        return ""  # "auto" and the like are Ray's to understand
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_TIMEOUT_S).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""
