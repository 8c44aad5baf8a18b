import json

import numpy as np
import pytest

from metta_ray.bench import env_bench
from metta_ray.bench.__main__ import main
from metta_ray.bench.machine import describe_machine
from metta_ray.envs.env_batch import SeedRoot
from metta_ray.mettagrid.held_out import fixed_table
from metta_ray.mettagrid.mettagrid_env import MettaGridBatch
from metta_ray.mettagrid.task_spec import TaskSpec


def small_workload(name, agents):
    specs = [
        TaskSpec(
            kind=name,
            num_agents=agents,
            max_steps=30,
            terrain="varied_terrain/dense_small",
            map_seed=(index,),
        )
        for index in range(8)
    ]
    return env_bench.Workload(name, 4, agents, specs)


@pytest.mark.parametrize(("name", "agents"), [("navigation", 4), ("arena", 1)])
def test_floor_and_batch_do_exactly_the_same_work(name, agents):
    """Same observations and rewards through several resets (alone in a room, order cannot matter)."""
    load = small_workload(name, agents)
    batch = MettaGridBatch(fixed_table(load.specs, load.num_envs), num_envs=load.num_envs)
    batch.reset(SeedRoot(0))
    loop = env_bench.floor_of(load, batch)
    rng = np.random.default_rng(0)
    num_ended = 0
    for _ in range(100):
        batch.arrays.actions[:] = loop.actions[:] = rng.integers(5, size=load.rows)
        ended = batch.step()
        loop.step()
        assert np.array_equal(batch.arrays.obs, loop.obs)
        for env in {0, 1, 2, 3} - {result.env_index for result in ended}:
            rows = slice(env * agents, (env + 1) * agents)
            assert np.array_equal(batch.arrays.rewards[rows], loop.rewards[rows])
        num_ended += len(ended)
    assert num_ended >= 12


def test_a_comparison_reports_rates_ratio_and_goal(monkeypatch):
    monkeypatch.setattr(env_bench, "ROUND_STEPS", 5)
    row = env_bench.compare_with_floor(small_workload("navigation", 4), seconds=0)
    assert row["rounds"] == 3
    assert row["ours"] > 0
    assert row["floor"] > 0
    assert row["goal_ratio"] == 0.9


def test_the_command_prints_a_table_and_writes_json(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(env_bench, "ROUND_STEPS", 2)
    monkeypatch.setattr(env_bench, "navigation_workload", lambda: small_workload("navigation", 4))
    monkeypatch.setattr(env_bench, "arena_workload", lambda: small_workload("arena", 1))
    workers = {
        "one_worker": 100,
        "two_workers": 190,
        "ratio": 1.9,
        "goal_ratio": 1.6,
        "workload": "",
        "rounds": 3,
    }
    monkeypatch.setattr(env_bench, "compare_workers", lambda seconds: workers)

    assert main(["env", "--seconds", "0", "--json", str(tmp_path / "bench.json")]) == 0

    assert "navigation" in capsys.readouterr().out
    result = json.loads((tmp_path / "bench.json").read_text())
    assert {"machine", "one_core", "workers"} == set(result)


def test_the_machine_description_names_processor_and_versions():
    machine = describe_machine()
    assert machine["cores"] >= 1
    assert machine["packages"]["mettagrid"] == "0.26.22"
