"""A policy meets environments with other ids, orders and names."""

import pytest
import torch
from gymnasium import spaces
from torch import nn

from metta_ray.agent.factory import Agent
from metta_ray.agent.networks.registry import register_network
from metta_ray.agent.policy_state import PolicyState
from metta_ray.common.errors import PolicyMismatchError
from metta_ray.envs.env_spec import Feature


@register_network("raw_bytes")
class RawBytesNetwork(nn.Module):
    """A user's network that reads token bytes itself, whatever their order within the observation."""

    def __init__(self, spec, config):
        super().__init__()
        self.feature_size = 8
        self.table = nn.Embedding(65536, 8)

    def forward(self, obs):
        obs = obs.long()
        embedded = self.table(obs[..., 1] * 256 + obs[..., 2]) * (obs[..., :1] + 1)
        return embedded.masked_fill(obs[..., 1:2] == 255, 0.0).sum(1)


ARCHITECTURES = ("default", "fast", "light", "mlp", "raw_bytes")


@pytest.fixture
def shuffled(token_spec):
    """The same environment under other ids: features, tags and actions in another order, and new ones."""
    own = token_spec()
    features = ("inv:unheard", *reversed(own.vocabulary.features))
    return token_spec(
        features=features,
        tags=("type:new", *reversed(own.vocabulary.tags)),
        actions=("move_east", "dance", "move_west", "noop", "move_south", "move_north"),
    )


def policy_for(spec, architecture):
    torch.manual_seed(0)
    sizes = {"hidden_sizes": (24,), "lstm_hidden_size": 16}
    policy = Agent(spec, {"architecture": architecture, "side_inputs": True, **sizes}, device="cpu")
    nn.init.orthogonal_(policy.actor[-1].weight)
    return policy.eval()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_k20_shuffled_features_tags_and_actions_change_nothing(token_spec, shuffled, some_tokens, architecture):
    own = token_spec()
    policy = policy_for(own, architecture)
    last = torch.tensor([0, 1, 2, 3, 4, 0])
    _, _, _, value, log_probs = policy(some_tokens(own, 6), PolicyState(last_actions=last))

    policy.adapt_to(shuffled)
    renamed = torch.tensor([shuffled.action_names.index(own.action_names[a]) for a in last])
    _, _, _, new_value, new_log_probs = policy(some_tokens(shuffled, 6), PolicyState(last_actions=renamed))

    torch.testing.assert_close(new_value, value, atol=1e-5, rtol=1e-5)
    for index, name in enumerate(own.action_names):
        there = new_log_probs[:, shuffled.action_names.index(name)]
        torch.testing.assert_close(there, log_probs[:, index], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_unknown_actions_are_never_taken_and_missing_ones_share_their_probability(
    token_spec, some_tokens, architecture
):
    own = token_spec()
    policy = policy_for(own, architecture)
    other = token_spec(actions=("dance", "move_north", "noop"))
    policy.adapt_to(other)
    action, _, entropy, _, log_probs = policy(some_tokens(other, 200), PolicyState())

    assert set(action.tolist()) == {1, 2}
    assert log_probs[:, 0].isneginf().all()
    torch.testing.assert_close(log_probs[:, 1:].exp().sum(1), torch.ones(200))
    assert torch.isfinite(entropy).all()


def test_adapting_back_restores_the_own_vocabulary(token_spec, shuffled, some_tokens):
    own = token_spec()
    policy = policy_for(own, "light")
    before = policy(some_tokens(own, 4), PolicyState())[4]
    policy.adapt_to(shuffled)
    policy.adapt_to(own)

    assert torch.equal(policy(some_tokens(own, 4), PolicyState())[4], before)


def test_adapting_does_not_touch_what_is_saved(token_spec, shuffled):
    policy = policy_for(token_spec(), "light")
    architecture, names = policy.architecture(), set(policy.state_dict())
    policy.adapt_to(shuffled)

    assert policy.architecture() == architecture
    assert set(policy.state_dict()) == names


def test_number_of_tokens_may_differ(token_spec, some_tokens):
    policy = policy_for(token_spec(), "light")
    longer = token_spec(tokens=300)
    policy.adapt_to(longer)

    value = policy(some_tokens(longer, 4), PolicyState())[3]
    torch.testing.assert_close(value, policy(some_tokens(longer, 4)[:, :30], PolicyState())[3])


def test_initialize_to_environment_maps_by_name_like_adapt_to(token_spec, shuffled, some_tokens):
    own = token_spec()
    policy, other = policy_for(own, "light"), policy_for(own, "light")
    same_tags = token_spec(features=tuple(shuffled.vocabulary.features), actions=shuffled.action_names)
    features = {
        name: {"id": feature.id, "normalization": 1.0} for name, feature in same_tags.vocabulary.features.items()
    }
    policy.initialize_to_environment(features, list(same_tags.action_names), [0] * 6, "cpu", True)
    other.adapt_to(same_tags)
    obs = some_tokens(same_tags, 5)

    assert torch.equal(policy(obs, PolicyState())[4], other(obs, PolicyState())[4])
    assert policy.original_feature_mapping["tag"] == own.vocabulary.features["tag"].id


def test_actions_with_arguments_are_flattened_to_names(token_spec):
    spec = token_spec(actions=("move_0", "move_1", "attack_0"))
    policy = policy_for(spec, "light")
    policy.initialize_to_environment({"tag": Feature(5)}, ["attack", "move"], [1, 1])

    assert policy.action_head.source.tolist() == [2, 3, 0, 1]  # attack_1 is unknown: one past the last


def test_other_window_observation_kind_and_action_kind_are_refused_naming_both(token_spec, vector_spec):
    policy = policy_for(token_spec(), "light")
    with pytest.raises(PolicyMismatchError, match=r"5×5 .*11×11"):
        policy.adapt_to(token_spec(window=11))
    with pytest.raises(PolicyMismatchError, match=r"tokens \(40, 3\).*of shape \(4,\)"):
        policy.adapt_to(vector_spec())
    with pytest.raises(PolicyMismatchError, match=r"Discrete.*MultiDiscrete"):
        policy.adapt_to(token_spec(action_space=spaces.MultiDiscrete([5, 2])))
    with pytest.raises(PolicyMismatchError, match=r"no action in common.*noop.*jump"):
        policy.adapt_to(token_spec(actions=("jump", "dance")))


def test_unnamed_actions_must_be_equally_many(vector_spec):
    policy = Agent(vector_spec(), device="cpu")
    policy.adapt_to(vector_spec())
    with pytest.raises(PolicyMismatchError, match=r"\[3\].*\[4\]"):
        policy.adapt_to(vector_spec(spaces.Discrete(4)))
