"""What is remembered about runs outside of their directories: one record per run, and its events.

Plain values of JSON types, so that every store can keep them and every client can show them. Times are wall
clock seconds since 1970: labels for people, never compared to decide anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self, TypeVar

from metta_ray.common.errors import StateStoreError

_RecordT = TypeVar("_RecordT", bound="RunRecord | EventRecord")


@dataclass(frozen=True)
class RunRecord:
    """How to find a run, and how far it is. ``state`` is a value of RunState; the newest generation owns the record.

    best: the best policy so far. evaluations: as in the run's status, with the last ones as ``list``.
    """

    name: str
    run_dir: str
    state: str
    generation: int
    started: float
    updated: float
    ray_address: str | None = None
    dashboard_url: str | None = None
    namespace: str | None = None
    job_id: str | None = None
    driver_pid: int | None = None
    agent_step: int = 0
    total_timesteps: int = 0
    policy_version: int = 0
    reward: float | None = None
    message: str = ""
    best: dict[str, Any] | None = None
    evaluations: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """JSON values; a reward that is not finite becomes None, as JSON knows no NaN."""
        finite = self.reward is not None and math.isfinite(self.reward)
        return {**asdict(self), "reward": self.reward if finite else None}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Ignores keys it does not know (a newer version's); StateStoreError where one is missing."""
        return _from_json(cls, values)


@dataclass(frozen=True)
class EventRecord:
    """Something that happened to a run: ``kind`` for programs, ``text`` for people."""

    run: str
    at: float
    kind: str
    text: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """As RunRecord's."""
        return _from_json(cls, values)


def _from_json(cls: type[_RecordT], values: Mapping[str, Any]) -> _RecordT:
    known = {entry.name: values[entry.name] for entry in fields(cls) if entry.name in values}
    try:
        return cls(**known)
    except TypeError as error:
        raise StateStoreError(f"not a {cls.__name__}: {error}") from None
