"""Seeded maps: rooms of several styles with agents and things in them, and the T-maze.

A grid is a uint8 array ``(rows, columns)`` of cell codes; ``CELLS`` names them. Every function draws only
from the generator it is given, so a seed means the same map on every machine; the golden test holds their
hashes, and a change of the hashes is a change of every recorded result.

Walls that touch no free cell are left out (``hollow``): nobody can reach or bump into them, but each would
cost an object, a token in every window that sees it, and construction time.
"""

from __future__ import annotations

from enum import IntEnum
from functools import cache
from math import ceil, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label

from metta_ray.common.errors import ConfigError

Grid = NDArray[np.uint8]
Mask = NDArray[np.bool_]


class Cell(IntEnum):
    EMPTY = 0
    WALL = 1
    AGENT = 2
    ALTAR = 3
    MINE = 4
    GENERATOR = 5
    LASERY = 6
    ARMORY = 7
    CUE_LEFT = 8
    CUE_RIGHT = 9
    GOOD_ALTAR = 10
    BAD_ALTAR = 11


# Names that the engine configurations of ``tasks`` use for the codes, by code.
CELLS = (
    *("empty", "wall", "agent.agent", "altar", "mine", "generator", "lasery", "armory"),
    *("cue_left", "cue_right", "good_altar", "bad_altar"),
)

# Obstacles per 60 x 60 cells: blocks, mazes, crosses, single walls; and the fewest of each in a small room.
_DENSITY = {
    "sparse": ((2, 1, 1, 4), (1, 0, 0, 1)),
    "balanced": ((5, 4, 4, 6), (1, 1, 1, 1)),
    "dense": ((11, 7, 9, 50), (2, 1, 2, 6)),
    "maze": ((0, 14, 0, 1), (0, 1, 0, 0)),
}
_REFERENCE_AREA = 3600
_MAZES_PER_SIZE = 32
_STYLED_TRIES = 50
_LAYOUT_TRIES = 100
_FOUR_NEIGHBOURS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.bool_)
_PLACEMENT_TRIES = 20


def hollow(grid: Grid) -> Grid:
    """The grid without the walls that have no free cell among their eight neighbours."""
    free = grid != Cell.WALL
    near = free.copy()  # two passes of shifts: a 3 x 3 dilation, several times faster than the general one
    near[1:] |= free[:-1]
    near[:-1] |= free[1:]
    seen = near.copy()
    seen[:, 1:] |= near[:, :-1]
    seen[:, :-1] |= near[:, 1:]
    return np.where(seen, grid, np.uint8(Cell.EMPTY))


# --- walls of one room -------------------------------------------------------------------------------------


@cache
def _maze_paths(height: int, width: int, number: int) -> Mask:
    """Walls of a perfect maze (both sides odd) without doors, from a fixed library of mazes.

    Carving takes far longer than everything else in a map; with 32 mazes of each size, four mirrorings and
    eight random doors the library is not noticed.
    """
    rng = np.random.default_rng([height, width, number])
    walls = np.ones((height, width), np.bool_)
    walls[1, 1] = False
    trail = [(1, 1)]
    while trail:
        row, column = trail[-1]
        steps = [
            (row + down, column + right)
            for down, right in ((2, 0), (-2, 0), (0, 2), (0, -2))
            if 0 < row + down < height - 1 and 0 < column + right < width - 1 and walls[row + down, column + right]
        ]
        if not steps:
            trail.pop()
            continue
        to_row, to_column = steps[rng.integers(len(steps))]
        walls[to_row, to_column] = walls[(row + to_row) // 2, (column + to_column) // 2] = False
        trail.append((to_row, to_column))
    walls.setflags(write=False)
    return walls


def _maze(rng: np.random.Generator, height: int, width: int) -> Mask:
    """Walls of a maze with two doors on each side, at odd places so that they meet a corridor."""
    number, flips, *doors = rng.integers((_MAZES_PER_SIZE, 4) + (width // 2,) * 4 + (height // 2,) * 4).tolist()
    walls = _maze_paths(height, width, number)[:: 1 - 2 * (flips & 1), :: 1 - (flips & 2)].copy()
    walls[[0, 0, -1, -1], [1 + 2 * door for door in doors[:4]]] = False
    walls[[1 + 2 * door for door in doors[4:]], [0, 0, -1, -1]] = False
    return walls


def _places(rng: np.random.Generator, count: int, sides: NDArray[np.int64], room: tuple[int, int]) -> list[list[int]]:
    """Upper left corners at which rectangles of the given sides ``(count, 2)`` fit into the room."""
    corners: list[list[int]] = rng.integers(np.array(room) - sides + 1, size=(count, 2)).tolist()
    return corners


def _parallel_walls(rng: np.random.Generator, height: int, width: int) -> Mask:
    """Pairs of parallel walls with a lane of one to three cells between them, no two pairs touching."""
    walls = np.zeros((height, width), np.bool_)
    longest = min(30, height - 2, width - 2)
    count = 60 * height * width // _REFERENCE_AREA + 6
    lengths = rng.integers(3, max(4, longest), count)
    lanes = rng.integers(1, min(4, longest), count)
    lies = rng.random(count) < 0.5
    sides = np.where(lies[:, None], np.stack([lanes + 2, lengths], 1), np.stack([lengths, lanes + 2], 1))
    for (tall, wide), (row, column), across in zip(
        sides.tolist(), _places(rng, count, sides, (height, width)), lies.tolist(), strict=True
    ):
        if walls[max(0, row - 1) : row + tall + 1, max(0, column - 1) : column + wide + 1].any():
            continue
        if across:
            walls[[row, row + tall - 1], column : column + wide] = True
        else:
            walls[row : row + tall, [column, column + wide - 1]] = True
    return walls


def room_walls(rng: np.random.Generator, style: str, height: int, width: int) -> Mask:
    """Walls inside a room, True where one stands; the wall around the room is not part of it.

    style: one of ``STYLES``, ``bare`` (none) or ``strewn`` (single walls on a sixteenth of the cells).
    """
    if style == "bare":
        return np.zeros((height, width), np.bool_)
    if style == "strewn" or min(height, width) < 9:  # too small for any other shape
        walls = np.zeros((height, width), np.bool_)
        walls.flat[rng.integers(walls.size, size=walls.size // 16)] = True
        return walls
    if style == "cylinder-world":
        return _parallel_walls(rng, height, width)
    usual, least = np.array(_DENSITY[style])
    drawn = rng.integers((0.7 * usual).astype(int), (1.3 * usual).astype(int) + 1)
    counts = np.maximum(least, (drawn * (height * width / _REFERENCE_AREA)).astype(int))
    num_blocks, num_mazes, num_crosses, num_singles = counts.tolist()
    walls = np.zeros((height, width), np.bool_)

    # Mazes first: they write their corridors too, everything later only adds walls.
    largest_maze = min(22, height - 2, width - 2)
    sides = rng.integers(min(9, largest_maze), largest_maze + 1, (num_mazes, 2))
    sides = np.where(sides % 2 == 0, sides - 1, sides)
    for (tall, wide), (row, column) in zip(
        sides.tolist(), _places(rng, num_mazes, sides, (height, width)), strict=True
    ):
        walls[row : row + tall, column : column + wide] = _maze(rng, tall, wide)
    sides = rng.integers(2, max(3, min(11, height // 3, width // 3)), (num_blocks, 2))
    for (tall, wide), (row, column) in zip(
        sides.tolist(), _places(rng, num_blocks, sides, (height, width)), strict=True
    ):
        walls[row : row + tall, column : column + wide] = True
    arms = rng.integers(2, 5, (num_crosses, 1))
    for (arm,), (row, column) in zip(
        arms.tolist(), _places(rng, num_crosses, 2 * arms + 1, (height, width)), strict=True
    ):
        walls[row : row + 2 * arm + 1, column + arm] = True
        walls[row + arm, column : column + 2 * arm + 1] = True
    walls.flat[rng.integers(walls.size, size=num_singles)] = True
    return walls


# --- rooms with agents and things --------------------------------------------------------------------------


def _all_reachable(walls: Mask, agents: NDArray[np.int64], things: NDArray[np.int64]) -> bool:
    """Whether the agents can meet and walk up to each thing when the things themselves stand in the way.

    agents, things: cells as positions in the flattened room.
    """
    blocked = np.ones((walls.shape[0] + 2, walls.shape[1] + 2), np.bool_)
    blocked[1:-1, 1:-1] = walls
    width = blocked.shape[1]
    agent_cells, thing_cells = (
        (cells // walls.shape[1] + 1) * width + cells % walls.shape[1] + 1 for cells in (agents, things)
    )
    blocked.flat[thing_cells] = True
    regions = label(~blocked, _FOUR_NEIGHBOURS)[0].ravel()
    home = regions[agent_cells[0]]
    around_things = regions[thing_cells[:, None] + np.array([-width, -1, 1, width])]
    return bool((regions[agent_cells] == home).all() and (around_things == home).any(axis=1).all())


def room(
    rng: np.random.Generator, style: str, height: int, width: int, things: dict[Cell, int], agents: int = 1
) -> Grid:
    """A room with so many of each thing, all of which every agent can reach (agents are no obstacles here).

    A small room that is too full for its style's walls gets none. ConfigError where even that does not do.
    """
    codes = np.repeat(np.array([Cell.AGENT, *things], np.uint8), [agents, *things.values()])
    for attempt in range(_LAYOUT_TRIES):
        walls = room_walls(rng, style if attempt < _STYLED_TRIES else "bare", height, width)
        regions = label(~walls, _FOUR_NEIGHBOURS)[0].ravel()
        sizes = np.bincount(regions)
        sizes[0] = 0  # the walls
        free = np.flatnonzero(regions == sizes.argmax())
        if len(free) < 2 * len(codes):
            continue
        for _ in range(_PLACEMENT_TRIES):
            picked = rng.choice(free, len(codes), replace=False)
            if _all_reachable(walls, picked[:agents], picked[agents:]):
                grid = walls.astype(np.uint8)
                grid.flat[picked] = codes
                return grid
    wanted = ", ".join(f"{count} {CELLS[thing]}" for thing, count in things.items())
    raise ConfigError(
        f"a {style} room of {height}x{width} cells cannot hold {wanted} so that {agents} agent(s) reach "
        f"them all; use fewer or a larger room"
    )


def tiled(pieces: list[Grid], gap: int = 1) -> Grid:
    """Pieces of one shape in a near-square arrangement, walled in, ``gap`` wall cells between them."""
    columns = ceil(sqrt(len(pieces)))
    lines = -(-len(pieces) // columns)
    height, width = pieces[0].shape
    grid = np.full((lines * (height + gap) - gap + 2, columns * (width + gap) - gap + 2), Cell.WALL, np.uint8)
    for index, piece in enumerate(pieces):
        row, column = 1 + index // columns * (height + gap), 1 + index % columns * (width + gap)
        grid[row : row + height, column : column + width] = piece
    return hollow(grid)


def tmaze(rng: np.random.Generator, corridor: int = 6, width: int = 11) -> Grid:
    """A corridor that leads north from the agent and its cue to a crossbar with an altar at each end."""
    grid = np.full((corridor + 2, width), Cell.WALL, np.uint8)
    middle = width // 2
    good_is_left = bool(rng.integers(2))
    grid[1:, middle] = Cell.EMPTY
    grid[1, 1:-1] = Cell.EMPTY
    grid[-1, middle] = Cell.AGENT
    grid[-1, middle - 1] = Cell.CUE_LEFT if good_is_left else Cell.CUE_RIGHT
    grid[1, 1], grid[1, -2] = (Cell.GOOD_ALTAR, Cell.BAD_ALTAR) if good_is_left else (Cell.BAD_ALTAR, Cell.GOOD_ALTAR)
    return grid
