"""Replays: the same as the engine's own writer makes, from the same map, seed and actions."""

import gzip
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from mettagrid.config.mettagrid_config import MettaGridConfig
from mettagrid.map_builder.ascii import AsciiMapBuilderConfig
from mettagrid.simulator import Simulator
from mettagrid.simulator.replay_log_writer import ReplayLogWriter

from metta_ray.common.errors import CheckpointError
from metta_ray.envs.env_batch import SeedRoot
from metta_ray.envs.registry import MettaGridFactory
from metta_ray.mettagrid import tasks
from metta_ray.mettagrid.held_out import fixed_table
from metta_ray.mettagrid.replay_source import ReplaySource
from metta_ray.mettagrid.task_spec import TaskSpec
from metta_ray.sim.replay import ReplayRecorder, read_replay

STEPS = 40
NAVIGATION = TaskSpec(terrain="varied_terrain/sparse_small", altars=6, max_steps=STEPS)
ARENA = TaskSpec(kind="arena", num_agents=24, max_steps=STEPS)


def our_replay(task: TaskSpec, actions: np.ndarray, folder: Path) -> tuple[dict, object]:
    batch = MettaGridFactory("mettagrid:x", table=fixed_table([task], 1), stagger=False).build(1)
    batch.reset(SeedRoot(5))
    episode = batch.episodes[0]
    recorder = ReplayRecorder(ReplaySource(episode))
    for step_actions in actions:
        batch.arrays.actions[:] = step_actions
        batch.step()
        recorder.record(batch.arrays.rewards)
    path = recorder.write(folder / "ours.json.z")
    batch.close()
    return read_replay(path), episode


def engine_replay(task: TaskSpec, episode, actions: np.ndarray, folder: Path) -> dict:
    blueprint = tasks.blueprint(task)
    names = blueprint.cell_names(episode.grid)
    symbols = {name: chr(ord("A") + index) for index, name in enumerate(sorted({n for row in names for n in row}))}
    builder = AsciiMapBuilderConfig(
        map_data=[[symbols[name] for name in row] for row in names],
        char_to_map_name={symbol: name for name, symbol in symbols.items()},
    )
    game = blueprint.game.model_copy(deep=True)
    game.map_builder = builder
    simulator = Simulator()
    writer = ReplayLogWriter(str(folder))
    simulator.add_event_handler(writer)
    simulation = simulator.new_simulation(MettaGridConfig(game=game), episode.engine_seed)
    for step_actions in actions:
        simulation._c_sim.actions()[:] = step_actions
        simulation.step()
    (path,) = writer.get_written_replay_paths()
    return json.loads(zlib.decompress(Path(path).read_bytes()))


@pytest.mark.parametrize("task", [NAVIGATION, ARENA], ids=["navigation", "arena"])
def test_a_replay_equals_the_one_of_the_engines_own_writer(task, tmp_path):
    actions = np.random.default_rng(3).integers(5, size=(STEPS, task.num_agents)).astype(np.int32)

    ours, episode = our_replay(task, actions, tmp_path)
    theirs = engine_replay(task, episode, actions, tmp_path)

    assert ours.keys() == theirs.keys()
    for key in ours.keys() - {"objects", "infos", "mg_config"}:
        assert ours[key] == theirs[key], key
    # Binding to buffers writes one observation more.
    game, their_game = (
        {name: value for name, value in one["infos"]["game"].items() if not name.startswith("tokens_")}
        for one in (ours, theirs)
    )
    assert game == their_game
    assert ours["infos"]["agent"] == pytest.approx(theirs["infos"]["agent"])
    assert ours["infos"]["episode_rewards"] == theirs["infos"]["episode_rewards"]
    ours_by_id, theirs_by_id = ({thing["id"]: thing for thing in one["objects"]} for one in (ours, theirs))
    assert ours_by_id.keys() == theirs_by_id.keys()
    agents = 0
    for number, thing in ours_by_id.items():
        # The engine's writer calls every window 13 cells wide.
        expected = {**theirs_by_id[number]}
        if thing.get("is_agent"):
            agents += 1
            assert expected.pop("vision_size") == 13
            assert thing.pop("vision_size") == task.window
        assert thing == expected
    assert agents == task.num_agents


def test_walls_are_constants_and_agents_have_series(tmp_path):
    actions = np.random.default_rng(0).integers(1, 5, size=(STEPS, 4)).astype(np.int32)

    replay, _ = our_replay(NAVIGATION, actions, tmp_path)

    walls = [thing for thing in replay["objects"] if thing["type_name"] == "wall"]
    agents = [thing for thing in replay["objects"] if thing.get("is_agent")]
    assert all(np.shape(wall["location"]) == (2,) for wall in walls)
    for agent in agents:
        steps = [step for step, _ in agent["location"]]
        assert steps == sorted(set(steps))
        assert steps[0] == 0
        assert steps[-1] < STEPS
    assert replay["max_steps"] == STEPS


def test_the_file_is_small(tmp_path):
    our_replay(NAVIGATION, np.zeros((STEPS, 4), np.int32), tmp_path)

    assert (tmp_path / "ours.json.z").stat().st_size < 40_000


def test_a_file_that_is_no_replay_is_refused_by_name(tmp_path):
    (tmp_path / "x.json.z").write_bytes(b"nothing")

    with pytest.raises(CheckpointError, match=r"x\.json\.z is no readable replay"):
        read_replay(tmp_path / "x.json.z")


class FakeSource:
    """Two things: a stone that vanishes at step 1, a plant that appears at step 2."""

    num_agents = 1
    static_types = ("wall",)

    def __init__(self) -> None:
        self.step = -1

    def header(self) -> dict:
        return {"version": 4}

    def objects(self, rewards, total_rewards, *, with_static):
        self.step += 1
        if self.step == 0:
            yield {"id": 1, "alive": True, "type_name": "stone", "location": [0, 0]}
        if self.step == 2:
            yield {"id": 2, "alive": True, "type_name": "plant", "location": [3, 4]}

    def infos(self, total_rewards) -> dict:
        return {"episode_rewards": total_rewards.tolist()}


def test_what_vanishes_dies_and_what_appears_was_not_alive_before():
    recorder = ReplayRecorder(FakeSource())

    for reward in (1.0, 0.5, 0.0):
        recorder.record(np.array([reward], np.float32))

    stone, plant = recorder.replay()["objects"]
    assert stone == {"id": 1, "alive": [[0, True], [1, False]], "type_name": "stone", "location": [0, 0]}
    assert plant["alive"] == [[0, False], [2, True]]
    assert plant["location"] == [[0, []], [2, [3, 4]]]
    assert recorder.replay()["infos"] == {"episode_rewards": [1.5]}


def test_value_estimates_are_kept_of_agents_that_have_one(tmp_path):
    batch = MettaGridFactory("mettagrid:x", table=fixed_table([NAVIGATION], 1), stagger=False).build(1)
    batch.reset(SeedRoot(5))
    recorder = ReplayRecorder(ReplaySource(batch.episodes[0]))
    for values in ([0.123456, np.nan, 2.0, 2.0], [0.25, np.nan, 2.0, -1.0]):
        batch.step()
        recorder.record(batch.arrays.rewards, np.array(values, np.float32))
    batch.close()

    agents = [thing for thing in recorder.replay()["objects"] if thing.get("is_agent")]

    by_id = {agent["agent_id"]: agent.get("value_estimate") for agent in agents}
    assert by_id == {0: [[0, 0.1235], [1, 0.25]], 1: None, 2: 2.0, 3: [[0, 2.0], [1, -1.0]]}


@pytest.mark.parametrize("pack", [zlib.compress, gzip.compress, bytes], ids=["zlib", "gzip", "plain"])
def test_a_replay_may_be_packed_in_any_of_three_ways(pack, tmp_path):
    (tmp_path / "x.json.z").write_bytes(pack(b' {"version": 4}'))

    assert read_replay(tmp_path / "x.json.z") == {"version": 4}
