"""The floor of environment speed: nothing but the engine, on ready-made maps.

A raw loop over engine worlds that share one slab. At an episode's end it constructs and binds the next world
from a grid that was made before the clock started. No seeds, no statistics, no scores, no final observations,
no fault handling: what any environment layer must do at least. It imports nothing of this package; maps are handed
over, so that both sides play the same ones.
"""

from __future__ import annotations

import os

os.environ.setdefault("METTAGRID_LOG_LEVEL", "WARNING")

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from mettagrid.config.action_config import ActionsConfig, ChangeVibeActionConfig
from mettagrid.config.filter import actorHas, isNot, query, targetHas
from mettagrid.config.game_value import InventoryValue
from mettagrid.config.handler_config import Handler, allOf, firstMatch
from mettagrid.config.mettagrid_c_config import convert_to_cpp_game_config, rename_map_agents
from mettagrid.config.mettagrid_config import (
    AgentConfig,
    GameConfig,
    GridObjectConfig,
    InventoryConfig,
    ResourceLimitsConfig,
    WallConfig,
)
from mettagrid.config.mutation import logActorAgentStat, queryDelta, updateActor, updateTarget, withdraw
from mettagrid.config.obs_config import ObsConfig
from mettagrid.config.reward_config import reward
from mettagrid.config.tag import typeTag
from mettagrid.mettagrid_c import MettaGrid
from numpy.typing import NDArray

Grid = NDArray[np.uint8]

_TOKENS = 256
_WINDOW = 11
_RESOURCES = ["ore_red", "battery_red", "heart", "laser", "armor", "hp", "cooldown"]
_TYPES = ["agent", "altar", "armory", "cue", "generator", "lasery", "mine", "wall"]
_COOLDOWN = 10


class Floor:
    """``num_envs`` worlds of ``agents`` agents.

    cells: name of each code that a map is made of.
    grids: each world's maps in order; every world takes the next of its own list, around the end.
    first_ends: step at which each world's first episode ends; later ones last ``max_steps``.
    """

    def __init__(
        self,
        game: GameConfig,
        cells: Sequence[str],
        grids: list[list[Grid]],
        first_ends: NDArray[np.int64],
        max_steps: int,
    ) -> None:
        num_envs, agents = len(grids), game.num_agents
        self._config, renames = convert_to_cpp_game_config(game)
        names = np.array(cells, dtype=object)
        self._maps = [[rename_map_agents(names[grid].tolist(), renames) for grid in row] for row in grids]
        rows = num_envs * agents
        self.obs = np.full((rows, _TOKENS, 3), 255, np.uint8)
        self.rewards = np.zeros(rows, np.float32)
        self.terminals = np.zeros(rows, np.bool_)
        self.truncations = np.zeros(rows, np.bool_)
        self.actions = np.zeros(rows, np.int32)
        self._rows = [slice(i * agents, (i + 1) * agents) for i in range(num_envs)]
        self._worlds: list[Any] = [None] * num_envs
        self._steps: list[Callable[[], None]] = [lambda: None] * num_envs
        self._episodes = [0] * num_envs
        self._ends = first_ends.copy()
        self._max_steps = max_steps
        self._clock = 0
        for env in range(num_envs):
            self._start(env)

    def step(self) -> None:
        for step in self._steps:
            step()
        self._clock += 1
        for env in np.flatnonzero(self._ends == self._clock):
            self._start(int(env))
            self._ends[env] += self._max_steps

    def _start(self, env: int) -> None:
        maps = self._maps[env]
        world = MettaGrid(self._config, maps[self._episodes[env] % len(maps)], env)
        rows = self._rows[env]
        world.set_buffers(
            self.obs[rows],
            self.terminals[rows],
            self.truncations[rows],
            self.rewards[rows],
            self.actions[rows],
        )
        self._worlds[env], self._steps[env] = world, world.step
        self._episodes[env] += 1


def navigation_game(agents: int, max_steps: int) -> GameConfig:
    altar = GridObjectConfig(
        name="altar",
        inventory=InventoryConfig(initial={"heart": 1}),
        on_use_handler=Handler(filters=[targetHas({"heart": 1})], mutations=[withdraw({"heart": 1})]),
    )
    return _game(agents, max_steps, {"altar": altar}, {"heart": 1.0}, {}, None)


def arena_game(agents: int, max_steps: int) -> GameConfig:
    objects = {
        "mine": _source("mine", "ore_red", None),
        "generator": _source("generator", "battery_red", "ore_red"),
        "altar": _source("altar", "heart", "battery_red"),
        "armory": _source("armory", "armor", "ore_red"),
        "lasery": _source("lasery", "laser", "ore_red"),
    }
    cool_down = [
        Handler(name=f"cool_{name}", mutations=[queryDelta(query(typeTag(name)), {"cooldown": -1})]) for name in objects
    ]
    fight = firstMatch(
        [
            Handler(
                name="blocked",
                filters=[actorHas({"laser": 1}), targetHas({"armor": 1})],
                mutations=[
                    updateActor({"laser": -1}),
                    updateTarget({"armor": -1}),
                    logActorAgentStat("blocked"),
                ],
            ),
            Handler(
                name="hit",
                filters=[actorHas({"laser": 1})],
                mutations=[
                    updateActor({"laser": -1}),
                    withdraw({"heart": -1, "battery_red": -1, "ore_red": -1}),
                    logActorAgentStat("hit"),
                ],
            ),
        ]
    )
    capped = {"ore_red": 0.1, "battery_red": 0.8, "laser": 0.5, "armor": 0.5}
    return _game(agents, max_steps, objects, {"heart": 1.0}, capped, fight, allOf(cool_down))


def _source(name: str, give: str, take: str | None) -> GridObjectConfig:
    filters: list[Any] = [isNot(targetHas({"cooldown": 1}))]
    mutations: list[Any] = [updateActor({give: 1}), updateTarget({"cooldown": _COOLDOWN})]
    if take:
        filters.append(actorHas({take: 1}))
        mutations.append(updateActor({take: -1}))
    return GridObjectConfig(name=name, on_use_handler=Handler(filters=filters, mutations=mutations))


def _game(
    agents: int,
    max_steps: int,
    objects: dict[str, Any],
    rewards: dict[str, float],
    capped: dict[str, float],
    fight: Any,
    on_tick: Any = None,
) -> GameConfig:
    pay = {item: reward(InventoryValue(item=item), weight=weight) for item, weight in rewards.items()}
    pay |= {item: reward(InventoryValue(item=item), weight=weight, max=1) for item, weight in capped.items()}
    hearts = ResourceLimitsConfig(base=255, resources=["heart"])
    return GameConfig(
        num_agents=agents,
        resource_names=_RESOURCES,
        tags=[typeTag(name) for name in _TYPES],
        max_steps=max_steps,
        episode_truncates=True,
        protocol_details_obs=False,
        obs=ObsConfig(width=_WINDOW, height=_WINDOW, num_tokens=_TOKENS),
        actions=ActionsConfig(change_vibe=ChangeVibeActionConfig(enabled=False)),
        objects={"wall": WallConfig(), **objects},
        agent=AgentConfig(
            inventory=InventoryConfig(default_limit=50, limits={"heart": hearts}),
            rewards=pay,
            on_use_handler=fight,
        ),
        on_tick=on_tick,
    )
