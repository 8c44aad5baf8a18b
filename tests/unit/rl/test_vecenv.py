"""Kinds and sizes of vecenvs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metta_ray.common.errors import ConfigError
from metta_ray.common.util.state_directory import tree_from_bytes, tree_to_bytes
from metta_ray.envs.multiprocess_vecenv import MultiprocessVecEnv
from metta_ray.envs.registry import MettaGridFactory, resolve_env
from metta_ray.envs.serial_vecenv import SerialVecEnv
from metta_ray.mettagrid.curriculum.core import Curriculum, SingleTaskCurriculum
from metta_ray.mettagrid.task_spec import FixedTask, TaskSpec
from metta_ray.rl.vecenv import make_vecenv, vecenv_sizes


def task(max_steps: int) -> TaskSpec:
    return TaskSpec(kind="smoke", num_agents=1, max_steps=max_steps, window=5)


def test_serial_is_used_when_asked_for_or_when_one_worker_would_do() -> None:
    for vectorization, num_workers in (("serial", 1), ("serial", 2), ("multiprocessing", 1)):
        with make_vecenv("gym:CartPole-v1", vectorization, num_envs=4, num_workers=num_workers) as vecenv:
            assert type(vecenv) is SerialVecEnv
            assert vecenv.agents_per_batch == 4


def test_multiprocessing_has_groups_of_batch_size_environments() -> None:
    with make_vecenv("gym:CartPole-v1", "multiprocessing", num_envs=4, batch_size=2, num_workers=2) as vecenv:
        assert type(vecenv) is MultiprocessVecEnv
        assert (vecenv.num_groups, vecenv.agents_per_batch, vecenv.num_agents) == (2, 2, 4)


def test_unknown_vectorization_and_no_environments_are_refused() -> None:
    with pytest.raises(ConfigError, match="vectorization='ray' is unknown; known: serial, multiprocessing"):
        make_vecenv("gym:CartPole-v1", "ray")
    for vectorization, num_workers in (("serial", 1), ("multiprocessing", 2)):
        with pytest.raises(ConfigError, match="num_envs=0"):
            make_vecenv("gym:CartPole-v1", vectorization, num_envs=0, num_workers=num_workers)


def test_a_given_curriculum_hears_of_finished_episodes() -> None:
    curriculum = SingleTaskCurriculum("tiny", task(max_steps=8))
    with make_vecenv(curriculum, num_envs=2) as vecenv:
        vecenv.async_reset(0)
        for _ in range(9):
            received = vecenv.recv()
            vecenv.send(0 * received.env_ids)
        assert vecenv.curriculum is curriculum
    assert curriculum.get_curriculum_stats()["completions"] == 2


def test_a_named_environment_brings_its_own_curriculum_and_gymnasium_has_none() -> None:
    with make_vecenv(resolve_env("mettagrid:smoke")) as vecenv:
        assert vecenv.curriculum is not None
    with make_vecenv("gym:CartPole-v1") as vecenv:
        assert vecenv.curriculum is None


class NextInLine(Curriculum):
    """After a task has been finished, only the one after it is drawn."""

    def _learn(self, index: int, score: float) -> None:
        count = len(self.task_ids)
        self._set_probabilities(np.eye(count)[(index + 1) % count])


def test_workers_draw_the_same_tasks_and_report_to_the_one_curriculum_as_serial_does() -> None:
    """The table changes with every finished episode, so that an episode drawn from an old one would show."""
    reference = None
    for vectorization in ("serial", "multiprocessing"):
        curriculum = NextInLine([FixedTask(task_id=f"{steps} steps", spec=task(steps)) for steps in (3, 5, 7, 9)])
        rng = np.random.default_rng(0)
        seen = []
        with make_vecenv(
            curriculum, vectorization, num_envs=4, num_workers=2, is_training=True, zero_copy=False
        ) as vecenv:
            vecenv.async_reset(8)
            for _ in range(70):
                received = vecenv.recv()
                seen.append((received.infos, received.rewards, received.truncations, received.obs))
                vecenv.send(rng.integers(0, 5, vecenv.agents_per_batch))
            state = vecenv.snapshot()
        assert curriculum.task_table().version > 20
        if reference is None:
            reference = seen
            assert tree_from_bytes(tree_to_bytes(state))["run_seed"] == 8
            continue
        for ours, theirs in zip(seen, reference, strict=True):
            assert ours[0] == theirs[0]
            for left, right in zip(ours[1:], theirs[1:], strict=True):
                np.testing.assert_array_equal(left, right)


def test_evaluation_does_not_stagger_first_episodes() -> None:
    factory = resolve_env("mettagrid:smoke")
    assert isinstance(factory, MettaGridFactory)
    assert factory.stagger
    evaluated = factory.as_evaluated()
    assert isinstance(evaluated, MettaGridFactory)
    assert not evaluated.stagger


@pytest.mark.parametrize(
    ("target", "agents", "workers", "async_factor", "vectorization", "num_envs", "batch_size"),
    [
        (4096, 24, 8, 2, "multiprocessing", 336, 168),  # 4096 // 24 = 170 → 168 per recv
        (4096, 4, 2, 2, "multiprocessing", 2048, 1024),
        (4096, 4, 1, 2, "multiprocessing", 1024, 1024),  # one worker is serial: one group
        (4096, 4, 6, 2, "serial", 1024, 1024),
        (8, 24, 4, 2, "multiprocessing", 8, 4),  # too small a target: one environment per worker
        (2, 1, 1, 1, "serial", 2, 2),
        (1, 1, 1, 1, "serial", 1, 1),
    ],
)
def test_sizes_follow_from_the_forward_target(
    target: int,
    agents: int,
    workers: int,
    async_factor: int,
    vectorization: str,
    num_envs: int,
    batch_size: int,
) -> None:
    assert vecenv_sizes(target, agents, workers, async_factor, vectorization) == (num_envs, batch_size)


def test_workers_that_cannot_be_split_into_groups_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_workers a multiple of the 2 groups"):
        vecenv_sizes(4096, 4, num_workers=3, async_factor=2)


@given(target=st.integers(1, 10_000), agents=st.integers(1, 30), groups=st.integers(1, 4), each=st.integers(1, 4))
def test_sizes_always_divide(target: int, agents: int, groups: int, each: int) -> None:
    workers = groups * each
    sizes = vecenv_sizes(target, agents, workers, groups)
    assert sizes.num_envs % sizes.batch_size == 0
    assert sizes.num_envs % workers == 0
    assert sizes.batch_size * agents <= max(target, workers * agents)
