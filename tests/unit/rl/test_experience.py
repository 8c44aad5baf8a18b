import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metta_ray.common.errors import ConfigError, UsageError
from metta_ray.envs.env_spec import TokenSpace
from metta_ray.rl.experience import Experience, segment_probabilities

VECTOR = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)


def make(agents=4, segments_per_agent=2, horizon=3, *, minibatch_segments=None, space=VECTOR, layers=0, **kwargs):
    segments = agents * segments_per_agent
    minibatch = (minibatch_segments or segments) * horizon
    return Experience(
        agents,
        segments * horizon,
        horizon,
        minibatch,
        minibatch,
        space,
        gymnasium.spaces.Discrete(5),
        "cpu",
        hidden_size=2,
        num_lstm_layers=layers,
        **kwargs,
    )


def store(experience, agents, step, *, rewards=None, dones=None, mask=None, truncation_values=None):
    """Stores values that tell agent and step: 100·agent + step."""
    ids = torch.arange(agents.start, agents.stop)
    n = len(ids)
    mark = 100.0 * ids + step
    obs = mark[:, None].repeat(1, 2)
    flags = torch.zeros(n) if dones is None else dones
    return experience.store(
        obs,
        ids % 5,
        mark,
        mark if rewards is None else rewards,
        flags,
        flags,
        mark,
        agents,
        torch.ones(n, dtype=torch.bool) if mask is None else mask,
        {"lstm_h": mark[None, :, None].repeat(1, 1, 2), "lstm_c": mark[None, :, None].repeat(1, 1, 2)}
        if experience.rollout_state.is_recurrent
        else None,
        truncation_values=truncation_values,
    )


def close(experience, agents, step):
    ids = torch.arange(agents.start, agents.stop)
    zeros, mark = torch.zeros(len(ids)), 100.0 * ids + step
    experience.close(mark, zeros, zeros, mark, agents, torch.ones(len(ids), dtype=torch.bool))


@settings(max_examples=60, deadline=None)
@given(
    groups=st.integers(1, 4),
    per_group=st.integers(1, 3),
    segments_per_agent=st.integers(1, 3),
    horizon=st.integers(1, 4),
    order=st.randoms(use_true_random=False),
)
def test_k26_no_row_mixes_agents_or_leaves_a_gap_whatever_order_groups_arrive_in(
    groups, per_group, segments_per_agent, horizon, order
):
    experience = make(groups * per_group, segments_per_agent, horizon)
    slices = [slice(g * per_group, (g + 1) * per_group) for g in range(groups)]
    taken = dict.fromkeys(range(groups), 0)
    while not experience.ready_for_training:
        group = order.choice([g for g in range(groups) if not experience.is_full(slices[g])])
        store(experience, slices[group], taken[group])
        taken[group] += 1
    for group in range(groups):
        close(experience, slices[group], taken[group])

    agents = groups * per_group
    for row in range(experience.segments):
        agent, segment = row % agents, row // agents
        steps = torch.arange(segment * horizon, (segment + 1) * horizon)
        assert experience.values[row].tolist() == (100.0 * agent + steps).tolist()
        assert experience.obs[row, :, 0].tolist() == (100.0 * agent + steps).tolist()
        assert experience.last_values[row].item() == 100.0 * agent + (segment + 1) * horizon
    assert experience.mask.all()


def test_segment_keeps_the_recurrent_state_and_action_it_started_from():
    experience = make(2, 2, 3, layers=1)
    for step in range(6):
        store(experience, slice(0, 2), step)

    batch = experience.sample_minibatch(torch.zeros(4, 3), 0.0, 1.0, 0, 1)

    by_row = {int(row): batch["lstm_h"][0, i].tolist() for i, row in enumerate(batch["indices"])}
    assert by_row[0] == [0.0, 0.0], "first segment: nothing came before"
    assert by_row[2] == [2.0, 2.0], "second segment of agent 0: state after step 2"
    assert by_row[3] == [102.0, 102.0]
    by_row = {int(row): batch["last_actions"][i].tolist() for i, row in enumerate(batch["indices"])}
    assert by_row[1] == [0, 1, 1]
    assert by_row[3] == [1, 1, 1]


def test_recurrent_state_outlives_a_rollout():
    experience = make(1, 1, 2, layers=1)
    for step in range(2):
        store(experience, slice(0, 1), step)
    experience.reset_for_rollout()

    assert experience.rollout_state.lstm_h.flatten().tolist() == [1.0, 1.0]
    assert not experience.ready_for_training


def test_last_column_is_masked_until_it_is_closed():
    experience = make(2, 1, 3)
    for step in range(3):
        store(experience, slice(0, 2), step)

    assert experience.ready_for_training
    assert experience.mask.tolist() == [[True, True, False]] * 2

    close(experience, slice(0, 2), 3)
    assert experience.mask.all()
    assert experience.is_closed(slice(0, 2))

    experience.reset_for_rollout()
    for step in range(3):
        store(experience, slice(0, 2), step)
    assert experience.mask.tolist() == [[True, True, False]] * 2, "what closed the last rollout is forgotten"


def test_k27_masked_agents_count_neither_as_steps_nor_in_training():
    experience = make(2, 1, 3)
    counts = [
        store(experience, slice(0, 2), 0),
        store(experience, slice(0, 2), 1, mask=torch.tensor([True, False])),
        store(experience, slice(0, 2), 2),
    ]

    assert counts == [2, 1, 2]
    # The mask came with observation 1 and belongs to action 0.
    assert experience.mask.tolist() == [[True, True, False], [False, True, False]]


def test_k27_slices_whose_agents_are_not_in_step_are_refused():
    experience = make(4, 1, 3)
    store(experience, slice(0, 2), 0)

    with pytest.raises(UsageError, match="different numbers of steps"):
        store(experience, slice(0, 4), 1)


def test_full_rows_are_not_overwritten():
    experience = make(1, 1, 2)
    store(experience, slice(0, 1), 0)
    store(experience, slice(0, 1), 1)

    with pytest.raises(UsageError, match="reset_for_rollout"):
        store(experience, slice(0, 1), 2)


def test_k6_without_priorities_an_update_epoch_uses_every_row_once():
    experience = make(8, 2, 2, minibatch_segments=4)
    advantages = torch.zeros(16, 2)

    for _ in range(3):
        seen = [
            int(row)
            for index in range(4)
            for row in experience.sample_minibatch(advantages, 0.0, 0.6, index, 4)["indices"]
        ]
        assert sorted(seen) == list(range(16))


def test_priorities_follow_the_advantages():
    # w = (3, 1)^1 → P = (3, 1)/4 up to 1e-6; weights (2 · P)^-0.5
    experience = make(2, 1, 2, minibatch_segments=1)
    advantages = torch.tensor([[1.0, -2.0], [0.5, 0.5]])

    assert segment_probabilities(advantages, 1.0).tolist() == pytest.approx([0.75, 0.25], abs=1e-5)
    torch.manual_seed(0)
    drawn = [experience.sample_minibatch(advantages, 1.0, 0.5, 0, 1) for _ in range(2000)]
    share = np.mean([int(batch["indices"][0]) == 0 for batch in drawn])
    assert share == pytest.approx(0.75, abs=0.03)
    for batch in drawn[:20]:
        probability = [0.75, 0.25][int(batch["indices"][0])]
        assert batch["prio_weights"].item() == pytest.approx((2 * probability) ** -0.5, abs=1e-4)


def test_priorities_survive_advantages_that_are_not_finite():
    advantages = torch.tensor([[float("nan"), 1.0], [float("inf"), 1.0], [2.0, 2.0]])

    assert segment_probabilities(advantages, 1.0).tolist() == pytest.approx([0, 0, 1], abs=1e-5)


def test_tokens_are_stored_without_their_padding():
    experience = make(2, 1, 2, space=TokenSpace(100))
    assert experience.obs.shape == (2, 2, 16, 3)

    obs = torch.full((2, 100, 3), 255, dtype=torch.uint8)
    obs[0, :20] = 7
    zeros, mask = torch.zeros(2), torch.ones(2, dtype=torch.bool)
    experience.store(obs, zeros.long(), zeros, zeros, zeros, zeros, zeros, slice(0, 2), mask)

    assert experience.obs.shape == (2, 2, 32, 3)
    assert (experience.obs[0, 0, :20] == 7).all()
    assert (experience.obs[0, 0, 20:] == 255).all()
    assert (experience.obs[1, 0] == 255).all()


def test_rewards_are_centered_on_each_agents_running_mean():
    # r̄ ← r̄ + ½(r - r̄): agent 0 gets 2, 2, 2 → learns from 2, 1, 0.5, then 0.25 at the close.
    experience = make(1, 1, 3, reward_centering_rate=0.5)
    for step in range(3):
        store(experience, slice(0, 1), step, rewards=torch.tensor([2.0]))
    ones = torch.ones(1)
    experience.close(2 * ones, 0 * ones, 0 * ones, ones, slice(0, 1), ones.bool())

    assert experience.transitions()["rewards"][0].tolist() == pytest.approx([2.0, 1.0, 0.5, 0.25])
    assert experience.rewards[0].tolist() == [2.0, 2.0, 2.0], "the policy is shown the rewards themselves"


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"agents": 10, "batch": 16, "horizon": 4}, "batch_size=16 is too small for 10 agents.* = 40"),
        ({"agents": 3, "batch": 16, "horizon": 4}, "batch_size=16 is not a multiple.*nearest: 12 or 24"),
        ({"agents": 4, "batch": 16, "horizon": 4, "minibatch": 6}, "minibatch_size=6 .*nearest: 4 or 8"),
        ({"agents": 4, "batch": 64, "horizon": 4, "minibatch": 24}, "nearest minibatch_size: 16 or 32"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_nearest(sizes, message):
    batch, horizon = sizes["batch"], sizes["horizon"]
    minibatch = sizes.get("minibatch", batch)
    with pytest.raises(ConfigError, match=message):
        Experience(
            sizes["agents"],
            batch,
            horizon,
            minibatch,
            minibatch,
            VECTOR,
            gymnasium.spaces.Discrete(2),
            "cpu",
            1,
        )
