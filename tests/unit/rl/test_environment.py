"""``Environment(...)``: every argument acts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from metta_ray.common.errors import ConfigError
from metta_ray.envs.multiprocess_vecenv import MultiprocessVecEnv
from metta_ray.envs.registry import resolve_env
from metta_ray.envs.serial_vecenv import SerialVecEnv
from metta_ray.mettagrid.task_spec import TaskSpec
from metta_ray.rl.environment import Environment, _sizes

BUCKETED = "/env/mettagrid/curriculum/navigation/bucketed"
SMOKE = {"kind": "smoke", "num_agents": 1, "max_steps": 6, "window": 5}


def task_of(vecenv: Any) -> TaskSpec:
    """The task that an environment would be built from next."""
    _, task = vecenv.curriculum.task_table().draw(np.random.default_rng(0))
    assert isinstance(task, TaskSpec)
    return task


def episode_lengths(vecenv: Any, steps: int) -> list[int]:
    lengths = []
    for _ in range(steps):
        received = vecenv.recv()
        lengths += [info["episode"]["length"] for info in received.infos]
        vecenv.send(np.zeros(len(received.env_ids), np.int64))
    return lengths


def test_without_arguments_four_agents_navigate_and_are_ready_to_act() -> None:
    with Environment() as vecenv:
        received = vecenv.recv()
        assert received.obs.shape == (4, *vecenv.driver_env.obs_shape)
        assert received.obs.dtype == np.uint8
        assert (vecenv.num_envs, vecenv.num_agents) == (1, 4)
        assert task_of(vecenv) == TaskSpec()


def test_num_agents_width_and_height_make_one_shared_room_of_that_size() -> None:
    with Environment(num_agents=3, width=17, height=12) as vecenv:
        task = task_of(vecenv)
        assert (task.num_agents, task.width, task.height, task.shared_room) == (3, 17, 12, True)
        assert vecenv.recv().obs.shape[0] == 3


def test_curriculum_is_found_by_path_and_its_tasks_take_the_room_arguments() -> None:
    with Environment(curriculum_path=BUCKETED, num_agents=2, width=15, height=15) as vecenv:
        assert vecenv.curriculum is not None
        templates = vecenv.curriculum.task_table().templates
        assert len(templates) == 64
        rng = np.random.default_rng(0)
        drawn = [template.draw(rng) for template in templates]
        assert {(task.num_agents, task.width, task.height) for task in drawn} == {(2, 15, 15)}
        assert vecenv.num_agents == 2


def test_unknown_curriculum_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=rf"(?s)/env/mettagrid/curriculum/navigation/buckets.*{BUCKETED}"):
        Environment(curriculum_path="/env/mettagrid/curriculum/navigation/buckets")


@pytest.mark.parametrize("env_config", [SMOKE, TaskSpec.model_validate(SMOKE)], ids=["dict", "TaskSpec"])
def test_env_config_is_the_task(env_config: Any) -> None:
    with Environment(env_config=env_config, is_training=False) as vecenv:
        assert task_of(vecenv) == TaskSpec.model_validate(SMOKE)
        assert episode_lengths(vecenv, 13) == [6, 6]


def test_env_config_with_a_curriculum_changes_fields_of_its_tasks() -> None:
    with Environment(curriculum_path="smoke", env_config={"max_steps": 9}, is_training=False) as vecenv:
        assert episode_lengths(vecenv, 10) == [9]


def test_unknown_or_bad_task_field_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"max_step"):
        Environment(env_config={"max_step": 9})
    with pytest.raises(ConfigError, match=r"num_agents"):
        Environment(num_agents=0)
    with pytest.raises(ConfigError, match=r"env_config is a int"):
        Environment(env_config=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("as_factory", [False, True])
def test_env_config_may_be_any_environment(as_factory: bool) -> None:
    name = "gym:CartPole-v1"
    with Environment(env_config=resolve_env(name) if as_factory else name, num_envs=3) as vecenv:
        assert vecenv.recv().obs.shape == (3, 4)
    with pytest.raises(ConfigError, match=r"width cannot be combined with env_config='gym:CartPole-v1'"):
        Environment(env_config=name, width=5)
    with pytest.raises(ConfigError, match=r"curriculum_path cannot be combined"):
        Environment(BUCKETED, env_config=name)


def test_seed_decides_the_run_and_none_draws_one() -> None:
    def first_obs(seed: int | None) -> Any:
        with Environment(env_config="gym:CartPole-v1", seed=seed) as vecenv:
            return vecenv.recv().obs

    np.testing.assert_array_equal(first_obs(4), first_obs(4))
    assert not np.array_equal(first_obs(4), first_obs(5))
    assert not np.array_equal(first_obs(None), first_obs(None))


def test_is_training_staggers_first_episodes_which_are_not_reported() -> None:
    smoke = {**SMOKE, "max_steps": 40}
    with Environment(env_config=smoke, num_envs=8, seed=0) as vecenv:
        ends: list[int] = []
        for step in range(41):
            received = vecenv.recv()
            assert received.infos == []
            ends += [step] * int(received.truncations.sum())
            vecenv.send(np.zeros(8, np.int64))
        assert len(ends) >= 8
        assert len(set(ends)) > 3


def test_device_says_where_the_policy_lives() -> None:
    with Environment(env_config="gym:CartPole-v1", device="cpu") as vecenv:
        assert vecenv.device == "cpu"
    with Environment(env_config="gym:CartPole-v1") as vecenv:
        assert vecenv.device == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ConfigError, match=r"device='gpu7' is not a torch device"):
        Environment(env_config="gym:CartPole-v1", device="gpu7")


def test_serial_has_one_group_and_copies_whatever_async_factor_and_zero_copy_say() -> None:
    with Environment(env_config="gym:CartPole-v1", num_envs=4, batch_size=2, async_factor=2) as vecenv:
        assert type(vecenv) is SerialVecEnv
        first = vecenv.recv()
        before = first.obs.copy()
        vecenv.send(np.zeros(4, np.int64))
        np.testing.assert_array_equal(first.obs, before)


def test_multiprocessing_arguments_make_groups_of_workers() -> None:
    with Environment(
        env_config="gym:CartPole-v1",
        num_envs=4,
        num_workers=2,
        async_factor=2,
        zero_copy=True,
        vectorization="multiprocessing",
    ) as vecenv:
        assert type(vecenv) is MultiprocessVecEnv
        assert (vecenv.num_groups, vecenv.agents_per_batch, len(vecenv.worker_pids)) == (2, 2, 2)
        first = vecenv.recv()
        assert not first.obs.flags.owndata


@pytest.mark.parametrize(
    ("num_envs", "batch_size", "async_factor", "is_serial", "expected"),
    [
        (1, 1, 1, False, (1, 1)),
        (8, 1, 1, False, (8, 8)),  # batch_size follows
        (8, 1, 2, False, (8, 4)),
        (1, 4, 2, False, (8, 4)),  # num_envs follows
        (8, 4, 1, False, (8, 4)),  # the number of groups follows
        (8, 4, 2, False, (8, 4)),
        (8, 1, 1, True, (8, 8)),
        (1, 4, 1, True, (4, 4)),
        (8, 4, 1, True, (8, 8)),
    ],
)
def test_sizes_left_at_one_follow_from_the_others(
    num_envs: int, batch_size: int, async_factor: int, is_serial: bool, expected: tuple[int, int]
) -> None:
    assert _sizes(num_envs, batch_size, async_factor, is_serial) == expected


def test_sizes_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"num_envs=9 cannot be split into async_factor=2.*nearest num_envs: 8 or 10"):
        _sizes(9, 1, 2, False)
    with pytest.raises(ConfigError, match=r"num_envs=12 is not batch_size=4 times async_factor=2; use num_envs=8"):
        _sizes(12, 4, 2, False)
    with pytest.raises(ConfigError, match=r"num_envs=0"):
        Environment(num_envs=0)
