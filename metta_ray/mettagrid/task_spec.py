"""One concrete MettaGrid task as plain scalars: what travels between processes and names a task.

Engine configurations are built from it where the environment runs. They never travel as JSON, because the
engine's own JSON round trip changes capped rewards.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, field_validator

STYLES = ("balanced", "sparse", "dense", "maze", "cylinder-world")
SIZES = {"small": 20, "medium": 40, "large": 70}
# "terrain_maps_nohearts" was a set of ready-made maps that was never published: here, medium rooms, each of a
# random style.
MIXED_TERRAIN = "terrain_maps_nohearts"
TERRAINS = (
    MIXED_TERRAIN,
    *(f"varied_terrain/{style}_{size}" for style in STYLES for size in ("large", "medium", "small")),
)

Kind = Literal["navigation", "arena", "tmaze", "sequence", "object_use", "smoke"]
Station = Literal["mine", "generator", "altar", "lasery", "armory"]
# What a station makes, and what it takes for it.
PRODUCTS: dict[Station, str] = {
    "mine": "ore_red",
    "generator": "battery_red",
    "altar": "heart",
    "lasery": "laser",
    "armory": "armor",
}
INPUTS: dict[Station, str] = {
    "generator": "ore_red",
    "altar": "battery_red",
    "lasery": "ore_red",
    "armory": "ore_red",
}


class TaskSpec(BaseModel):
    """A task of one kind; fields that a kind does not use keep their defaults.

    kind: ``navigation`` (reach altars, one heart each), ``arena`` (ore → battery → heart, combat), ``tmaze``
        (a cue at the start tells which arm pays), ``sequence`` (the arena's chain, one per room, no combat),
        ``object_use`` (one station in a room), ``smoke`` (one altar in a 5×5 room, without limit).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind = "navigation"
    num_agents: int = Field(default=4, ge=1, le=255)
    max_steps: int = Field(default=1000, ge=1, description="env steps per episode; the end is a truncation")
    window: int = Field(default=11, ge=3, le=15, description="side of the observed square in cells; odd")
    terrain: str = Field(default="varied_terrain/balanced_medium", description="style and size of rooms")
    width: int | None = Field(default=None, ge=5, le=200, description="room width in cells instead of the terrain's")
    height: int | None = Field(default=None, ge=5, le=200, description="room height in cells instead of the terrain's")
    shared_room: bool = Field(default=False, description="all agents in one room instead of a room for each")
    altars: int = Field(default=8, ge=1, le=64, description="altars per room")
    wrong_altar_reward: float = Field(default=-0.5, description="tmaze: reward of the wrong arm")
    combat: bool = Field(default=True, description="arena: with lasers, armour and robbery")
    shaped: bool = Field(default=True, description="arena: what leads to hearts pays, too")
    station: Station = Field(default="altar", description="object_use: what is to be used")
    needs_input: bool = Field(default=False, description="object_use: what it takes must be fetched, not free")
    line_of_sight: bool = Field(default=False, description="walls hide what is behind them")
    map_seed: tuple[NonNegativeInt, ...] | None = Field(
        default=None, description="always this map, not a new one per episode"
    )

    @field_validator("window")
    @classmethod
    def _window_is_odd(cls, window: int) -> int:
        if window % 2 == 0:
            raise ValueError(f"window={window} has no centre cell; nearest: {window - 1} or {window + 1}")
        return window

    @field_validator("terrain")
    @classmethod
    def _terrain_is_known(cls, terrain: str) -> str:
        if terrain not in TERRAINS:
            raise ValueError(f"terrain={terrain!r} is unknown; known: {', '.join(TERRAINS)}")
        return terrain

    @property
    def chain(self) -> tuple[Station, ...]:
        """Stations that lead to the one of the task, in the order of their use."""
        target: Station = self.station if self.kind == "object_use" else "altar"
        return (*stations_before(target), target) if self.needs_input or self.kind != "object_use" else (target,)

    @property
    def digest(self) -> str:
        """12 hex digits that name this task everywhere."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]


def stations_before(station: Station) -> tuple[Station, ...]:
    """``altar`` → mine, generator."""
    if station not in INPUTS:
        return ()
    maker = next(name for name, product in PRODUCTS.items() if product == INPUTS[station])
    return (*stations_before(maker), maker)


def num_tokens(spec: TaskSpec) -> int:
    """Tokens of an observation: more than were ever seen; padding costs the engine nothing.

    The most seen at 11 x 11 is 80 of these 256. A world that needs more than there are fails and is rebuilt.
    """
    cells = spec.window**2
    if spec.kind == "smoke":
        return cells + 7
    if spec.kind == "tmaze":
        return 3 * cells + 5
    return 2 * cells + 14


@dataclass(frozen=True)
class FixedTask:
    """A task template that always draws the same task."""

    spec: TaskSpec
    task_id: str

    def draw(self, rng: np.random.Generator) -> TaskSpec:
        del rng
        return self.spec
