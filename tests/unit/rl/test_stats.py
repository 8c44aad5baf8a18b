"""Episode infos over an epoch, and the numbers made of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metta_ray.rl.stats import accumulate_rollout_stats, process_training_stats


def test_infos_are_flattened_and_appended():
    stats: dict[str, list[object]] = {}
    accumulate_rollout_stats([{"agent": {"heart": {"gained": 1}}, "length": 5}, {"length": 7}], stats)
    accumulate_rollout_stats({"length": np.float32(9.0)}, stats)

    assert stats == {"agent/heart/gained": [1], "length": [5, 7, 9.0]}


def test_single_numbers_in_arrays_become_numbers():
    stats: dict[str, list[object]] = {}
    accumulate_rollout_stats([{"a": np.array([2.0]), "b": torch.tensor(3.0), "c": np.int64(4)}], stats)

    assert stats == {"a": [2.0], "b": [3.0], "c": [4]}
    assert all(type(value) in (int, float) for values in stats.values() for value in values)


def test_no_info_leaves_nothing():
    stats: dict[str, list[object]] = {}
    accumulate_rollout_stats([], stats)
    assert process_training_stats(stats) == {}


def test_means_are_named_and_the_overview_is_the_mean_reward_of_all_tasks():
    metrics = process_training_stats(
        {"task_reward/easy": [1.0, 3.0], "task_reward/hard": [11.0], "length": [4, 6], "agent/heart": [0, 1]}
    )

    assert metrics == pytest.approx(
        {
            "env_task_reward/easy": 2.0,
            "env_task_reward/hard": 11.0,
            "length": 5.0,
            "env_agent/heart": 0.5,
            "overview/reward": 5.0,
        }
    )


def test_what_is_no_number_is_kept_as_it_is():
    assert process_training_stats({"name": ["a", "b"]}) == {"name": ["a", "b"]}


def test_infos_of_a_real_environment_give_an_overview(build_rig):
    rig = build_rig("mettagrid:smoke", num_envs=4, horizon=40)
    stats: dict[str, list[object]] = {}
    for _ in range(2):
        accumulate_rollout_stats(rig.collect()[1], stats)
    metrics = process_training_stats(stats)

    assert 0 <= metrics["overview/reward"] <= 32
    assert all(isinstance(value, float) for value in metrics.values())
