"""A seed means the same map for ever. If these fail, recorded results and checkpoints no longer hold."""

import hashlib

import numpy as np
import pytest

from metta_ray.mettagrid.held_out import held_out_tasks
from metta_ray.mettagrid.task_spec import TERRAINS, TaskSpec
from metta_ray.mettagrid.tasks import build_grid


def digest(grid):
    return hashlib.sha256(repr(grid.shape).encode() + grid.tobytes()).hexdigest()[:12]


NAVIGATION = {
    "terrain_maps_nohearts": "300974672ab5",
    "varied_terrain/balanced_large": "33a090610ccb",
    "varied_terrain/balanced_medium": "05ee45db730b",
    "varied_terrain/balanced_small": "c28829b04682",
    "varied_terrain/sparse_large": "54c91b5cd3ca",
    "varied_terrain/sparse_medium": "73d58a805565",
    "varied_terrain/sparse_small": "5234f768e3d2",
    "varied_terrain/dense_large": "903c750c6725",
    "varied_terrain/dense_medium": "963b8ee37580",
    "varied_terrain/dense_small": "df3a05873c79",
    "varied_terrain/maze_large": "f737a00774fe",
    "varied_terrain/maze_medium": "1097be410a38",
    "varied_terrain/maze_small": "2d68b7232f52",
    "varied_terrain/cylinder-world_large": "412cff2cb268",
    "varied_terrain/cylinder-world_medium": "8fec48f6569d",
    "varied_terrain/cylinder-world_small": "e5951f166970",
}
OTHER = {
    "arena": "30255229eba3",
    "tmaze": "71658751abc9",
    "sequence": "ddc8edbfda55",
    "smoke": "269cc6448324",
}
HELD_OUT = "842ae321c02b067a"


@pytest.mark.parametrize("terrain", TERRAINS)
def test_navigation_maps(terrain):
    assert digest(build_grid(TaskSpec(terrain=terrain), np.random.default_rng(2024))) == NAVIGATION[terrain]


@pytest.mark.parametrize("kind", OTHER)
def test_maps_of_other_kinds(kind):
    spec = TaskSpec(kind=kind, num_agents=2)
    assert digest(build_grid(spec, np.random.default_rng(2024))) == OTHER[kind]


def test_held_out_maps():
    total = hashlib.sha256()
    for spec in held_out_tasks()[::5]:
        total.update(build_grid(spec, np.random.default_rng(0)).tobytes())
    assert total.hexdigest()[:16] == HELD_OUT
