"""The recv/send/hold contract, and what the curriculum and monitoring hear."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from metta_ray.common.errors import CheckpointError, ConfigError, EnvironmentFault, UsageError
from metta_ray.envs.episodes import episode_info, result_from_state, result_to_state
from metta_ray.envs.registry import resolve_env
from metta_ray.envs.serial_vecenv import SerialVecEnv
from metta_ray.envs.tasks import EpisodeResult, TaskTable

CARTPOLE = resolve_env("gym:CartPole-v1")


class RecordingCurriculum:
    """Hears of episodes; its table changes when told."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, float]] = []
        self.version = 0

    def task_table(self) -> TaskTable:
        return TaskTable(self.version, (), np.zeros(0))

    def complete_task(self, task_id: str, score: float) -> None:
        self.heard.append((task_id, score))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def started(num_envs: int = 4, seed: int = 0, **kwargs: Any) -> SerialVecEnv:
    vecenv = SerialVecEnv(CARTPOLE, num_envs, **kwargs)
    vecenv.async_reset(seed)
    return vecenv


def play(vecenv: SerialVecEnv, steps: int, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    received = []
    for _ in range(steps):
        received.append(vecenv.recv())
        vecenv.send(rng.integers(0, 2, vecenv.agents_per_batch))
    return received


def test_recv_gives_rows_flags_ids_and_masks_of_the_promised_shapes_and_types() -> None:
    vecenv = started(num_envs=3)
    received = vecenv.recv()
    assert received.obs.shape == (3, 4)
    assert received.obs.dtype == np.float32
    assert [received.rewards.dtype, received.env_ids.dtype] == [np.float32, np.int64]
    assert {received.terminals.dtype, received.truncations.dtype, received.masks.dtype} == {np.dtype(bool)}
    assert received.env_ids.tolist() == [0, 1, 2]
    assert received.masks.all()
    assert not received.rewards.any()
    assert received.infos == []
    assert (vecenv.num_envs, vecenv.num_agents, vecenv.agents_per_batch) == (3, 3, 3)


def test_calls_out_of_turn_are_usage_errors() -> None:
    vecenv = SerialVecEnv(CARTPOLE, 2)
    actions = np.zeros(2, np.int64)
    for call in (vecenv.recv, vecenv.hold, vecenv.snapshot, lambda: vecenv.send(actions)):
        with pytest.raises(UsageError, match=r"call async_reset"):
            call()
    vecenv.async_reset(0)
    for call in (vecenv.hold, lambda: vecenv.send(actions), lambda: vecenv.final_obs):
        with pytest.raises(UsageError, match=r"call recv first"):
            call()
    vecenv.recv()
    with pytest.raises(UsageError, match=r"recv after recv"):
        vecenv.recv()
    vecenv.send(actions)
    with pytest.raises(UsageError, match=r"send without a received group"):
        vecenv.send(actions)
    vecenv.close()
    vecenv.close()
    with pytest.raises(UsageError, match=r"closed because it was closed"):
        vecenv.recv()


def test_actions_of_a_wrong_shape_are_refused_and_a_column_is_accepted() -> None:
    vecenv = started(num_envs=2)
    vecenv.recv()
    with pytest.raises(UsageError, match=r"actions of shape \(3,\), expected \(2,\)"):
        vecenv.send(np.zeros(3, np.int64))
    vecenv.send(np.zeros((2, 1), np.int64))
    assert vecenv.recv().rewards.tolist() == [1.0, 1.0]


def test_held_group_is_received_again_with_the_same_state_and_empty_infos() -> None:
    vecenv = started()
    while not (first := vecenv.recv()).infos:
        vecenv.send(np.ones(4, np.int64))
    vecenv.hold()
    again = vecenv.recv()
    np.testing.assert_array_equal(first.obs, again.obs)
    np.testing.assert_array_equal(first.terminals, again.terminals)
    assert again.infos == []
    vecenv.send(np.ones(4, np.int64))


def test_k31_received_arrays_are_copies_unless_zero_copy_is_asked_for() -> None:
    copying, aliasing = started(), started(zero_copy=True)
    kept, alias = copying.recv(), aliasing.recv()
    before = kept.obs.copy()
    for vecenv in (copying, aliasing):
        vecenv.send(np.ones(4, np.int64))
    np.testing.assert_array_equal(kept.obs, before)
    np.testing.assert_array_equal(alias.obs, aliasing.recv().obs)


def test_same_seed_same_trajectory_other_seed_or_rank_another() -> None:
    def last_obs(seed: int, rank: int = 0) -> Any:
        return play(started(seed=seed, rank=rank), 50)[-1].obs

    np.testing.assert_array_equal(last_obs(1), last_obs(1))
    assert not np.array_equal(last_obs(1), last_obs(2))
    assert not np.array_equal(last_obs(1), last_obs(1, rank=1))


def test_final_obs_is_valid_where_an_episode_ended() -> None:
    vecenv = started()
    while not (received := vecenv.recv()).terminals.any():
        vecenv.send(np.ones(4, np.int64))
    fallen = vecenv.final_obs[received.terminals]
    assert (np.abs(fallen[:, 2]) > 0.2094).all()


def test_every_reported_episode_is_told_to_the_curriculum_once() -> None:
    curriculum = RecordingCurriculum()
    received = play(started(curriculum=curriculum), 200)
    infos = [info for batch in received for info in batch.infos]
    assert len(infos) == len(curriculum.heard) > 10
    assert [score for _, score in curriculum.heard] == [info["episode"]["score"] for info in infos]
    assert {task_id for task_id, _ in curriculum.heard} == {"gym:CartPole-v1"}


def test_changed_task_table_goes_out_with_the_next_send_and_only_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    curriculum = RecordingCurriculum()
    vecenv = SerialVecEnv(CARTPOLE, 1, curriculum=curriculum)
    tables: list[int] = []
    monkeypatch.setattr(vecenv._batch, "set_tasks", lambda table: tables.append(table.version))

    vecenv.async_reset(0)
    play(vecenv, 2)
    assert tables == [0]
    curriculum.version = 5
    vecenv.recv()
    assert tables == [0]
    vecenv.send(np.zeros(1, np.int64))
    play(vecenv, 2)
    assert tables == [0, 5]


def test_info_of_an_episode_has_the_monitored_groups() -> None:
    result = EpisodeResult(
        env_index=3,
        episode=0,
        task_id="/env/mettagrid/arena",
        returns=np.array([1.0, 3.0], np.float32),
        length=17,
        score=0.25,
        terminated=False,
        truncated=True,
        stats={"agent": {"moves": 5.0}, "attributes": {"steps": 17}},
    )
    assert episode_info(result) == {
        "episode": {"return": 2.0, "length": 17, "score": 0.25},
        "task_reward": {"arena": 2.0},
        "task_completions": {"/env/mettagrid/arena": 1},
        "agent": {"moves": 5.0},
        "attributes": {"steps": 17},
    }
    again = result_from_state(result_to_state(result))
    assert episode_info(again) == episode_info(result)
    assert again.returns.tolist() == [1.0, 3.0]


def test_restored_run_equals_the_uninterrupted_one_mid_episode() -> None:
    vecenv = started(seed=9)
    play(vecenv, 70)
    state = vecenv.snapshot()
    expected = play(vecenv, 100, seed=1)

    restored = SerialVecEnv(CARTPOLE, 4)
    restored.restore(state)
    for got, wanted in zip(play(restored, 100, seed=1), expected, strict=True):
        assert got.infos == wanted.infos
        for name in ("obs", "rewards", "terminals", "truncations"):
            np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name))


def test_episode_not_yet_received_survives_a_snapshot_and_is_told_once() -> None:
    vecenv = started()
    while True:
        vecenv.recv()
        vecenv.send(np.ones(4, np.int64))
        if vecenv._step_results:
            break
    state = vecenv.snapshot()
    restored = SerialVecEnv(CARTPOLE, 4, curriculum=RecordingCurriculum())
    restored.restore(state)
    assert restored.recv().infos == vecenv.recv().infos != []
    restored.hold()
    restored.recv()
    assert isinstance(restored.curriculum, RecordingCurriculum)
    assert len(restored.curriculum.heard) == len(vecenv.episodes)


def test_state_of_other_sizes_is_refused() -> None:
    state = started(4).snapshot()
    with pytest.raises(CheckpointError, match=r"\(4, 1\) does not fit \(2, 1\)"):
        SerialVecEnv(CARTPOLE, 2).restore(state)


def test_fault_closes_the_vecenv_and_later_calls_say_why(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fragile_env.py").write_text(
        "import gymnasium, numpy as np\n"
        "class Fragile(gymnasium.Env):\n"
        "    observation_space = gymnasium.spaces.Box(0, 1, (1,), np.float32)\n"
        "    action_space = gymnasium.spaces.Discrete(2)\n"
        "    def reset(self, *, seed=None, options=None): return np.zeros(1, np.float32), {}\n"
        "    def step(self, action): raise ValueError('snapped')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    vecenv = SerialVecEnv(resolve_env("fragile_env:Fragile"), 1)
    vecenv.async_reset(0)
    vecenv.recv()
    with pytest.raises(EnvironmentFault, match=r"environment 0.*ValueError: snapped"):
        vecenv.send(np.zeros(1))
    with pytest.raises(UsageError, match=r"closed because it failed: environment 0"):
        vecenv.recv()


def test_sizes_and_seeds_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"num_envs=0"):
        SerialVecEnv(CARTPOLE, 0)
    with pytest.raises(ConfigError, match=r"seed=-1 is negative"):
        SerialVecEnv(CARTPOLE, 1).async_reset(-1)
