"""A replay as its viewers need it: every quantity as a series of changes, of replay files of version 3 and 4.

Ours are of version 4. Step t is the state after the t-th action, counted from 0.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from metta_ray.common.errors import CheckpointError
from metta_ray.sim.replay import VALUE_ESTIMATE

VERSIONS = (3, 4)
Cell = tuple[int, int]
Items = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Series:
    """A quantity over an episode: ``values[i]`` from step ``steps[i]`` on, ``default`` before the first."""

    steps: tuple[int, ...]
    values: tuple[Any, ...]
    default: Any = 0

    def at(self, step: int) -> Any:
        index = bisect_right(self.steps, step) - 1
        return self.values[index] if index >= 0 else self.default

    @property
    def is_constant(self) -> bool:
        return len(self.steps) <= 1 and (not self.steps or self.steps[0] == 0)


@dataclass(frozen=True)
class AgentSeries:
    """What only agents have. value: the expected return before the step's action; None where none was recorded."""

    agent_id: int
    group: int
    window: int
    action: Series
    succeeded: Series
    reward: Series
    total_reward: Series
    value: Series | None


@dataclass(frozen=True)
class Thing:
    """One object of the world. location: (x, y) = (column, row). inventory: ``((item, amount), …)``."""

    id: int
    type_name: str
    location: Series
    alive: Series
    inventory: Series
    agent: AgentSeries | None = None


@dataclass(frozen=True)
class Replay:
    """name: the file's. version: of the format. facts: what is known of the episode, for people."""

    name: str
    version: int
    steps: int
    width: int
    height: int
    action_names: tuple[str, ...]
    item_names: tuple[str, ...]
    things: tuple[Thing, ...]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def agents(self) -> list[Thing]:
        """By agent id."""
        agents = [thing for thing in self.things if thing.agent is not None]
        return sorted(agents, key=lambda thing: thing.agent.agent_id if thing.agent else -1)

    def action_name(self, action: int) -> str:
        return self.action_names[action] if 0 <= action < len(self.action_names) else f"action {action}"

    def item_name(self, item: int) -> str:
        return self.item_names[item] if 0 <= item < len(self.item_names) else f"item {item}"


def replay_of(raw: Mapping[str, Any], name: str) -> Replay:
    """From the JSON of a replay file. CheckpointError names what is missing, damaged, or of a version unknown here."""
    version = raw.get("version")
    if version not in VERSIONS:
        known = " and ".join(map(str, VERSIONS))
        raise CheckpointError(
            f"{name} is a replay of version {version}; versions {known} can be shown. Record it anew, or use the "
            "viewer of the program that wrote it"
        )
    try:
        replay = _read(raw, name, int(version))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        said = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{name} is a damaged replay: {said}; record it anew") from error
    if replay.steps < 1:
        raise CheckpointError(f"{name} has max_steps={replay.steps}: an episode without a step cannot be shown")
    if not replay.agents:
        raise CheckpointError(f"{name} has no agent among its {len(replay.things)} objects: there is nobody to follow")
    return replay


def _read(raw: Mapping[str, Any], name: str, version: int) -> Replay:
    types = list(raw.get("type_names") or [])
    width, height = (int(size) for size in raw["map_size"][:2])
    return Replay(
        name=name,
        version=version,
        steps=int(raw["max_steps"]),
        width=width,
        height=height,
        action_names=tuple(map(str, raw.get("action_names") or ())),
        item_names=tuple(map(str, raw.get("item_names") or ())),
        things=tuple(_thing(thing, types) for thing in raw["objects"]),
        facts=_facts(raw.get("infos") or {}),
    )


def _thing(raw: Mapping[str, Any], types: Sequence[str]) -> Thing:
    is_agent = bool(raw.get("is_agent")) or "agent_id" in raw
    type_name = raw["type_name"] if "type_name" in raw else types[raw["type_id"]]
    return Thing(
        id=int(raw["id"]),
        type_name=str(_scalars(type_name).at(0)),
        location=_locations(raw["location"]),
        alive=_scalars(raw.get("alive", True), default=True),
        inventory=_inventories(raw.get("inventory", [])),
        agent=_agent(raw) if is_agent else None,
    )


def _agent(raw: Mapping[str, Any]) -> AgentSeries:
    return AgentSeries(
        agent_id=int(raw["agent_id"]),
        group=int(_scalars(raw.get("group_id", 0)).at(0)),
        window=int(_scalars(raw.get("vision_size", 11)).at(0)),
        action=_scalars(raw.get("action_id", 0)),
        succeeded=_scalars(raw.get("action_success", False), default=False),
        reward=_scalars(raw.get("current_reward", 0.0), default=0.0),
        total_reward=_scalars(raw.get("total_reward", 0.0), default=0.0),
        value=_scalars(raw[VALUE_ESTIMATE], default=None) if VALUE_ESTIMATE in raw else None,
    )


# A constant is written as its value alone, and values may be lists: what a list is, its first entry tells.


def _scalars(value: Any, default: Any = 0) -> Series:
    return _series(value, default) if isinstance(value, list) else Series((0,), (value,), default)


def _locations(value: Any) -> Series:
    if not isinstance(value[0], list):
        value = [[0, value]]
    changes = _series(value, None)
    return Series(changes.steps, tuple((int(cell[0]), int(cell[1])) for cell in changes.values), None)


def _inventories(value: Any) -> Series:
    if not value or not isinstance(value[0][1], list):
        value = [[0, value]]
    changes = _series(value, ())
    return Series(changes.steps, tuple(_items(items) for items in changes.values), ())


def _items(items: Any) -> Items:
    return tuple((int(item), int(amount)) for item, amount in items)


def _series(changes: Sequence[Any], default: Any) -> Series:
    steps = tuple(int(step) for step, _ in changes)
    if any(later <= earlier for earlier, later in pairwise(steps)):
        raise ValueError(f"changes are not in the order of steps: {str(changes)[:80]}")
    return Series(steps, tuple(value for _, value in changes), default)


def _facts(infos: Mapping[str, Any]) -> dict[str, Any]:
    """What tells this episode from others: seed and task, as far as it is set."""
    attributes = infos.get("attributes") or {}
    task = attributes.get("task")
    known = {"seed": attributes.get("seed"), **(task if isinstance(task, dict) else {})}
    return {
        name.replace("_", " "): "yes" if value is True else value
        for name, value in known.items()
        if value not in (None, False) and known.get("kind") in (None, _ONLY_OF.get(name, known.get("kind")))
    }


_ONLY_OF = {
    "altars": "navigation",
    "wrong_altar_reward": "tmaze",
    "combat": "arena",
    "shaped": "arena",
    "station": "object_use",
    "needs_input": "object_use",
}
"""Settings that other kinds of tasks have, but do not use."""
