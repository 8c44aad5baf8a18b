import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metta_ray.common.errors import ConfigError
from metta_ray.mettagrid import terrain
from metta_ray.mettagrid.task_spec import STYLES
from metta_ray.mettagrid.terrain import Cell


def reachable(grid, start):
    """Cells that a walker from ``start`` stands on or bumps into: a flood fill, written independently."""
    seen, todo, touched = {start}, [start], set()
    while todo:
        row, column = todo.pop()
        for cell in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
            if not (0 <= cell[0] < grid.shape[0] and 0 <= cell[1] < grid.shape[1]) or cell in seen:
                continue
            if grid[cell] in (Cell.EMPTY, Cell.AGENT):
                seen.add(cell)
                todo.append(cell)
            else:
                touched.add(cell)
    return seen, touched


def cells(grid, code):
    return {tuple(cell) for cell in np.argwhere(grid == code).tolist()}


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    style=st.sampled_from(STYLES),
    side=st.integers(9, 45),
    agents=st.integers(1, 4),
    altars=st.integers(1, 12),
)
def test_every_agent_reaches_every_altar_although_altars_block(seed, style, side, agents, altars):
    grid = terrain.room(np.random.default_rng(seed), style, side, side, {Cell.ALTAR: altars}, agents)

    assert len(cells(grid, Cell.ALTAR)) == altars
    for start in cells(grid, Cell.AGENT):
        walked, touched = reachable(grid, start)
        assert cells(grid, Cell.ALTAR) <= touched
        assert cells(grid, Cell.AGENT) <= walked


@given(seed=st.integers(0, 2**32), style=st.sampled_from(STYLES))
@settings(max_examples=10, deadline=None)
def test_a_seed_is_a_map(seed, style):
    first, second = (terrain.room(np.random.default_rng(seed), style, 20, 24, {Cell.ALTAR: 4}) for _ in range(2))
    assert np.array_equal(first, second)
    assert first.shape == (20, 24)


def test_hollow_keeps_exactly_the_walls_with_a_free_neighbour():
    grid = np.full((5, 6), Cell.WALL, np.uint8)
    grid[1, 1] = Cell.ALTAR

    left = terrain.hollow(grid)

    expected = np.zeros((5, 6), np.uint8)
    expected[0:3, 0:3] = Cell.WALL
    expected[1, 1] = Cell.ALTAR
    assert np.array_equal(left, expected)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), style=st.sampled_from(STYLES))
def test_hollowing_changes_nothing_that_a_walker_can_touch(seed, style):
    room = terrain.room(np.random.default_rng(seed), style, 20, 20, {Cell.ALTAR: 3})
    solid = np.pad(room, 1, constant_values=Cell.WALL)
    start = next(iter(cells(solid, Cell.AGENT)))

    assert reachable(terrain.hollow(solid), start) == reachable(solid, start)


def test_tiles_have_a_border_of_one_and_single_walls_between():
    grid = terrain.tiled([np.full((3, 4), Cell.ALTAR, np.uint8)] * 3)

    assert grid.shape == (1 + 3 + 1 + 3 + 1, 1 + 4 + 1 + 4 + 1)
    assert (grid[:, 0] == Cell.WALL)[:8].all()
    assert (grid[0:9, 5] == Cell.WALL).all()
    assert (grid[1:4, 6:10] == Cell.ALTAR).all()
    assert (grid[6:8, 7:10] == Cell.EMPTY).all()  # the missing fourth piece is solid, so hollow


def test_joined_tiles_have_no_wall_between():
    grid = terrain.tiled([np.full((3, 3), Cell.ALTAR, np.uint8)] * 4, gap=0)
    assert grid.shape == (8, 8)
    assert (grid[1:7, 1:7] == Cell.ALTAR).all()


def test_too_many_altars_are_refused_with_the_remedy():
    with pytest.raises(ConfigError, match=r"30 altar.*fewer or a larger room"):
        terrain.room(np.random.default_rng(0), "sparse", 5, 5, {Cell.ALTAR: 30})


def test_the_cue_of_the_tmaze_points_to_the_good_altar():
    sides = set()
    for seed in range(8):
        grid = terrain.tmaze(np.random.default_rng(seed))
        good, bad = (np.argwhere(grid == code)[0][1] for code in (Cell.GOOD_ALTAR, Cell.BAD_ALTAR))
        assert (good < bad) == bool((grid == Cell.CUE_LEFT).any())
        assert (good > bad) == bool((grid == Cell.CUE_RIGHT).any())
        sides.add(good < bad)
    assert sides == {True, False}


def test_mazes_are_perfect_before_doors_are_cut():
    """A spanning tree over its rooms: as many free cells as rooms plus passages, all connected."""
    for number in range(3):
        walls = terrain._maze_paths(9, 13, number)
        rooms = 4 * 6
        assert (~walls).sum() == rooms + (rooms - 1)
        walked, _ = reachable(np.where(walls, Cell.WALL, Cell.EMPTY), (1, 1))
        assert len(walked) == (~walls).sum()
