"""Policies without learning, to compare with: shortest paths with full knowledge of the map, and chance.

What the scripted policy walks to: the nearest altar that still has its heart (navigation), the good altar
(tmaze), the altar (smoke), or the next link of the chain that is not cooling down (arena, sequence, object_use:
altar with a battery in the bag, generator with ore, else mine). It stands still while there is no such place. It
neither fights nor arms itself, so in an arena with combat a policy can do better.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order

from metta_ray.mettagrid.engine import RESOURCES
from metta_ray.mettagrid.mettagrid_env import Episode, MettaGridBatch
from metta_ray.mettagrid.task_spec import INPUTS
from metta_ray.mettagrid.terrain import Cell, Grid

NOOP = 0
ALTAR_CODES = (Cell.ALTAR, Cell.GOOD_ALTAR, Cell.BAD_ALTAR)
_HEART, _LASER, _COOLDOWN = (RESOURCES.index(name) for name in ("heart", "laser", "cooldown"))


class ScriptedPolicy:
    """Call ``act`` once per step of the batch. seed: decides how agents in each other's way step aside."""

    def __init__(self, batch: MettaGridBatch, seed: int = 0) -> None:
        self._batch = batch
        self._rng = np.random.default_rng(seed)
        self._guides: list[_Guide | None] = [None] * batch.num_envs

    def act(self) -> NDArray[np.int32]:
        """Actions of all rows for the current state."""
        actions: list[int] = []
        for env, episode in enumerate(self._batch.episodes):
            guide = self._guides[env]
            if guide is None or guide.episode is not episode:
                guide = self._guides[env] = _Guide(episode, self._rng)
            actions.extend(guide.actions())
        return np.array(actions, np.int32)


class RandomPolicy:
    """Uniformly random actions."""

    def __init__(self, batch: MettaGridBatch, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._size = (batch.num_agents, len(batch.spec.action_names))

    def act(self) -> NDArray[np.int32]:
        rows, num_actions = self._size
        return self._rng.integers(num_actions, size=rows, dtype=np.int32)


class _Guide:
    """Leads the agents of one episode."""

    def __init__(self, episode: Episode, rng: np.random.Generator) -> None:
        self.episode = episode
        self._rng = rng
        self._width = episode.grid.shape[1]
        self._roads = _roads(episode.grid)
        self._kind_of_place = episode.grid.ravel()
        self._paths: list[list[int]] = [[] for _ in range(episode.task.num_agents)]  # next cell last
        self._last_cells = [-1] * episode.task.num_agents
        self._is_over = False
        by_offset = {-self._width: 1, self._width: 2, -1: 3, 1: 4}  # north, south, west, east
        self._action_of = by_offset.__getitem__

    def actions(self) -> list[int]:
        num_agents = self.episode.task.num_agents
        if self._is_over:
            return [NOOP] * num_agents
        agents: list[Any] = [None] * num_agents
        places: dict[int, dict[int, int]] = {}  # cell → inventory of the object there
        for thing in self.episode.world.grid_objects(-1, -1, -1, -1, ["wall"]).values():
            if "agent_id" in thing:
                agents[thing["agent_id"]] = thing
            else:
                places[thing["r"] * self._width + thing["c"]] = thing["inventory"]
        goals = [self._goals(agent["inventory"], places) for agent in agents]
        # A navigation map without hearts stays so; elsewhere goals may come back.
        self._is_over = self.episode.task.kind == "navigation" and not any(goals)
        return [self._lead(index, agent, goals[index]) for index, agent in enumerate(agents)]

    def _goals(self, bag: dict[int, int], places: dict[int, dict[int, int]]) -> set[int]:
        """Cells of the objects that are of use to an agent with this bag."""
        kind = self.episode.task.kind
        if kind == "navigation":
            return {cell for cell, inventory in places.items() if inventory.get(_HEART)}
        if kind == "smoke":
            return set(places)
        if kind == "tmaze":
            return set() if bag.get(_LASER) else self._of_kind(places, Cell.GOOD_ALTAR)
        chain = self.episode.task.chain
        links = (link for link in reversed(chain) if link == chain[0] or bag.get(RESOURCES.index(INPUTS[link])))
        wanted = Cell[next(links).upper()]
        return {cell for cell in self._of_kind(places, wanted) if not places[cell].get(_COOLDOWN)}

    def _of_kind(self, places: dict[int, dict[int, int]], wanted: Cell) -> set[int]:
        return {cell for cell in places if self._kind_of_place[cell] == wanted}

    def _lead(self, index: int, agent: Any, goals: set[int]) -> int:
        cell = agent["r"] * self._width + agent["c"]
        path = self._paths[index]
        stood_still, self._last_cells[index] = cell == self._last_cells[index], cell
        if path and cell == path[-1]:
            path.pop()  # the last step succeeded
        elif len(path) > 1 and stood_still and self._rng.random() < 0.5:
            self._paths[index] = []
            return int(self._rng.integers(1, 5))  # someone is in the way
        if not path or path[0] not in goals or abs(path[-1] - cell) not in (1, self._width):
            path = self._paths[index] = self._path(cell, goals)
        return self._action_of(path[-1] - cell) if path else NOOP

    def _path(self, start: int, goals: set[int]) -> list[int]:
        """The cells of a shortest path to the nearest goal, that first and the next cell last."""
        if not goals:
            return []
        order, before = breadth_first_order(self._roads, start)
        reached = np.flatnonzero(np.isin(order, np.fromiter(goals, np.int64)))
        if not len(reached):
            return []
        path = [int(order[reached[0]])]
        while before[path[-1]] != start:
            path.append(int(before[path[-1]]))
        return path


def _roads(grid: Grid) -> csr_array:
    """Directed graph over cells: from each cell without an object to its neighbours, objects included."""
    is_road = (grid == Cell.EMPTY) | (grid == Cell.AGENT)
    is_goal = is_road | (grid > Cell.AGENT)
    cells = np.arange(grid.size).reshape(grid.shape)
    starts, ends = [], []
    for here, there in (
        ((slice(None, -1), slice(None)), (slice(1, None), slice(None))),
        ((slice(None), slice(None, -1)), (slice(None), slice(1, None))),
    ):
        for one, other in ((here, there), (there, here)):
            connected = is_road[one] & is_goal[other]
            starts.append(cells[one][connected])
            ends.append(cells[other][connected])
    start, end = np.concatenate(starts), np.concatenate(ends)
    return csr_array((np.ones(len(start), np.int8), (start, end)), shape=(grid.size, grid.size))
