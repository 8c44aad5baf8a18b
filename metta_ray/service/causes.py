"""From an error of a call to what became of the process, for the failure budgets and for people."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
)

from metta_ray.common.errors import EnvironmentFault
from metta_ray.control.failure import Cause

_OUT_OF_MEMORY = ("running low on memory", "memory monitor", "OutOfMemoryError")
_NODE_LOST = ("node has died", "node died", "The node", "unexpected node termination")


class Outcome(Enum):
    """PROCESS_LOST: replace it. UNKNOWN: the call may have run, so ask again. DATA_LOST: only its result is gone."""

    PROCESS_LOST = auto()
    UNKNOWN = auto()
    DATA_LOST = auto()


@dataclass(frozen=True)
class Failure:
    """text: one line for the log. traceback: the original one, where user code raised."""

    outcome: Outcome
    cause: Cause
    text: str
    traceback: str = ""


def failure_of(error: BaseException) -> Failure:
    """What an exception of ``Children.result`` means."""
    text = _first_line(error)
    if isinstance(error, RayTaskError):
        original = error.cause if isinstance(getattr(error, "cause", None), BaseException) else None
        is_environment = isinstance(original, EnvironmentFault) or isinstance(error, EnvironmentFault)
        cause = Cause.ENVIRONMENT if is_environment else Cause.CRASH
        inner = original or error
        if isinstance(inner, ObjectLostError | RayActorError):
            return Failure(Outcome.DATA_LOST, cause, _first_line(inner))
        return Failure(Outcome.PROCESS_LOST, cause, f"{type(inner).__name__}: {_first_line(inner)}", str(error))
    if isinstance(error, ActorUnavailableError | GetTimeoutError):
        return Failure(Outcome.UNKNOWN, Cause.CRASH, text)
    if isinstance(error, OutOfMemoryError):
        return Failure(Outcome.PROCESS_LOST, Cause.OUT_OF_MEMORY, text)
    if isinstance(error, ActorDiedError | RayActorError):
        return _of_death(error, text)
    if isinstance(error, ObjectLostError):
        return Failure(Outcome.DATA_LOST, Cause.CRASH, text)
    return Failure(Outcome.PROCESS_LOST, Cause.CRASH, f"{type(error).__name__}: {text}", repr(error))


def _of_death(error: RayActorError, text: str) -> Failure:
    whole = str(error)
    if "creation task" in whole:  # the constructor raised: its traceback is in the message
        cause = Cause.ENVIRONMENT if "EnvironmentFault" in whole or "ConfigError" in whole else Cause.CRASH
        return Failure(Outcome.PROCESS_LOST, cause, _last_line(whole), whole)
    if getattr(error, "preempted", False):
        return Failure(Outcome.PROCESS_LOST, Cause.PREEMPTED, text)
    if any(word in whole for word in _OUT_OF_MEMORY):
        return Failure(Outcome.PROCESS_LOST, Cause.OUT_OF_MEMORY, text)
    if any(word in whole for word in _NODE_LOST):
        return Failure(Outcome.PROCESS_LOST, Cause.NODE_LOST, text)
    return Failure(Outcome.PROCESS_LOST, Cause.CRASH, text)


def is_death(error: BaseException) -> bool:
    """Whether a process is gone, for whatever reason but its own constructor or method raising."""
    return isinstance(error, RayActorError) and "creation task" not in str(error)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
