"""Ends a run: cleanly through its coordinator, or by force where there is none any more."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from metta_ray.common.errors import RunUnreachableError
from metta_ray.control.run_state import RunState
from metta_ray.service.connection import (
    Where,
    auth_of,
    cluster,
    connected,
    kill_actors,
    live_runs,
    put_record,
    recorded,
    unknown_run,
)
from metta_ray.service.identity import namespace_of
from metta_ray.service.run_handle import RunHandle

STOP_TIMEOUT_S = 120.0
INTERVAL_S = 0.5


def stop_run(where: Where, run: str) -> dict[str, Any]:
    """Asks the coordinator to drain, save and end, and waits for it. RunUnreachableError if it takes too long."""
    record = recorded(where, run)
    if record is not None and RunState(record.state).is_final:
        return {"ok": True, "message": f"run {run} has ended already: {record.state}"}
    with connected(where, run) as handle:
        answer = handle.stop()
        if answer.get("ok", True):
            wait_until_ended(handle)
    return answer


def wait_until_ended(
    handle: RunHandle, *, timeout_s: float = STOP_TIMEOUT_S, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Returns when the run says so, or when its coordinator is gone as it should be then."""
    waited = 0.0
    while waited < timeout_s:
        try:
            if RunState(handle.status()["state"]).is_final:
                return
        except RunUnreachableError:
            return
        sleep(INTERVAL_S)
        waited += INTERVAL_S
    raise RunUnreachableError(
        f"run {handle.run} was asked to stop and has not ended after {timeout_s:g} s; metta-ray status {handle.run} "
        f"says what it does, metta-ray stop {handle.run} --force kills it"
    )


def force_stop(where: Where, run: str) -> dict[str, Any]:
    """Kills all actors of a run and marks its record stopped. Nothing is saved; the last checkpoint stays.

    A run with a Ray of its own takes that along: its driver ends with the coordinator.
    """
    record = recorded(where, run)
    address = where.address if where.is_explicit or record is None else record.ray_address or where.address
    if record is None and address is None:
        raise unknown_run(where, run)
    killed: list[str] = []
    said = ""
    if address is not None:
        try:
            with cluster(address, namespace_of(run), auth_of(record)):
                if record is None and run not in live_runs():
                    raise unknown_run(where, run)
                killed = kill_actors(run)
        except RunUnreachableError:
            if record is None or _is_alive(record.driver_pid):
                raise
            said = f"; its cluster {address} is gone, and with it all its processes"
    if record is not None and not RunState(record.state).is_final:
        evaluations = record.evaluations | {"evaluators": []} if record.evaluations else record.evaluations
        stopped = replace(
            record,
            state=RunState.STOPPED.value,
            updated=time.time(),
            message="stopped by force",
            evaluations=evaluations,
        )
        put_record(where, stopped)
    return {"ok": True, "message": f"run {run} stopped by force: {len(killed)} actors killed{said}"}


def _is_alive(pid: int | None) -> bool:
    """Whether the process that started an embedded cluster still holds it, if it was one of this machine."""
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
