"""What one step of the rollout stores, and what it leaves for the next one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metta_ray.agent.policy_state import PolicyState
from metta_ray.rl.update import batch_advantages

RECURRENT = {"lstm_hidden_size": 16, "side_inputs": True}


def value_of(agent: Any, *observation: float) -> float:
    return float(agent.value(torch.tensor([observation]), PolicyState()).detach())


# K3: what follows the end of an episode


def test_k3_observation_after_an_end_is_the_first_of_the_next_episode_and_every_action_counts(build_rig, corridor):
    rig = build_rig(f"{corridor}:Corridor", num_envs=2, horizon=7, agent={"side_inputs": False})
    steps, _ = rig.collect()

    assert steps == 14
    assert rig.experience.mask.all()
    for row in range(2):
        assert rig.experience.obs[row, :, 0].tolist() == [0, 1, 2, 0, 1, 2, 0]
        assert rig.experience.dones[row].tolist() == [1, 0, 0, 1, 0, 0, 1], "1 where an episode begins"
        assert rig.experience.rewards[row].tolist() == [0, 1, 1, 1, 1, 1, 1]


def test_k3_terminated_episodes_are_not_bootstrapped_and_truncated_ones_from_their_true_end(build_rig, corridor):
    terminated = build_rig(f"{corridor}:Corridor", num_envs=1, horizon=7, agent={"side_inputs": False})
    truncated = build_rig(f"{corridor}:truncating", num_envs=1, horizon=7, agent={"side_inputs": False})
    for rig in (terminated, truncated):
        rig.collect()

    assert terminated.experience.truncation_values.tolist() == [[0.0] * 8]
    at_the_end = [value_of(truncated.agent, 3, episode) for episode in (0, 1)]
    expected = torch.tensor([[0, 0, 0, at_the_end[0], 0, 0, at_the_end[1], 0]])
    torch.testing.assert_close(truncated.experience.truncation_values, expected)


@pytest.mark.parametrize("ends", ["Corridor", "truncating"])
def test_advantages_of_a_rollout_equal_a_hand_written_recurrence_the_last_column_too(build_rig, corridor, ends):
    gamma, lam = 0.9, 0.8
    rig = build_rig(
        f"{corridor}:{ends}",
        num_envs=1,
        horizon=5,
        agent={"side_inputs": False},
        trainer={"ppo": {"gamma": gamma, "gae_lambda": lam}},
    )
    rig.collect()
    values = [value_of(rig.agent, *obs) for obs in [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]]
    end = value_of(rig.agent, 3, 0) if ends == "truncating" else 0.0

    expected, following = [], 0.0
    for t in reversed(range(5)):
        is_last_of_episode = t == 2
        bootstrap = end if is_last_of_episode else values[t + 1]
        following = 1.0 + gamma * bootstrap - values[t] + (0.0 if is_last_of_episode else gamma * lam * following)
        expected.insert(0, following)

    advantages = batch_advantages(rig.experience, rig.config, "cpu")
    torch.testing.assert_close(advantages, torch.tensor([expected]), atol=1e-6, rtol=0)


def test_a_truncated_episode_is_valued_with_the_recurrent_state_it_had(build_rig, corridor):
    rig = build_rig(f"{corridor}:truncating", num_envs=1, horizon=5, agent=RECURRENT)
    rig.collect()
    state = PolicyState()
    for t in range(3):
        state.resets = torch.tensor([t == 0])
        state.last_actions = rig.experience.actions[:, t - 1] if t else torch.zeros(1, dtype=torch.long)
        state.last_rewards = torch.tensor([1.0])
        rig.agent(torch.tensor([[float(t), 0.0]]), state, rig.experience.actions[:, t])
    state.resets = torch.tensor([False])
    state.last_actions = rig.experience.actions[:, 2]
    at_the_end = rig.agent.value(torch.tensor([[3.0, 0.0]]), state)

    torch.testing.assert_close(rig.experience.truncation_values[0, 3], at_the_end[0])


def test_an_end_at_the_last_action_of_a_rollout_is_known_to_it(build_rig, corridor):
    rig = build_rig(f"{corridor}:truncating", num_envs=1, horizon=3, agent={"side_inputs": False})
    rig.collect()

    transitions = rig.experience.transitions()
    assert transitions["dones"].tolist() == [[1, 0, 0, 1]]
    assert transitions["rewards"].tolist() == [[0, 1, 1, 1]]
    assert transitions["truncation_values"][0, 3].item() == pytest.approx(value_of(rig.agent, 3, 0), abs=1e-6)


# From one rollout to the next


def test_observation_seen_at_the_close_is_acted_on_by_the_next_rollout(build_rig, corridor):
    rig = build_rig(f"{corridor}:Corridor", num_envs=2, horizon=4)
    seen = []
    for _ in range(3):
        rig.collect()
        seen += rig.experience.obs[0, :, 0].tolist()

    assert seen == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2], "no step is lost, none is taken twice"
    assert rig.experience.last_values.shape == (2,)


@pytest.mark.parametrize("segments_per_agent", [1, 2])
def test_infos_are_delivered_once_and_steps_add_up_to_the_batch(build_rig, corridor, segments_per_agent):
    rig = build_rig(f"{corridor}:Corridor", num_envs=3, horizon=4, segments_per_agent=segments_per_agent)
    infos: list[dict[str, Any]] = []
    for _ in range(5):
        steps, more = rig.collect()
        infos += more
        assert steps == rig.config.batch_size

    per_env = 5 * 4 * segments_per_agent // 3
    assert len(infos) == 3 * per_env


def test_first_column_of_a_row_holds_what_the_last_action_of_the_row_before_brought(build_rig, corridor):
    rig = build_rig(f"{corridor}:Corridor", num_envs=1, horizon=3, segments_per_agent=2)
    rig.collect()

    assert rig.experience.dones.tolist() == [[1, 0, 0], [1, 0, 0]]
    assert rig.experience.transitions()["dones"].tolist() == [[1, 0, 0, 1], [1, 0, 0, 1]]
    assert rig.experience.last_values[0] == rig.experience.values[1, 0]


# Several groups in flight


@pytest.mark.parametrize("in_fixed_order", [True, False])
def test_worker_processes_fill_every_row_once(build_rig, in_fixed_order):
    rig = build_rig(
        "gym:CartPole-v1",
        num_envs=8,
        horizon=6,
        segments_per_agent=2,
        vectorization="multiprocessing",
        num_workers=2,
        async_factor=2,
        agent=RECURRENT,
    )
    rig.vecenv._in_fixed_order = in_fixed_order
    for _ in range(2):
        steps, _ = rig.collect()
        assert steps == 96
        assert rig.experience.mask.all(), "every action's outcome is known"
        # CartPole: rows of one agent follow each other without a gap, so positions move by velocity · 0.02.
        obs, dones = rig.experience.obs, rig.experience.dones
        moved = obs[:, 1:, 0] - obs[:, :-1, 0]
        expected = 0.02 * obs[:, :-1, 1]
        torch.testing.assert_close(moved * (1 - dones[:, 1:]), expected * (1 - dones[:, 1:]), atol=1e-5, rtol=0)
        between = obs[8:, 0, 0] - obs[:8, -1, 0] - 0.02 * obs[:8, -1, 1]
        assert (between * (1 - dones[8:, 0])).abs().max() < 1e-5


# K1, K2: importance ratios


def make_opinionated(rig: Any) -> None:
    """A fresh policy is so nearly uniform that errors of its memory would hardly show in its probabilities."""
    with torch.no_grad():
        rig.agent.actor[-1].weight.mul_(100.0)


def assert_ratio_is_one(rig: Any, tolerance: float) -> None:
    rig.experience.ratio.fill_(float("nan"))
    rig.first_minibatch()
    ratio = rig.experience.ratio
    assert (rig.experience.dones[:, 1:] > 0).any(), "an episode ends inside a row"
    assert (ratio - 1).abs().max() < tolerance


@pytest.mark.parametrize(
    ("env", "agent", "sizes"),
    [
        ("gym:CartPole-v1", RECURRENT, {"num_envs": 6, "horizon": 32}),
        ("mettagrid:tmaze", RECURRENT, {"num_envs": 6, "horizon": 40}),
        ("mettagrid:smoke", {"architecture": "light"}, {"num_envs": 6, "horizon": 40}),
    ],
)
def test_k1_k2_importance_ratio_is_one_on_the_first_minibatch_after_a_rollout(build_rig, env, agent, sizes):
    rig = build_rig(env, agent=agent, segments_per_agent=2, **sizes)
    make_opinionated(rig)
    for rollout in range(2):
        rig.collect()
        assert_ratio_is_one(rig, 1e-4)
        if rollout:
            assert rig.experience._first_lstm_h.abs().sum() > 0, "rows begin with the state that was carried"
        rig.train()

    rig.collect()
    rig.experience._first_lstm_h.zero_()
    rig.first_minibatch()
    assert (rig.experience.ratio - 1).abs().max() > 1e-3, "the test notices memory that was lost"


def test_in_bf16_nothing_is_clipped_in_the_first_minibatch(build_rig):
    rig = build_rig("gym:CartPole-v1", num_envs=6, horizon=32, agent=RECURRENT)
    make_opinionated(rig)
    rig.agent.autocast_dtype = torch.bfloat16
    for _ in range(2):
        rig.collect()
        rig.losses.zero()
        rig.first_minibatch()

        assert rig.losses.clipfrac_sum == 0.0
        assert (rig.experience.ratio - 1).abs().mean() < 0.01
        rig.train()
