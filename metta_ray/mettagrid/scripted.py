"""Policies without learning, to compare with: shortest paths with full knowledge of the map, and chance.

What the scripted policy walks to: the nearest altar that still has its heart (navigation), the good altar
(tmaze), the altar (smoke), or the next link of the chain that is not cooling down (arena, sequence, object_use:
altar with a battery in the bag, generator with ore, else mine). It stands still while there is no such place. It
neither fights nor arms itself, so in an arena with combat a policy can do better.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order

from metta_ray.mettagrid.engine import OBJECT_TYPES, RESOURCES
from metta_ray.mettagrid.mettagrid_env import Episode, MettaGridBatch
from metta_ray.mettagrid.task_spec import INPUTS, TaskSpec
from metta_ray.mettagrid.terrain import Cell, Grid, Mask

NOOP = 0
ALTAR_CODES = (Cell.ALTAR, Cell.GOOD_ALTAR, Cell.BAD_ALTAR)
ANYTHING, NOTHING = "anything", "nothing"
SEARCHES = 256
"""So many are remembered of each episode: agents plan from the same cells again and again."""

UNREACHED = np.iinfo(np.int32).max
_HEART, _LASER, _COOLDOWN = (RESOURCES.index(name) for name in ("heart", "laser", "cooldown"))
_INPUT_OF = {link: RESOURCES.index(resource) for link, resource in INPUTS.items()}


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
    """Leads the agents of one episode.

    Objects neither move nor vanish, so where they are is read off the map once; what they hold is asked of the engine
    at every step, and only of those whose contents decide.
    """

    def __init__(self, episode: Episode, rng: np.random.Generator) -> None:
        self.episode = episode
        self._rng = rng
        self._width = episode.grid.shape[1]
        self._roads = _roads(episode.grid)
        self._search = lru_cache(SEARCHES)(self._search_from)
        self._cells_of = {kind: _cells(episode.grid == kind) for kind in Cell if kind > Cell.AGENT}
        self._objects = _cells(episode.grid > Cell.AGENT)
        watched = _watched_types(episode.task)
        self._ignored = [kind for kind in OBJECT_TYPES if kind not in watched]
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
        contents: dict[int, dict[int, int]] = {}  # cell → inventory of the object there
        for thing in self.episode.world.grid_objects(-1, -1, -1, -1, self._ignored).values():
            if "agent_id" in thing:
                agents[thing["agent_id"]] = thing
            else:
                contents[thing["r"] * self._width + thing["c"]] = thing["inventory"]
        places = self._useful_places(contents)
        goals = [places[self._wanted(agent["inventory"])] for agent in agents]
        # A navigation map without hearts stays so; elsewhere goals may come back.
        self._is_over = self.episode.task.kind == "navigation" and not any(goals)
        return [self._lead(index, agent, goals[index]) for index, agent in enumerate(agents)]

    def _useful_places(self, contents: dict[int, dict[int, int]]) -> dict[str, frozenset[int]]:
        """Cells by what an agent may want there, see ``_wanted``."""
        task = self.episode.task
        if task.kind == "navigation":
            return {ANYTHING: frozenset(cell for cell, inventory in contents.items() if inventory.get(_HEART))}
        if task.kind == "smoke":
            return {ANYTHING: self._objects}
        if task.kind == "tmaze":
            return {ANYTHING: self._cells_of[Cell.GOOD_ALTAR], NOTHING: frozenset()}
        return {
            link: frozenset(cell for cell in self._cells_of[Cell[link.upper()]] if not contents[cell].get(_COOLDOWN))
            for link in task.chain
        }

    def _wanted(self, bag: dict[int, int]) -> str:
        """What is of use to an agent with this bag: a link of the chain, or anything there is."""
        task = self.episode.task
        if task.kind in ("navigation", "smoke"):
            return ANYTHING
        if task.kind == "tmaze":
            return NOTHING if bag.get(_LASER) else ANYTHING
        first = task.chain[0]
        return next(link for link in reversed(task.chain) if link == first or bag.get(_INPUT_OF[link]))

    def _lead(self, index: int, agent: Any, goals: frozenset[int]) -> int:
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

    def _path(self, start: int, goals: frozenset[int]) -> list[int]:
        """The cells of a shortest path to the nearest goal, that first and the next cell last."""
        if not goals:
            return []
        rank, before = self._search(start)
        nearest = min(goals, key=rank.__getitem__)
        if rank[nearest] == UNREACHED:
            return []
        path = [nearest]
        while before[path[-1]] != start:
            path.append(int(before[path[-1]]))
        return path

    def _search_from(self, start: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Of every cell: when a breadth-first search reaches it, and from where."""
        order, before = breadth_first_order(self._roads, start)
        rank = np.full(len(before), UNREACHED, np.int32)
        rank[order] = np.arange(len(order), dtype=np.int32)
        return rank, before


def _cells(where: Mask) -> frozenset[int]:
    return frozenset(np.flatnonzero(where).tolist())


def _watched_types(task: TaskSpec) -> set[str]:
    """Object types whose state the script needs to know."""
    if task.kind == "navigation":
        return {"agent", "altar"}
    return {"agent"} if task.kind in ("smoke", "tmaze") else {"agent", *task.chain}


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
    # As float64, which searches would turn it into every time.
    return csr_array((np.ones(len(start)), (start, end)), shape=(grid.size, grid.size))
