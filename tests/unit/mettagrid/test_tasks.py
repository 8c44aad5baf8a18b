"""Rules of tasks as the engine plays them: stations, arenas with and without combat and shaping, sizes of mazes."""

import numpy as np
import pytest

from metta_ray.envs.env_batch import SeedRoot
from metta_ray.mettagrid.held_out import fixed_table
from metta_ray.mettagrid.mettagrid_env import MettaGridBatch
from metta_ray.mettagrid.scripted import ScriptedPolicy
from metta_ray.mettagrid.task_spec import INPUTS, PRODUCTS, TaskSpec, stations_before
from metta_ray.mettagrid.tasks import build_grid
from metta_ray.mettagrid.terrain import Cell


def played(spec: TaskSpec):
    """One episode by the script: (result, kinds of rewards seen)."""
    batch = MettaGridBatch(fixed_table([spec], 1), num_envs=1, stagger=False)
    batch.reset(SeedRoot(3))
    script, rewards = ScriptedPolicy(batch), set()
    while True:
        batch.arrays.actions[:] = script.act()
        results = batch.step()
        rewards |= set(batch.arrays.rewards.round(3).tolist())
        if results:
            batch.close()
            return results[0], rewards


def station(name: str, **changes) -> TaskSpec:
    terrain = "varied_terrain/sparse_small"
    return TaskSpec(kind="object_use", station=name, num_agents=2, max_steps=100, terrain=terrain, **changes)


def test_what_comes_before_a_station():
    assert stations_before("mine") == ()
    assert stations_before("lasery") == ("mine",)
    assert stations_before("altar") == ("mine", "generator")
    assert station("altar").chain == ("altar",)
    assert station("altar", needs_input=True).chain == ("mine", "generator", "altar")
    assert TaskSpec(kind="arena", station="mine").chain == ("mine", "generator", "altar")


@pytest.mark.parametrize("name", list(PRODUCTS))
def test_a_free_station_gives_one_of_its_product_every_tenth_step(name):
    result, rewards = played(station(name))
    made = result.stats["agent"][f"{PRODUCTS[name]}.gained"]
    assert rewards == {0.0, 1.0}
    assert 6 <= made <= 10
    assert result.score == made / 10
    assert result.returns.mean() == made


@pytest.mark.parametrize("name", list(INPUTS))
def test_a_station_that_takes_something_needs_what_leads_to_it(name):
    result, rewards = played(station(name, needs_input=True))
    agent = result.stats["agent"]
    assert rewards == {0.0, 1.0}
    assert 1 <= agent[f"{PRODUCTS[name]}.gained"] <= agent["ore_red.gained"]


def test_an_arena_pays_for_hearts_only_unless_it_is_shaped():
    small = {"kind": "arena", "num_agents": 6, "max_steps": 80}
    assert played(TaskSpec(**small, shaped=False))[1] <= {float(hearts) for hearts in range(7)}
    assert any(reward == pytest.approx(0.1) for reward in played(TaskSpec(**small, combat=False))[1])


def test_an_arena_without_combat_has_no_arms():
    armed, peaceful = (
        build_grid(TaskSpec(kind="arena", num_agents=6, combat=combat), np.random.default_rng(0))
        for combat in (True, False)
    )
    for cell in (Cell.LASERY, Cell.ARMORY):
        assert (armed == cell).sum() == 1
        assert not (peaceful == cell).any()


@pytest.mark.parametrize(("height", "width"), [(None, None), (6, 7), (20, 15)])
def test_a_tmaze_has_the_size_that_is_asked_for(height, width):
    spec = TaskSpec(kind="tmaze", num_agents=1, window=5, max_steps=80, height=height, width=width)
    grid = build_grid(spec, np.random.default_rng(0))
    assert grid.shape == ((height or 8) + 2, (width or 11) + 2)
    result, _ = played(spec)
    assert result.score == 1.0
