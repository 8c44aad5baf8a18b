"""The engine's door: the only module that imports the PyPI package ``mettagrid`` (pinned, contract tested).

What the rest of the package must not know: engine configurations, their conversion, the engine's exceptions,
and that observation ids live in a process-wide table of the engine. Each world that is constructed rewrites
that table, so all worlds of a process must agree on it; ``Blueprint`` refuses the first that does not.
"""

from __future__ import annotations

import os

# The package installs a root log handler at level INFO on import, unless told otherwise.
os.environ.setdefault("METTAGRID_LOG_LEVEL", "WARNING")

from dataclasses import dataclass
from typing import Any

import numpy as np
from mettagrid.config.action_config import ActionsConfig, ChangeVibeActionConfig
from mettagrid.config.filter import actorHas, isNot, query, targetHas
from mettagrid.config.game_value import InventoryValue
from mettagrid.config.handler_config import Handler, allOf, firstMatch
from mettagrid.config.mettagrid_c_config import convert_to_cpp_game_config
from mettagrid.config.mettagrid_config import (
    AgentConfig,
    AnyGridObjectConfig,
    GameConfig,
    GridObjectConfig,
    InventoryConfig,
    ResourceLimitsConfig,
    WallConfig,
)
from mettagrid.config.mutation import (
    logActorAgentStat,
    logTargetAgentStat,
    queryDelta,
    updateActor,
    updateTarget,
    withdraw,
)
from mettagrid.config.obs_config import ObsConfig
from mettagrid.config.reward_config import AgentReward, reward
from mettagrid.config.tag import typeTag
from mettagrid.mettagrid_c import MettaGrid
from numpy.typing import NDArray

from metta_ray.common.errors import ConfigError, EngineFault
from metta_ray.envs.env_spec import Feature, TokenVocabulary
from metta_ray.mettagrid.terrain import CELLS, Cell, Grid

# Ids in observations are positions in these two lists, whatever a task uses of them. Never reorder. (Tag ids
# are alphabetical, so the second is, too.)
RESOURCES = ("ore_red", "battery_red", "heart", "laser", "armor", "hp", "cooldown")
OBJECT_TYPES = ("agent", "altar", "armory", "cue", "generator", "lasery", "mine", "wall")


# --- building blocks of games ------------------------------------------------------------------------------


def game_config(
    *,
    num_agents: int,
    max_steps: int,
    window: int,
    num_tokens: int,
    objects: dict[str, AnyGridObjectConfig],
    agent: AgentConfig,
    cooling: tuple[str, ...] = (),
    line_of_sight: bool = False,
) -> GameConfig:
    """A game in the canonical vocabulary. The end of an episode is a truncation.

    objects: by the cell name of ``terrain.CELLS``. cooling: object types whose cooldown runs down by 1 per
    env step. line_of_sight: walls hide what is behind them.
    """
    cool_down = [
        Handler(name=f"cool_down_{name}", mutations=[queryDelta(query(typeTag(name)), {"cooldown": -1})])
        for name in cooling
    ]
    return GameConfig(
        num_agents=num_agents,
        resource_names=list(RESOURCES),
        tags=[typeTag(name) for name in OBJECT_TYPES],
        max_steps=max_steps,
        episode_truncates=True,
        protocol_details_obs=False,
        obs=ObsConfig(width=window, height=window, num_tokens=num_tokens),
        actions=ActionsConfig(change_vibe=ChangeVibeActionConfig(enabled=False)),
        objects={"wall": WallConfig(blocks_vision=line_of_sight), **objects},
        agent=agent,
        on_tick=allOf(cool_down) if cool_down else None,
    )


def agent_config(rewards: dict[str, AgentReward], *, fights: bool = False) -> AgentConfig:
    """An agent that carries up to 255 hearts and 50 of everything else."""
    hearts = ResourceLimitsConfig(base=255, resources=["heart"])
    bag = InventoryConfig(default_limit=50, limits={"heart": hearts})
    return AgentConfig(inventory=bag, rewards=rewards, on_use_handler=_fight() if fights else None)


def reward_for(item: str, weight: float = 1.0, most: float | None = None) -> AgentReward:
    """Pays ``weight`` per unit held (and takes it back with the unit), at most ``most`` in all."""
    return reward(InventoryValue(item=item), weight=weight, max=most)


def source(
    name: str, give: str, *, take: str | None = None, cooldown: int = 0, stock: int | None = None
) -> GridObjectConfig:
    """An object that hands ``give`` to an agent that walks into it, for one ``take`` if set.

    cooldown: env steps between two uses. stock: how many it holds (visible in observations); None: no limit.
    """
    filters: list[Any] = []
    mutations: list[Any] = []
    if take is not None:
        filters.append(actorHas({take: 1}))
        mutations.append(updateActor({take: -1}))
    if stock is None:
        mutations.append(updateActor({give: 1}))
    else:
        filters.append(targetHas({give: 1}))
        mutations.append(withdraw({give: 1}))
    if cooldown:
        filters.append(isNot(targetHas({"cooldown": 1})))
        mutations.append(updateTarget({"cooldown": cooldown}))
    inventory = InventoryConfig(initial={} if stock is None else {give: stock})
    return GridObjectConfig(
        name=name, inventory=inventory, on_use_handler=Handler(filters=filters, mutations=mutations)
    )


def cue(cell: str, vibe: int) -> GridObjectConfig:
    """A sign that differs from others of its kind only in its vibe."""
    return GridObjectConfig(name="cue", map_name=cell, vibe=vibe)


def choice(cell: str, give: str, others: tuple[str, ...], stat: str) -> GridObjectConfig:
    """An altar that looks like every other altar (one heart) but turns its heart into ``give``.

    Counts agent statistic ``stat`` if the agent holds none of ``others`` yet: its first choice.
    """
    pay: list[Any] = [updateTarget({"heart": -1}), updateActor({give: 1})]
    first = [isNot(actorHas({other: 1})) for other in others]
    handler = firstMatch(
        [
            Handler(
                name="first",
                filters=[targetHas({"heart": 1}), *first],
                mutations=[*pay, logActorAgentStat(stat)],
            ),
            Handler(name="later", filters=[targetHas({"heart": 1})], mutations=pay),
        ]
    )
    inventory = InventoryConfig(initial={"heart": 1})
    return GridObjectConfig(name="altar", map_name=cell, inventory=inventory, on_use_handler=handler)


def _fight() -> Any:
    """When one agent walks into another: it spends a laser; armor blocks the hit, else it takes all loot."""
    blocked = Handler(
        name="blocked",
        filters=[actorHas({"laser": 1}), targetHas({"armor": 1})],
        mutations=[
            updateActor({"laser": -1}),
            updateTarget({"armor": -1}),
            logActorAgentStat("attack.blocked"),
        ],
    )
    hit = Handler(
        name="hit",
        filters=[actorHas({"laser": 1})],
        mutations=[
            updateActor({"laser": -1}),
            withdraw({"heart": -1, "battery_red": -1, "ore_red": -1}),  # -1: all there is
            logActorAgentStat("attack.hit"),
            logTargetAgentStat("attack.hit_by"),
        ],
    )
    return firstMatch([blocked, hit])


# --- one feature table per process -------------------------------------------------------------------------


@dataclass(frozen=True)
class ObsProfile:
    """What gives the bytes of observations their meaning; one per process."""

    features: tuple[tuple[int, str, float], ...]
    tags: tuple[str, ...]

    @classmethod
    def of(cls, game: GameConfig) -> ObsProfile:
        ids = game.id_map()
        features = tuple((f.id, f.name, float(f.normalization)) for f in ids.features())
        return cls(features, tuple(ids.tag_names()))


_process_profile: ObsProfile | None = None


def _hold_to_one_profile(profile: ObsProfile) -> None:
    """Raises ConfigError for a profile other than the first of this process."""
    global _process_profile
    if _process_profile is None:
        _process_profile = profile
    if profile != _process_profile:
        ours, theirs = (set(p.features) | set(p.tags) for p in (_process_profile, profile))
        raise ConfigError(
            f"this process observes with another feature table; entries that differ: "
            f"{sorted(map(str, ours ^ theirs))}; the engine keeps one table per process, so run such a task "
            f"in a process of its own"
        )


# --- worlds ------------------------------------------------------------------------------------------------


class Blueprint:
    """An engine configuration, converted once; any number of episodes on any grids start from it."""

    def __init__(self, name: str, game: GameConfig) -> None:
        """name: what faults are reported under. Raises ConfigError for another observation profile."""
        profile = ObsProfile.of(game)
        _hold_to_one_profile(profile)
        self.name = name
        self.game = game
        self.num_agents = game.num_agents
        self.num_tokens = game.obs.num_tokens
        self.action_names = tuple(action.name for action in game.actions.actions())
        self.vocabulary = TokenVocabulary(
            features={name: Feature(id, normalization) for id, name, normalization in profile.features},
            tags=profile.tags,
            height=game.obs.height,
            width=game.obs.width,
        )
        # The conversion fills in the configuration that it is given, hence the copy.
        self._cpp, self._agent_cells = convert_to_cpp_game_config(game.model_copy(deep=True))

    def start(self, grid: Grid, seed: int) -> MettaGrid:
        """A new world. seed: 32 bits, for the order in which agents act. May raise EngineFault."""
        try:
            return MettaGrid(self._cpp, self.cell_names(grid), seed)
        except Exception as error:
            raise self.fault("constructing the world", error) from error

    def bind(self, world: MettaGrid, *buffers: NDArray[Any]) -> None:
        """Binds observations, terminals, truncations, rewards and actions; writes the first observation."""
        try:
            world.set_buffers(*buffers)
        except Exception as error:
            raise self.fault("writing the first observation", error) from error

    def fault(self, doing: str, error: Exception) -> EngineFault:
        return EngineFault(
            f"task {self.name}: the engine failed while {doing}: {error}; "
            f"if it speaks of its token budget, use a smaller window or fewer objects"
        )

    def cell_names(self, grid: Grid) -> list[list[str]]:
        """The engine's form of a grid. Agents are numbered row by row."""
        names: list[list[str]] = _CELL_NAMES[grid].tolist()
        per_agent = self._agent_cells.get(CELLS[Cell.AGENT])
        if per_agent:
            for name, (row, column) in zip(per_agent, np.argwhere(grid == Cell.AGENT).tolist(), strict=True):
                names[row][column] = name
        return names


# An array of references: picking from it makes no new strings.
_CELL_NAMES = np.array(CELLS, dtype=object)
