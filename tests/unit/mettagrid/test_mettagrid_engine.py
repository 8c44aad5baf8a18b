"""Facts of the pinned engine that the package stands on. A failure after an upgrade names what changed."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from mettagrid.config.mettagrid_c_config import convert_to_cpp_game_config
from mettagrid.config.mettagrid_config import GameConfig

from metta_ray.common.errors import ConfigError, EngineFault
from metta_ray.mettagrid import engine, tasks
from metta_ray.mettagrid.curriculum.resolve import resolve_curriculum
from metta_ray.mettagrid.task_spec import STYLES, TaskSpec
from metta_ray.mettagrid.terrain import Cell

NORTH, SOUTH, WEST, EAST = 1, 2, 3, 4


def standard(kind, **changes):
    """The usual task of a kind, with fields changed."""
    return resolve_curriculum(kind, **changes).task_table().templates[0].draw(np.random.default_rng(0))


class World:
    """One engine world with buffers of its own."""

    def __init__(self, blueprint, grid, seed=0, tokens=None):
        agents = int((grid == Cell.AGENT).sum())
        self.obs = np.full((agents, tokens or blueprint.num_tokens, 3), 255, np.uint8)
        self.terminals, self.truncations = np.zeros(agents, bool), np.zeros(agents, bool)
        self.rewards, self.actions = np.zeros(agents, np.float32), np.zeros(agents, np.int32)
        self.engine = blueprint.start(grid, seed)
        blueprint.bind(self.engine, self.obs, self.terminals, self.truncations, self.rewards, self.actions)

    def step(self, *actions):
        self.actions[:] = actions
        self.engine.step()
        return self.rewards.tolist()

    def tokens(self, name, agent=0, of=None):
        """Values of a feature in an agent's observation."""
        feature = (of or NAVIGATION).vocabulary.features[name].id
        return [int(v) for location, f, v in self.obs[agent] if f == feature and location != 255]


def grid_of(*rows):
    codes = {".": 0, "#": 1, "@": 2, "a": 3, "m": 4, "g": 5, "l": 6, "r": 7}
    return np.array([[codes[cell] for cell in row] for row in rows], np.uint8)


ONE = grid_of("#####", "#@a.#", "#####")
NAVIGATION = tasks.blueprint(TaskSpec(num_agents=1, max_steps=4))
PAIR = grid_of("######", "#@@..#", "######")


def game(**changes) -> GameConfig:
    kind = {"num_agents": 1, "max_steps": 9, "window": 5, "num_tokens": 64}
    objects = {"altar": engine.source("altar", "heart", stock=1)}
    agent = engine.agent_config({"heart": engine.reward_for("heart")})
    return engine.game_config(**{**kind, "objects": objects, "agent": agent, **changes})


def test_an_altar_pays_its_heart_once():
    world = World(NAVIGATION, ONE)
    assert [world.step(EAST) for _ in range(3)] == [[1.0], [0.0], [0.0]]
    assert world.engine.get_episode_rewards().tolist() == [1.0]


def test_fact_1_the_end_of_an_episode_is_a_truncation_and_worlds_step_on():
    world = World(NAVIGATION, ONE)
    for _ in range(4):
        assert not world.truncations.any()
        world.step(0)
    assert world.truncations.all()
    assert not world.terminals.any()
    world.step(0)
    assert world.engine.current_step == 5


def test_fact_3_token_overflow_is_an_exception():
    blueprint = engine.Blueprint("tight", game(num_tokens=6))
    with pytest.raises(EngineFault, match=r"task tight: .*token budget"):
        World(blueprint, ONE)


def test_fact_4_a_process_holds_to_one_feature_table():
    other = game()
    other.obs.global_obs.last_action_move = True
    with pytest.raises(ConfigError, match="one table per process"):
        engine.Blueprint("other", other)
    short = game()
    short.resource_names = short.resource_names[:-1]
    with pytest.raises(ConfigError, match="inv:cooldown"):
        engine.Blueprint("short", short)


def test_fact_5_ids_do_not_depend_on_the_objects_of_a_task():
    vocabularies = {
        kind: tasks.blueprint(standard(kind)).vocabulary
        for kind in ("navigation", "arena", "tmaze", "sequence", "smoke")
    }
    first = vocabularies["navigation"]
    for vocabulary in vocabularies.values():
        assert vocabulary.features == first.features
        assert vocabulary.tags == first.tags
    assert first.tags == tuple(f"type:{name}" for name in engine.OBJECT_TYPES)
    assert [first.features[name].id for name in ("agent:group", "last_action", "vibe", "tag", "agent_id")] == [
        0,
        2,
        5,
        6,
        11,
    ]
    assert first.features["inv:ore_red"].id == 12
    assert first.features["inv:heart"].id == 16


def test_the_actions_are_noop_and_four_moves():
    assert NAVIGATION.action_names == ("noop", "move_north", "move_south", "move_west", "move_east")


def test_fact_6_the_last_reward_token_is_always_zero():
    world = World(NAVIGATION, ONE)
    assert world.step(EAST) == [1.0]
    assert world.tokens("last_reward") == [0]
    assert world.tokens("inv:heart") == [1]


def test_a_failed_action_shows_as_noop():
    world = World(NAVIGATION, ONE)
    world.step(EAST)
    assert world.tokens("last_action") == [EAST]
    world.step(NORTH)
    assert world.tokens("last_action") == [0]


def test_fact_7_converting_does_not_change_what_it_was_given():
    config = game(num_agents=2)
    engine.Blueprint("pair", config)
    assert not config.agents
    convert_to_cpp_game_config(config)
    assert len(config.agents) == 2  # why the blueprint converts a copy


def test_fact_8_the_engines_json_changes_capped_rewards_but_our_task_does_not():
    agent = engine.agent_config({"ore": engine.reward_for("ore_red", 0.1, most=0.2)})
    objects = {"mine": engine.source("mine", "ore_red")}
    config = game(objects=objects, agent=agent)
    through_json = GameConfig.model_validate_json(config.model_dump_json())
    grid = grid_of("####", "#@m#", "####")

    def rewards(of):
        world = World(engine.Blueprint("ore", of), grid)
        return [round(world.step(EAST)[0], 6) for _ in range(4)]

    assert rewards(config) == [0.1, 0.1, 0.0, 0.0]
    assert rewards(through_json) != rewards(config)

    spec = standard("arena", num_agents=1)
    world = World(tasks.blueprint(TaskSpec.model_validate_json(spec.model_dump_json())), grid)
    paid = [world.step(EAST)[0] for _ in range(11 * 12)]
    assert sum(paid) == pytest.approx(1.0)  # 12 ores of 0.1 each, capped


def test_fact_9_combat_blocks_then_loots():
    blueprint = tasks.blueprint(standard("arena", num_agents=2))
    world = World(blueprint, PAIR)
    heart, laser, armor = (engine.RESOURCES.index(name) for name in ("heart", "laser", "armor"))
    world.engine.set_inventory(0, {laser: 2})
    world.engine.set_inventory(1, {heart: 3, armor: 1})
    world.step(0, 0)  # what was given pays here

    blocked, hit = world.step(EAST, 0), world.step(EAST, 0)

    assert blocked == pytest.approx([-0.5, -0.5])  # a laser and an armor less
    assert hit == pytest.approx([3.0 - 0.5, -3.0])
    stats = world.engine.get_episode_stats()["agent"]
    assert (stats[0]["attack.blocked"], stats[0]["attack.hit"], stats[1]["attack.hit_by"]) == (1, 1, 1)


def test_fact_10_a_new_world_in_the_same_rows_clears_rewards_and_flags():
    world = World(NAVIGATION, ONE)
    for action in (EAST, 0, 0, 0):
        world.step(action)
    world.rewards[:], first_obs = 5, world.obs.copy()
    other = NAVIGATION.start(ONE, 1)
    NAVIGATION.bind(other, world.obs, world.terminals, world.truncations, world.rewards, world.actions)
    assert world.rewards.tolist() == [0.0]
    assert not world.truncations.any()
    assert not np.array_equal(world.obs, first_obs)
    assert not hasattr(other, "reset")


def test_same_map_seed_and_actions_are_the_same_trajectory():
    spec = TaskSpec(terrain="varied_terrain/dense_small", num_agents=4)
    grid = tasks.build_grid(spec, np.random.default_rng(0))
    worlds = [World(tasks.blueprint(spec), grid, seed=7) for _ in range(2)]
    rng = np.random.default_rng(1)
    for _ in range(100):
        actions = rng.integers(5, size=4)
        assert worlds[0].step(*actions) == worlds[1].step(*actions)
        assert np.array_equal(worlds[0].obs, worlds[1].obs)


def test_agents_are_numbered_row_by_row():
    grid = grid_of("#####", "#..@#", "#@..#", "#####")
    blueprint = tasks.blueprint(TaskSpec(num_agents=2))
    found = {
        t["agent_id"]: (t["r"], t["c"])
        for t in World(blueprint, grid).engine.grid_objects().values()
        if "agent_id" in t
    }
    assert found == {0: (1, 3), 1: (2, 1)}


def test_stray_actions_are_counted_noops_for_the_engine():
    world = World(NAVIGATION, ONE)
    world.step(99)
    assert world.engine.get_episode_stats()["agent"][0]["action.invalid_index"] > 0


@pytest.mark.parametrize("buffer", ["int64 actions", "strided obs"])
def test_buffers_of_another_layout_are_refused(buffer):
    world = World(NAVIGATION, ONE)
    obs, actions = world.obs, world.actions
    if buffer == "int64 actions":
        actions = actions.astype(np.int64)
    else:
        obs = np.zeros((1, 512, 3), np.uint8)[:, ::2]
    with pytest.raises(EngineFault, match="first observation"):
        NAVIGATION.bind(world.engine, obs, world.terminals, world.truncations, world.rewards, actions)


def test_worlds_cannot_be_pickled():
    with pytest.raises(TypeError):
        pickle.dumps(World(NAVIGATION, ONE).engine)


def test_a_location_byte_is_row_and_column_of_the_window():
    world = World(tasks.blueprint(TaskSpec(num_agents=1)), ONE)
    tag = NAVIGATION.vocabulary.features["tag"].id
    altar = NAVIGATION.vocabulary.tags.index("type:altar")
    [location] = [int(token[0]) for token in world.obs[0] if token[1] == tag and token[2] == altar and token[0] != 255]
    assert (location >> 4, location & 15) == (5, 6)  # the agent is at the centre (5, 5)


def test_line_of_sight_hides_what_is_behind_walls():
    grid = grid_of("######", "#@#a.#", "######")
    seen = {}
    for line_of_sight in (False, True):
        blueprint = tasks.blueprint(TaskSpec(num_agents=1, line_of_sight=line_of_sight))
        seen[line_of_sight] = blueprint.vocabulary.tags.index("type:altar") in World(blueprint, grid).tokens("tag")
    assert seen == {False: True, True: False}


def test_tasks_that_differ_only_in_their_maps_share_a_blueprint():
    blueprints = {
        id(tasks.blueprint(TaskSpec(terrain=f"varied_terrain/{style}_small", altars=altars)))
        for style in STYLES
        for altars in (2, 17)
    }
    assert len(blueprints) == 1


def test_importing_leaves_the_root_logger_alone():
    code = "import logging, json\nimport metta_ray.mettagrid.engine\nprint(json.dumps(logging.root.level))"
    env = {k: v for k, v in os.environ.items() if k != "METTAGRID_LOG_LEVEL"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert json.loads(out.stdout) == 30


def test_task_and_held_out_modules_load_no_engine():
    code = (
        "import sys, metta_ray.mettagrid.held_out, metta_ray.mettagrid.terrain\n"
        "sys.exit('mettagrid' in sys.modules or 'torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
