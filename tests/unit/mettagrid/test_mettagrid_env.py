import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metta_ray.agent import spec_json
from metta_ray.common.errors import CheckpointError, ConfigError, EnvironmentFault, UsageError
from metta_ray.envs.env_batch import BatchArrays, SeedRoot
from metta_ray.envs.env_spec import TokenSpace
from metta_ray.envs.tasks import TaskList, TaskTable
from metta_ray.mettagrid import tasks
from metta_ray.mettagrid.curriculum.resolve import resolve_curriculum
from metta_ray.mettagrid.held_out import ALTAR_BINS, fixed_table, held_out_tasks
from metta_ray.mettagrid.mettagrid_env import MettaGridBatch, mettagrid_spec
from metta_ray.mettagrid.scripted import RandomPolicy, ScriptedPolicy
from metta_ray.mettagrid.task_spec import STYLES, TERRAINS, FixedTask, TaskSpec

SMALL = TaskSpec(terrain="varied_terrain/sparse_small", altars=4, max_steps=20)


def standard(kind, **changes):
    """The usual task of a kind, with fields changed."""
    return resolve_curriculum(kind, **changes).task_table().templates[0].draw(np.random.default_rng(0))


def table_of(*specs):
    templates = tuple(FixedTask(spec, f"task-{index}") for index, spec in enumerate(specs))
    return TaskTable(1, templates, np.full(len(specs), 1 / len(specs)))


def batch_of(*specs, seed=0, num_envs=3, **options):
    batch = MettaGridBatch(table_of(*specs), num_envs=num_envs, **options)
    batch.reset(SeedRoot(seed))
    return batch


def play(batch, steps, policy=None):
    policy = policy or RandomPolicy(batch)
    results = []
    for _ in range(steps):
        batch.arrays.actions[:] = policy.act()
        results += batch.step()
    return results


def state_of(batch):
    return {name: array.copy() for name, array in vars(batch.arrays).items() if name != "final_obs"}


def assert_same_state(one, other):
    for name, array in state_of(one).items():
        assert np.array_equal(array, getattr(other.arrays, name)), name


# --- what it is --------------------------------------------------------------------------------------------


def test_the_spec_names_task_spaces_and_actions():
    spec = mettagrid_spec(TaskSpec())
    assert spec.name == "mettagrid:navigation"
    assert (spec.obs_shape, spec.obs_dtype, spec.agents_per_env) == ((256, 3), np.uint8, 4)
    assert spec.action_names[1] == "move_north"
    assert spec.action_space.n == 5
    assert (spec.vocabulary.height, spec.vocabulary.width) == (11, 11)


def test_observations_may_be_stored_without_padding_here_and_where_the_spec_arrives_as_json():
    """A learner knows the environment from JSON alone; were one of them wrong, their buffers would not fit together."""
    spec = mettagrid_spec(TaskSpec())
    for one in (spec, spec_json.from_json(json.loads(json.dumps(spec_json.to_json(spec))))):
        assert isinstance(one.observation_space, TokenSpace)
        assert one.observation_space == spec.observation_space


@pytest.mark.parametrize(
    ("kind", "agents", "tokens"),
    [("navigation", 4, 256), ("arena", 24, 256), ("tmaze", 1, 80), ("sequence", 4, 256), ("smoke", 1, 32)],
)
def test_every_kind_runs_to_its_end_under_random_actions(kind, agents, tokens):
    spec = standard(kind, max_steps=15)
    batch = batch_of(spec, num_envs=2, stagger=False)

    results = play(batch, 15)

    assert batch.arrays.obs.shape == (2 * agents, tokens, 3)
    assert [(r.length, r.truncated, r.terminated, r.reported) for r in results] == [(15, True, False, True)] * 2
    assert all(0 <= r.score <= 1 and r.returns.shape == (agents,) for r in results)
    assert {"agent", "game", "attributes"} == set(results[0].stats)
    json.dumps(results[0].stats)


def test_it_binds_to_arrays_of_its_owner():
    spec = mettagrid_spec(SMALL)
    arrays = BatchArrays.allocate(spec, 12)
    batch = MettaGridBatch(table_of(SMALL), num_envs=2, arrays=arrays.rows(4, 12))
    batch.reset(SeedRoot(0))
    play(batch, 3)
    assert (arrays.obs[:4] == 0).all()
    assert (arrays.obs[4:, 0, 0] == 0xFE).all()


def test_tasks_of_another_layout_are_refused_by_name():
    table = TaskTable(
        1,
        (FixedTask(SMALL, "a"), FixedTask(SMALL.model_copy(update={"window": 7}), "wide")),
        np.array([1.0, 0.0]),
    )
    batch = MettaGridBatch(table, num_envs=1)
    batch.set_tasks(TaskTable(2, table.templates, np.array([0.0, 1.0])))
    with pytest.raises(ConfigError, match=r"task wide .*\(4, 7, 112\).*\(4, 11, 256\)"):
        batch.reset(SeedRoot(0))


@pytest.mark.parametrize("action", [5, -1, 99])
def test_an_action_that_does_not_exist_is_refused_before_anything_moves(action):
    batch = batch_of(SMALL)
    before = batch.arrays.obs.copy()
    batch.arrays.actions[7] = action
    with pytest.raises(ValueError, match=f"action {action} of row 7 .*move_north"):
        batch.step()
    assert np.array_equal(before, batch.arrays.obs)


def test_stepping_before_reset_says_so():
    with pytest.raises(UsageError, match="call reset first"):
        MettaGridBatch(table_of(SMALL), num_envs=1).snapshot()
    with pytest.raises(UsageError, match="call reset first"):
        MettaGridBatch(table_of(SMALL), num_envs=1).step()


# --- seeds -------------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**63),
    one=st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50)),
    other=st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50)),
)
def test_k18_seeds_of_two_episodes_are_equal_only_if_they_are_the_same(seed, one, other):
    words = [tuple(SeedRoot(seed, rank).episode(env, episode).generate_state(4)) for rank, env, episode in (one, other)]
    assert (words[0] == words[1]) == (one == other)


def test_k18_no_two_episodes_of_a_batch_share_a_map_or_an_engine_seed():
    batch = batch_of(SMALL.model_copy(update={"max_steps": 2}), num_envs=4, stagger=False)
    maps, seeds = set(), set()
    for _ in range(5):
        maps |= {episode.grid.tobytes() for episode in batch.episodes}
        seeds |= {episode.engine_seed for episode in batch.episodes}
        play(batch, 2)
    assert len(maps) == len(seeds) == 20


def test_the_same_seed_is_the_same_run_and_another_is_not():
    batches = [batch_of(SMALL, seed=seed) for seed in (5, 5, 6)]
    results = [play(batch, 50) for batch in batches]
    assert_same_state(batches[0], batches[1])
    assert [r.seed for r in results[0]] == [r.seed for r in results[1]]
    assert not np.array_equal(batches[0].arrays.obs, batches[2].arrays.obs)


def test_environments_do_not_depend_on_how_they_are_batched():
    whole = batch_of(SMALL, num_envs=4)
    parts = [batch_of(SMALL, num_envs=2, first_env=first) for first in (0, 2)]
    rng = np.random.default_rng(0)
    for _ in range(45):
        actions = rng.integers(5, size=16)
        whole.arrays.actions[:] = actions
        parts[0].arrays.actions[:], parts[1].arrays.actions[:] = actions[:8], actions[8:]
        ended = whole.step()
        assert [r.env_index for r in ended] == [r.env_index for part in parts for r in part.step()]
    assert np.array_equal(whole.arrays.obs, np.concatenate([part.arrays.obs for part in parts]))


def test_a_fixed_map_stays_while_the_engine_seed_changes():
    spec = SMALL.model_copy(update={"map_seed": (1, 2), "max_steps": 2})
    batch = batch_of(spec, num_envs=2, stagger=False)
    grid, seed = batch.episodes[0].grid, batch.episodes[0].engine_seed
    play(batch, 2)
    assert np.array_equal(grid, batch.episodes[0].grid)
    assert np.array_equal(grid, batch.episodes[1].grid)
    assert seed != batch.episodes[0].engine_seed


# --- ends --------------------------------------------------------------------------------------------------


def test_k3_the_observation_after_an_end_is_the_first_of_the_next_episode():
    batch = batch_of(SMALL, num_envs=2, stagger=False)
    play(batch, 19)
    before = batch.arrays.obs.copy()
    completion = batch.spec.vocabulary.features["episode_completion_pct"].id

    results = play(batch, 1)

    arrays = batch.arrays
    assert len(results) == 2
    assert arrays.truncations.all()
    assert not arrays.terminals.any()
    assert (arrays.obs[:, 0] == [0xFE, completion, 0]).all()
    assert (arrays.final_obs[:, 0, :2] == [0xFE, completion]).all()
    assert (arrays.final_obs[:, 0, 2] >= before[:, 0, 2]).all()
    assert batch.episodes[0].number == 1

    play(batch, 1)
    assert not arrays.truncations.any()


def test_the_reward_of_the_last_step_survives_the_reset():
    spec = standard("smoke", max_steps=12, map_seed=(3,))
    batch = batch_of(spec, num_envs=1, stagger=False)
    policy = ScriptedPolicy(batch)
    play(batch, 11, policy)
    [result] = play(batch, 1, policy)
    assert batch.arrays.rewards.tolist() == [1.0]
    assert batch.arrays.truncations.tolist() == [True]
    assert result.returns[0] == result.stats["agent"]["heart.gained"] > 5


def test_final_obs_equals_what_a_longer_episode_would_have_shown():
    """The true last observation: up to the share of completion, that of the same world without the limit."""
    short, long = (
        batch_of(SMALL.model_copy(update={"max_steps": steps, "map_seed": (9,)}), stagger=False) for steps in (5, 200)
    )
    play(short, 5)
    play(long, 5)
    assert np.array_equal(short.arrays.final_obs[:, 1:], long.arrays.obs[:, 1:])


def test_first_episodes_are_cut_at_different_steps_and_not_reported():
    spec = SMALL.model_copy(update={"max_steps": 200})
    batch = batch_of(spec, num_envs=16)

    results = play(batch, 400)

    first = [r for r in results if r.episode == 0]
    second = [r for r in results if r.episode == 1]
    assert all(1 <= r.length <= 200 and r.truncated for r in first)
    assert not any(r.reported for r in first if r.length < 200)
    assert len({r.length for r in first}) > 10
    assert all(r.length == 200 and r.reported for r in second)


def test_tasks_are_drawn_by_weight_at_each_start_and_new_tables_act():
    other = SMALL.model_copy(update={"altars": 2})
    table = table_of(SMALL, other)
    batch = MettaGridBatch(table, num_envs=2, stagger=False)
    batch.reset(SeedRoot(1))
    batch.set_tasks(TaskTable(2, table.templates, np.array([0.0, 1.0])))
    results = play(batch, 60)
    assert {r.task_id for r in results if r.episode > 0} == {"task-1"}


def test_a_task_list_is_played_in_order_around_the_end():
    templates = [FixedTask(SMALL, str(i)) for i in range(5)]
    table = TaskList.of(templates, num_envs=2)
    rng = np.random.default_rng(0)
    played = [table.draw(rng, env, episode)[0] for episode in range(4) for env in range(2)]
    assert played == ["0", "1", "2", "3", "4", "0", "1", "2"]


# --- statistics and scores ---------------------------------------------------------------------------------


def test_statistics_mirror_the_engine_and_count_absent_ones_as_zero():
    batch = batch_of(SMALL, num_envs=1, stagger=False)
    [result] = play(batch, 20, lambda_policy(batch, 0))
    agent, game, attributes = (result.stats[name] for name in ("agent", "game", "attributes"))
    assert agent["action.noop.success"] == 20
    assert agent["action.move.success"] == agent["heart.gained"] == 0
    assert game["objects.altar"] == 16
    assert not [name for name in game if name.startswith("objects.agent")]
    assert attributes["map_w"] == attributes["map_h"] == 43
    assert (attributes["steps"], attributes["max_steps"]) == (20, 20)


def lambda_policy(batch, action):
    class Always:
        def act(self):
            return np.full(batch.num_agents, action, np.int32)

    return Always()


@pytest.mark.parametrize("style", STYLES)
def test_the_scripted_policy_takes_every_heart_in_every_style(style):
    spec = TaskSpec(terrain=f"varied_terrain/{style}_small", altars=8, max_steps=500)
    batch = batch_of(spec, num_envs=2, stagger=False)
    results = play(batch, 500, ScriptedPolicy(batch))
    assert [r.score for r in results] == [1.0, 1.0]
    assert [r.returns.tolist() for r in results] == [[8.0] * 4] * 2


def test_agents_in_a_shared_room_share_its_hearts():
    spec = TaskSpec(terrain="varied_terrain/sparse_small", altars=8, max_steps=200, shared_room=True)
    batch = batch_of(spec, num_envs=2, stagger=False)
    results = play(batch, 200, ScriptedPolicy(batch))
    assert [r.returns.sum() for r in results] == [8.0, 8.0]
    assert [r.score for r in results] == [1.0, 1.0]


def test_rooms_of_the_users_size():
    batch = batch_of(SMALL.model_copy(update={"width": 12, "height": 9}), num_envs=1)
    assert batch.episodes[0].grid.shape == (9 + 9 + 3, 12 + 12 + 3)


def test_the_tmaze_pays_for_the_right_arm_and_charges_for_the_wrong_one():
    batch = batch_of(standard("tmaze"), num_envs=8, stagger=False)
    right = play(batch, 60, ScriptedPolicy(batch))
    assert all(r.returns[0] == 1.0 and r.score == 1.0 and r.stats["agent"]["success"] == 1 for r in right)

    swapped = batch_of(standard("tmaze", map_seed=(1,)), num_envs=1, stagger=False)
    policy = ScriptedPolicy(swapped)
    first_turn = {3: 4, 4: 3}
    actions = []
    for _ in range(60):
        swapped.arrays.actions[:] = policy.act()
        actions.append(int(swapped.arrays.actions[0]))
        swapped.step()
    mirrored = [first_turn.get(action, action) for action in actions]
    for wrong_pays in (-0.5, -1.0):
        batch = batch_of(
            standard("tmaze", map_seed=(1,), wrong_altar_reward=wrong_pays),
            num_envs=1,
            stagger=False,
        )
        for action in mirrored:
            batch.arrays.actions[:] = action
            results = batch.step()
        assert results[0].returns.tolist() == [wrong_pays]
        stats = results[0].stats["agent"]
        assert (results[0].score, stats["success"], stats["touched"]) == (0.0, 0.0, 1.0)


def test_only_the_first_altar_counts_as_success_in_the_tmaze():
    """Wrong arm first, then the whole crossbar to the right one."""
    batch = batch_of(standard("tmaze", map_seed=(1,)), num_envs=1, stagger=False)
    good_is_left = bool((batch.episodes[0].grid == 8).any())
    wrong, right = (4, 3) if good_is_left else (3, 4)
    for action in [1] * 6 + [wrong] * 8 + [right] * 46:
        batch.arrays.actions[:] = action
        results = batch.step()
    assert results[0].returns.tolist() == [0.5]
    assert results[0].score == 0.0


def test_the_chain_of_the_sequence_makes_hearts():
    batch = batch_of(
        standard("sequence", max_steps=150, num_agents=2, terrain="varied_terrain/sparse_small"),
        num_envs=2,
        stagger=False,
    )
    results = play(batch, 150, ScriptedPolicy(batch))
    assert all(r.stats["agent"]["heart.gained"] >= 1 for r in results)
    assert all(0.3 < r.score < 1 for r in results)


def test_the_arena_has_24_agents_in_one_hall_and_pays_along_the_chain():
    batch = batch_of(standard("arena", max_steps=60), num_envs=1, stagger=False)
    grid = batch.episodes[0].grid
    assert grid.shape == (52, 52)
    assert (grid == 2).sum() == 24
    [result] = play(batch, 60, ScriptedPolicy(batch))
    assert result.stats["agent"]["ore_red.gained"] > 0.5
    assert result.stats["agent"]["heart.gained"] > 0
    assert result.returns.mean() > 0.5


# --- faults ------------------------------------------------------------------------------------------------


def test_a_world_that_overflows_its_tokens_is_rebuilt_and_its_rows_are_masked(monkeypatch):
    """13 tokens suffice in the corner of an empty smoke room, not in its middle."""
    monkeypatch.setattr(tasks, "num_tokens", lambda spec: 13)
    monkeypatch.setattr("metta_ray.mettagrid.mettagrid_env.MAX_FAULTS_IN_A_ROW", 10_000)
    tasks._blueprint.cache_clear()
    try:
        batch = batch_of(standard("smoke", max_steps=50), num_envs=4, stagger=False)
        policy, seen_in_a_step, faults = RandomPolicy(batch), 0, batch.faults
        numbers = [episode.number for episode in batch.episodes]
        for _ in range(200):
            batch.arrays.actions[:] = policy.act()
            results = batch.step()
            ended = {result.env_index for result in results}
            for env in range(4):
                if not batch.arrays.masks[env]:
                    seen_in_a_step += 1
                    assert env not in ended
                    assert batch.arrays.truncations[env]
                    assert not batch.arrays.terminals[env]
                    assert batch.arrays.rewards[env] == 0
                    assert batch.arrays.obs[env, 0, 0] == 0xFE
                    assert (batch.arrays.final_obs[env] == 0xFF).all()
                    assert batch.episodes[env].number > numbers[env]
            numbers = [episode.number for episode in batch.episodes]
        assert seen_in_a_step > 0
        assert batch.faults >= faults + seen_in_a_step
    finally:
        tasks._blueprint.cache_clear()


def test_three_faults_in_a_row_of_a_task_stop_the_run_by_name(monkeypatch):
    monkeypatch.setattr(tasks, "num_tokens", lambda spec: 3)
    tasks._blueprint.cache_clear()
    try:
        batch = MettaGridBatch(table_of(SMALL), num_envs=1)
        with pytest.raises(EnvironmentFault, match="task task-0 failed 3 times in a row"):
            batch.reset(SeedRoot(0))
    finally:
        tasks._blueprint.cache_clear()


def test_a_fault_is_counted_in_the_next_result_and_forgiven_by_a_finished_episode():
    batch = batch_of(SMALL, num_envs=2, stagger=False)

    def fail():
        raise RuntimeError("something broke in the engine")

    for round_number in range(4):  # more than three faults, but never three in a row
        play(batch, 10)
        batch._world_steps[1] = fail
        play(batch, 1)
        assert batch.arrays.masks.tolist() == [True] * 4 + [False] * 4
        assert batch.faults == round_number + 1
        results = play(batch, 20)
        assert [r.stats["attributes"]["env_faults"] for r in results if r.env_index == 1] == [1]
        play(batch, 9)


# --- snapshots ---------------------------------------------------------------------------------------------


def through_files(state):
    """What a checkpoint does to a tree: JSON for scalars, arrays kept."""
    if isinstance(state, dict):
        assert all(isinstance(key, str) for key in state)
        return {key: through_files(value) for key, value in state.items()}
    if isinstance(state, list):
        return [through_files(value) for value in state]
    return state.copy() if isinstance(state, np.ndarray) else json.loads(json.dumps(state))


@settings(max_examples=8, deadline=None)
@given(steps=st.integers(0, 70), kind=st.sampled_from(["navigation", "arena", "tmaze", "smoke"]))
def test_a_restored_batch_continues_exactly(steps, kind):
    specs = [standard(kind, max_steps=limit, altars=2) for limit in (25, 40)]
    table = table_of(*specs)
    batch = MettaGridBatch(table, num_envs=3, first_env=2)
    batch.reset(SeedRoot(11, rank=1))
    play(batch, steps)

    state = through_files(batch.snapshot())
    restored = MettaGridBatch(table, num_envs=3, first_env=2)
    restored.restore(state)

    assert_same_state(batch, restored)
    ended = batch.arrays.truncations
    assert np.array_equal(batch.arrays.final_obs[ended], restored.arrays.final_obs[ended])
    for _ in range(60):
        actions = np.random.default_rng(steps).integers(5, size=batch.num_agents)
        batch.arrays.actions[:] = restored.arrays.actions[:] = actions
        mine, theirs = batch.step(), restored.step()
        assert_same_state(batch, restored)
        assert [(r.seed, r.score, r.length, r.task_id, r.reported) for r in mine] == [
            (r.seed, r.score, r.length, r.task_id, r.reported) for r in theirs
        ]
        assert [r.stats for r in mine] == [r.stats for r in theirs]


def test_a_snapshot_of_another_layout_is_refused():
    state = batch_of(SMALL, num_envs=2).snapshot()
    with pytest.raises(CheckpointError, match="2 environments and 8 agents, this batch 3 and 12"):
        MettaGridBatch(table_of(SMALL), num_envs=3).restore(state)


def test_a_snapshot_whose_replay_leads_elsewhere_is_refused():
    batch = batch_of(SMALL, num_envs=2, stagger=False)
    play(batch, 10)
    state = batch.snapshot()
    state["episodes"][0]["actions"][3] = (state["episodes"][0]["actions"][3] + 1) % 5
    with pytest.raises(CheckpointError, match="other observations"):
        MettaGridBatch(table_of(SMALL), num_envs=2).restore(state)


def test_a_snapshot_of_a_task_that_does_not_fit_is_refused():
    state = batch_of(SMALL, num_envs=2).snapshot()
    state["episodes"][1]["task"]["window"] = 7
    with pytest.raises(CheckpointError, match=r"environment 1, episode 0, task task-0 cannot be replayed"):
        MettaGridBatch(table_of(SMALL), num_envs=2).restore(state)


# --- the fixed evaluation set ------------------------------------------------------------------------------


def test_the_held_out_set_is_four_maps_of_each_of_64_buckets():
    specs = held_out_tasks()
    assert len(specs) == len({spec.map_seed for spec in specs}) == 256
    for terrain in TERRAINS:
        for fewest, most in ALTAR_BINS:
            altars = [s.altars for s in specs if s.terrain == terrain and fewest <= s.altars <= most]
            assert altars == [fewest, fewest + 1, fewest + 2, most]
    assert np.mean([spec.altars for spec in specs]) == 9.5


def test_the_scripted_policy_takes_every_heart_of_held_out_maps():
    specs = [s for s in held_out_tasks() if s.terrain.endswith("_small")][::8]
    batch = MettaGridBatch(fixed_table(specs, len(specs)), num_envs=len(specs), stagger=False)
    batch.reset(SeedRoot(0))
    results = play(batch, 1000, ScriptedPolicy(batch))
    assert all(r.score == 1.0 for r in results)
