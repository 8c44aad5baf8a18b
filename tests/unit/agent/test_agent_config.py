"""Configuration, the factory, and networks of users."""

import logging
import sys
import textwrap

import pytest
import torch
from omegaconf import DictConfig

from metta_ray.agent.agent_config import AgentConfig, agent_config_from, default_config
from metta_ray.agent.factory import Agent
from metta_ray.agent.policy_state import PolicyState
from metta_ray.common.errors import ConfigError


def test_fields_that_are_not_given_come_from_the_architectures_preset():
    config = AgentConfig(architecture="light", lstm_hidden_size=64)
    assert (config.conv_kernels, config.conv_strides, config.lstm_hidden_size) == ((5,), (3,), 64)
    fast = default_config("fast")
    assert (fast.lstm_layers, fast.critic_hidden_sizes, fast.critic_activation) == (2, (1024,), "tanh")


@pytest.mark.parametrize(
    "given",
    [
        {"agent": {"architecture": "light", "lstm_hidden_size": 32}},
        {"architecture": "light", "lstm_hidden_size": 32},
        AgentConfig(architecture="light", lstm_hidden_size=32),
        {"agent": AgentConfig(architecture="light", lstm_hidden_size=32)},
        DictConfig(
            {"agent": {"architecture": "light", "lstm_hidden_size": "${agent.options.size}", "options": {"size": 32}}}
        ),
    ],
)
def test_dict_model_and_dictconfig_mean_the_same(given):
    config = agent_config_from(given)
    assert (config.architecture, config.lstm_hidden_size, config.hidden_sizes) == ("light", 32, (128,))


def test_default_architecture_follows_the_observation(token_spec, vector_spec):
    assert Agent(token_spec(), device="cpu").config.architecture == "default"
    assert Agent(vector_spec(), {"agent": {"activation": "relu"}}, device="cpu").config.architecture == "mlp"


def test_unknown_key_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="lstm_hidden_size"):
        agent_config_from({"agent": {"lstm_hiden_size": 3}})


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="conv_channels has 1, conv_kernels has 2"):
        AgentConfig(architecture="light", conv_kernels=(5, 3))
    with pytest.raises(ValueError, match="separate_critic=True with lstm_hidden_size=16"):
        AgentConfig(architecture="mlp", lstm_hidden_size=16, separate_critic=True)
    with pytest.raises(ValueError, match="at least 1"):
        AgentConfig(architecture="mlp", hidden_sizes=(0,))
    with pytest.raises(ConfigError, match="int"):
        agent_config_from(3)


def test_convolutions_over_vectors_are_refused_with_a_remedy(vector_spec):
    with pytest.raises(ConfigError, match="use architecture='mlp'"):
        Agent(vector_spec(), {"architecture": "default"}, device="cpu")


def test_missing_gpu_warns_and_uses_the_cpu(vector_spec, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.WARNING):
        policy = Agent(vector_spec(), device="cuda")

    assert next(policy.parameters()).device.type == "cpu"
    assert "'cuda'" in caplog.text


def test_config_survives_json(vector_spec):
    config = AgentConfig(architecture="mlp", lstm_hidden_size=8, options={"depth": 2})
    assert AgentConfig(**config.model_dump(mode="json")) == config


USER_NETWORK = """
    from torch import nn
    from metta_ray.agent.networks.registry import register_network

    @register_network("halves")
    class Halves(nn.Module):
        def __init__(self, spec, config):
            super().__init__()
            self.feature_size = config.options["width"]
            self.linear = nn.Linear(spec.obs_shape[0], self.feature_size)

        def forward(self, obs):
            return self.linear(obs)

    class Unfinished(nn.Module):
        def __init__(self, spec, config):
            super().__init__()
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "users_networks.py").write_text(textwrap.dedent(USER_NETWORK))
    monkeypatch.syspath_prepend(tmp_path)
    yield "users_networks"
    sys.modules.pop("users_networks", None)


def test_network_in_a_users_file_is_found_by_module_and_by_name(vector_spec, user_module):
    for architecture in (f"{user_module}:Halves", "halves"):
        policy = Agent(vector_spec(), {"architecture": architecture, "options": {"width": 6}}, device="cpu")
        state = PolicyState()
        value = policy(torch.randn(3, 4), state)[3]

        assert value.shape == (3, 1)
        # features, last action (3) and last reward
        assert policy.lstm.input_size == 6 + 3 + 1


def test_unknown_and_unfinished_networks_are_named(vector_spec, user_module):
    with pytest.raises(ConfigError, match=r"'ligth'.*did you mean 'light'"):
        Agent(vector_spec(), {"architecture": "ligth"}, device="cpu")
    with pytest.raises(ConfigError, match="cannot import 'no_such_module'"):
        Agent(vector_spec(), {"architecture": "no_such_module:Net"}, device="cpu")
    with pytest.raises(ConfigError, match="has no 'Nothing'"):
        Agent(vector_spec(), {"architecture": f"{user_module}:Nothing"}, device="cpu")
    with pytest.raises(ConfigError, match="feature_size"):
        Agent(vector_spec(), {"architecture": f"{user_module}:Unfinished"}, device="cpu")
