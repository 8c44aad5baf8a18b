"""Gymnasium environments behind the batch interface: ends, seeds, spaces, faults, replay."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from metta_ray.common.errors import CheckpointError, ConfigError, EnvironmentFault
from metta_ray.envs.env_batch import SeedRoot
from metta_ray.envs.gymnasium_env import GymnasiumBatch
from metta_ray.envs.registry import resolve_env


class Probe(gymnasium.Env[Any, Any]):
    """Remembers the actions it got; observations are samples of its space; ends when told."""

    def __init__(self, observation_space: Any, action_space: Any, end_after: int = 10**9) -> None:
        self.observation_space = observation_space
        self.action_space = action_space
        self.end_after = end_after
        self.actions: list[Any] = []
        self.seeds: list[int | None] = []
        self.observations: list[Any] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.observation_space.seed(seed % 2**31 if seed is not None else None)
        self.seeds.append(seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.actions.append(action)
        self.steps += 1
        return self._observe(), 1.0, self.steps >= self.end_after, False, {"wins": 3, "note": "text"}

    def _observe(self) -> Any:
        self.observations.append(self.observation_space.sample())
        return self.observations[-1]


LINE = spaces.Box(-1.0, 1.0, (3,), np.float32)


def probe_batch(observation_space: Any = LINE, action_space: Any = None, **kwargs: Any) -> GymnasiumBatch:
    action_space = spaces.Discrete(2) if action_space is None else action_space
    batch = GymnasiumBatch(lambda: Probe(observation_space, action_space, **kwargs), name="gym:Probe-v0", num_envs=2)
    batch.reset(SeedRoot(1))
    return batch


def cartpole(num_envs: int = 2, first_env: int = 0, **kwargs: Any) -> GymnasiumBatch:
    batch = resolve_env("gym:CartPole-v1", **kwargs).build(num_envs, first_env)
    assert isinstance(batch, GymnasiumBatch)
    return batch


def random_steps(batch: GymnasiumBatch, count: int, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    results = []
    for _ in range(count):
        batch.arrays.actions[:] = rng.integers(0, 2, batch.num_envs)
        results += batch.step()
    return results


# Ends


def test_terminated_episode_restarts_in_the_same_step_and_final_obs_is_the_fallen_pole() -> None:
    batch = cartpole(num_envs=1)
    batch.reset(SeedRoot(0))
    batch.arrays.actions[:] = 1  # always to the right: the pole falls within a dozen steps

    results: list[Any] = []
    while not results:
        results = batch.step()

    assert batch.arrays.terminals[0]
    assert not batch.arrays.truncations[0]
    assert abs(batch.arrays.final_obs[0, 2]) > 0.2094  # 12 degrees in radians, where CartPole gives up
    assert np.abs(batch.arrays.obs[0]).max() <= 0.05  # the range of CartPole's first observations
    (result,) = results
    assert (result.env_index, result.episode, result.terminated, result.truncated) == (0, 0, True, False)
    assert result.length == result.score == result.returns[0]
    batch.step()
    assert not batch.arrays.terminals[0]


def test_time_limit_truncates_and_does_not_terminate() -> None:
    batch = cartpole(num_envs=1, max_episode_steps=3)
    batch.reset(SeedRoot(0))

    assert batch.step() == []
    assert batch.step() == []
    (result,) = batch.step()

    assert (result.terminated, result.truncated, result.length) == (False, True, 3)
    assert batch.arrays.truncations[0]
    assert not batch.arrays.terminals[0]
    assert np.abs(batch.arrays.final_obs[0]).max() > 0


def test_k3_no_dead_transition_follows_an_episode_end() -> None:
    batch = probe_batch(end_after=2)
    rewards = []
    for _ in range(6):
        batch.step()
        rewards.append(float(batch.arrays.rewards[0]))

    env = batch._envs[0]
    assert isinstance(env, Probe)
    assert rewards == [1.0] * 6  # every action was applied and paid for
    assert len(env.seeds) == 1 + 3  # three episodes of two steps ended, each followed by a reset


def test_final_obs_is_the_last_observation_of_the_episode_and_obs_the_first_of_the_next() -> None:
    batch = probe_batch(end_after=1)
    batch.step()
    env = batch._envs[0]
    assert isinstance(env, Probe)
    np.testing.assert_array_equal(batch.arrays.final_obs[0], env.observations[1])
    np.testing.assert_array_equal(batch.arrays.obs[0], env.observations[2])


def test_numbers_of_the_last_info_are_statistics() -> None:
    results = probe_batch(end_after=1).step()
    assert results[0].stats == {"info": {"wins": 3.0}}


# Seeds


def test_k18_no_two_episodes_share_a_seed_on_any_rank_or_worker() -> None:
    seeds = []
    for rank in range(3):
        for first_env in (0, 2):
            batch = GymnasiumBatch(
                lambda: Probe(LINE, spaces.Discrete(2), end_after=1),
                name="p",
                num_envs=2,
                first_env=first_env,
            )
            batch.reset(SeedRoot(7, rank))
            for _ in range(20):
                batch.step()
            seeds += [seed for env in batch._envs for seed in env.seeds]  # type: ignore[attr-defined]

    assert len(seeds) == 3 * 4 * 21
    assert len(set(seeds)) == len(seeds)


def test_reported_seed_reproduces_the_episode() -> None:
    batch = cartpole(num_envs=1)
    batch.reset(SeedRoot(5))
    results = random_steps(batch, 100)

    env = gymnasium.make("CartPole-v1")
    env.reset(seed=results[0].seed[0])
    rng = np.random.default_rng(0)
    steps = 0
    while True:
        steps += 1
        _, _, terminated, truncated, _ = env.step(int(rng.integers(0, 2, 1)[0]))
        if terminated or truncated:
            break
    assert steps == results[0].length


def test_environments_are_the_same_however_they_are_split_into_batches() -> None:
    whole, second = cartpole(4), cartpole(2, first_env=2)
    whole.reset(SeedRoot(3))
    second.reset(SeedRoot(3))
    np.testing.assert_array_equal(whole.arrays.obs[2:], second.arrays.obs)


# Spaces


@pytest.mark.parametrize(
    ("space", "shape", "dtype"),
    [
        (spaces.Box(-1, 1, (3,), np.float32), (3,), np.float32),
        (spaces.Box(-1, 1, (3,), np.float64), (3,), np.float32),
        (spaces.Box(-1, 1, (2, 3), np.float16), (2, 3), np.float32),
        (spaces.Box(0, 255, (8, 8, 3), np.uint8), (8, 8, 3), np.uint8),
        (spaces.Box(-5, 5, (2,), np.int32), (2,), np.int32),
        (spaces.Box(-5, 5, (), np.float32), (1,), np.float32),
        (spaces.Discrete(4, start=2), (4,), np.float32),
        (spaces.MultiDiscrete([2, 3]), (5,), np.float32),
        (spaces.MultiBinary(3), (3,), np.float32),
        (spaces.Dict({"a": spaces.Discrete(3), "b": LINE}), (6,), np.float32),
        (spaces.Tuple((spaces.MultiBinary(2), spaces.Dict({"c": LINE}))), (5,), np.float32),
    ],
    ids=str,
)
def test_observation_spaces_are_stored_as_they_are_or_flattened(space: Any, shape: Any, dtype: Any) -> None:
    batch = probe_batch(observation_space=space, end_after=3)
    assert batch.spec.obs_shape == shape
    assert batch.spec.obs_dtype == dtype
    for _ in range(4):
        env = batch._envs[0]
        assert isinstance(env, Probe)
        last = env.observations[-1]
        is_box = isinstance(space, spaces.Box)
        expected = np.reshape(last, shape) if is_box else spaces.flatten(space, last)
        np.testing.assert_array_equal(batch.arrays.obs[0], np.asarray(expected).astype(dtype))
        batch.step()


@pytest.mark.parametrize(
    ("space", "policy_action", "env_action"),
    [
        (spaces.Discrete(3), 2, 2),
        (spaces.Discrete(3, start=-1), 0, -1),
        (spaces.MultiDiscrete([2, 3]), [1, 2], [1, 2]),
        (spaces.MultiDiscrete([2, 3], start=[10, 20]), [1, 2], [11, 22]),
        (spaces.MultiBinary(2), [1, 0], [1, 0]),
        (spaces.Box(-1, 1, (2,), np.float32), [0.5, 7.0], [0.5, 1.0]),
        (spaces.Box(-1, 1, (2,), np.float64), [-9.0, 0.25], [-1.0, 0.25]),
        (spaces.Box(-np.inf, np.inf, (1, 2), np.float32), [[3.0, -4.0]], [[3.0, -4.0]]),
    ],
    ids=str,
)
def test_actions_reach_the_environment_as_its_space_has_them(space: Any, policy_action: Any, env_action: Any) -> None:
    batch = probe_batch(action_space=space)
    batch.arrays.actions[:] = np.array([policy_action] * 2)
    batch.step()
    batch.arrays.actions[:] = 0
    batch.step()

    env = batch._envs[1]
    assert isinstance(env, Probe)
    taken = env.actions[0]
    np.testing.assert_array_equal(taken, env_action)  # and the second step did not overwrite it
    assert space.contains(taken)


@pytest.mark.parametrize("space", [spaces.Sequence(LINE), spaces.Graph(LINE, None)], ids=str)
def test_observation_space_without_fixed_size_is_refused_by_name(space: Any) -> None:
    with pytest.raises(ConfigError, match=r"gym:Probe-v0.*has no fixed size; use Box"):
        GymnasiumBatch(lambda: Probe(space, spaces.Discrete(2)), name="gym:Probe-v0", num_envs=1)


@pytest.mark.parametrize("space", [spaces.Box(0, 9, (2,), np.int32), spaces.Dict(a=LINE), spaces.Text(4)], ids=str)
def test_action_space_without_policy_head_is_refused_by_name(space: Any) -> None:
    with pytest.raises(ConfigError, match=r"gym:Probe-v0.*not supported; use Discrete"):
        GymnasiumBatch(lambda: Probe(LINE, space), name="gym:Probe-v0", num_envs=1)


# Faults


class Breaks(Probe):
    def step(self, action: Any) -> Any:
        if len(self.actions) == 2:
            raise ZeroDivisionError("the simulator met a zero")
        return super().step(action)


def test_exception_of_an_environment_names_it_and_its_cause() -> None:
    envs = iter([Probe(LINE, spaces.Discrete(2)), Breaks(LINE, spaces.Discrete(2))])
    batch = GymnasiumBatch(lambda: next(envs), name="gym:Breaks-v0", num_envs=2, first_env=6)
    batch.reset(SeedRoot(0))
    batch.step()
    batch.step()
    with pytest.raises(EnvironmentFault, match=r"environment 7 \(gym:Breaks-v0\) failed in step.*ZeroDivision") as e:
        batch.step()
    assert isinstance(e.value.__cause__, ZeroDivisionError)


def test_observation_of_another_shape_than_the_space_is_a_fault_not_a_broadcast() -> None:
    class Liar(Probe):
        def _observe(self) -> Any:
            return np.zeros(1, np.float32)

    batch = GymnasiumBatch(lambda: Liar(LINE, spaces.Discrete(2)), name="liar", num_envs=1)
    with pytest.raises(EnvironmentFault, match=r"observation of shape \(1,\), its space says \(3,\)"):
        batch.reset(SeedRoot(0))


# Snapshot and restore


def test_restored_batch_continues_exactly_from_the_middle_of_episodes() -> None:
    batch = cartpole(num_envs=3)
    batch.reset(SeedRoot(11))
    random_steps(batch, 333)
    state = batch.snapshot()
    expected = random_steps(batch, 200, seed=1)

    restored = cartpole(num_envs=3)
    restored.restore(state)
    for name in ("obs", "rewards", "terminals", "truncations", "masks"):
        np.testing.assert_array_equal(getattr(restored.arrays, name), state[name])
    results = random_steps(restored, 200, seed=1)

    assert len(results) == len(expected) > 10
    for got, wanted in zip(results, expected, strict=True):
        assert (got.env_index, got.episode, got.length, got.seed) == (
            wanted.env_index,
            wanted.episode,
            wanted.length,
            wanted.seed,
        )
        np.testing.assert_array_equal(got.returns, wanted.returns)
    np.testing.assert_array_equal(restored.arrays.obs, batch.arrays.obs)
    np.testing.assert_array_equal(restored.snapshot()["actions"][0], batch.snapshot()["actions"][0])


def test_snapshot_shares_no_memory_with_the_batch() -> None:
    batch = cartpole()
    batch.reset(SeedRoot(0))
    random_steps(batch, 5)
    state = batch.snapshot()
    before = state["obs"].copy()
    random_steps(batch, 5)
    np.testing.assert_array_equal(state["obs"], before)
    assert len(state["actions"][0]) == 5


def test_replay_of_a_nondeterministic_environment_is_refused() -> None:
    class Random(Probe):
        def _observe(self) -> Any:
            return np.random.default_rng().random(3, np.float32)

    def batch() -> GymnasiumBatch:
        return GymnasiumBatch(lambda: Random(LINE, spaces.Discrete(2)), name="random", num_envs=1)

    first = batch()
    first.reset(SeedRoot(0))
    first.step()
    with pytest.raises(CheckpointError, match=r"random: environment 0, episode 0.*not deterministic"):
        batch().restore(first.snapshot())


def test_state_of_another_environment_is_refused() -> None:
    batch = cartpole(2)
    batch.reset(SeedRoot(0))
    with pytest.raises(CheckpointError, match=r"does not fit"):
        cartpole(3).restore(batch.snapshot())
