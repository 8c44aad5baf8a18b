"""Parts of the policy on inputs small enough to work out by hand."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

from metta_ray.agent.agent_config import AgentConfig
from metta_ray.agent.factory import Agent
from metta_ray.agent.lstm import SequenceLSTM
from metta_ray.agent.networks.registry import build_network
from metta_ray.agent.policy_state import PolicyState
from metta_ray.envs.env_spec import EnvSpec, Feature, TokenVocabulary


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_one_unit_lstm_over_two_steps_with_a_reset_before_a_third():
    lstm = SequenceLSTM(1, 1, 1)
    with torch.no_grad():
        for parameter in lstm.parameters():
            parameter.zero_()
        # Gates in torch's order: input, forget, cell, output. Input opens the cell with x, forget gate keeps half.
        lstm.rnn.weight_ih_l0[2] = 1.0
        lstm.rnn.bias_ih_l0[0] = 2.0
    x = torch.tensor([[[1.0], [0.5], [1.0]]])
    resets = torch.tensor([[False, False, True]])

    y, h, c = lstm(x, torch.zeros(1, 1, 1), torch.full((1, 1, 1), 0.8), resets)

    first = 0.5 * 0.8 + sigmoid(2.0) * math.tanh(1.0)
    second = 0.5 * first + sigmoid(2.0) * math.tanh(0.5)
    third = sigmoid(2.0) * math.tanh(1.0)
    assert c.item() == pytest.approx(third)
    assert y.flatten().tolist() == pytest.approx([0.5 * math.tanh(cell) for cell in (first, second, third)])
    assert h.item() == pytest.approx(0.5 * math.tanh(third))


@pytest.mark.parametrize("gather", [True, False])
def test_light_network_sees_each_heart_through_the_right_weight(gather):
    spec = EnvSpec(
        "mettagrid:toy",
        spaces.Box(0, 255, (4, 3), np.uint8),
        spaces.Discrete(2),
        vocabulary=TokenVocabulary({"inv:heart": Feature(7)}, (), 5, 5),
    )
    config = AgentConfig(architecture="light", conv_channels=(1,), hidden_sizes=(), gather_conv=gather)
    network = build_network(spec, config)
    with torch.no_grad():
        network.stack.convs[0].weight.copy_(torch.arange(25.0).view(1, 1, 5, 5))
        network.stack.convs[0].bias.fill_(0.25)
    # 1 heart at row 1, column 2 (weight 7) and 16 at row 4, column 4 (weight 24, value 1 + 4/8).
    obs = torch.tensor([[[0x12, 7, 1], [0x44, 7, 16], [255, 255, 255], [255, 255, 255]]], dtype=torch.uint8)

    assert network(obs).tolist() == [[7 + 24 * 1.5 + 0.25]]


def test_side_inputs_are_the_one_hot_last_action_and_the_last_reward():
    spec = EnvSpec("gym:toy", spaces.Box(-1, 1, (1,), np.float32), spaces.Discrete(3))
    policy = Agent(spec, {"hidden_sizes": [1], "side_inputs": True, "activation": "tanh"}, device="cpu")
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()
        policy.critic[-1].weight.copy_(torch.tensor([[100.0, 1.0, 2.0, 4.0, 8.0]]))
    state = PolicyState(
        resets=torch.tensor([False, True]), last_actions=torch.tensor([1, 2]), last_rewards=torch.tensor([0.5, 9.0])
    )

    value = policy(torch.zeros(2, 1), state)[3]

    # Second action: weight 2; reward 0.5 times weight 8. The other row is the first of an episode.
    assert value.flatten().tolist() == [6.0, 0.0]
