"""The policy's forward contract, its recurrent state and its weights."""

import json
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

from metta_ray.agent.factory import Agent
from metta_ray.agent.metta_agent import MettaAgent
from metta_ray.agent.policy_state import PolicyState
from metta_ray.common.errors import PolicyMismatchError

ACTION_SPACES = {
    "discrete": (spaces.Discrete(3), torch.int32, (), 3),
    "multi_discrete": (spaces.MultiDiscrete([2, 4]), torch.int32, (2,), 6),
    "box": (spaces.Box(-1, 1, (2,), np.float32), torch.float32, (2,), 0),
}
TOKEN_ARCHITECTURES = ("default", "fast", "light", "mlp")
SMALL = {"lstm_hidden_size": 16, "hidden_sizes": (24,)}


def draw_actions(space: spaces.Space, *leading: int) -> torch.Tensor:
    if isinstance(space, spaces.Box):
        return torch.randn(*leading, *space.shape)
    high = torch.tensor(space.nvec if isinstance(space, spaces.MultiDiscrete) else int(space.n))
    return (torch.rand(*leading, *(space.shape or ())) * high).long()


def assert_contract(outputs, rows, kind):
    _, dtype, shape, choices = ACTION_SPACES[kind]
    action, logprob, entropy, value, log_probs = outputs
    assert action.shape == (rows, *shape)
    assert action.dtype == dtype
    assert [tuple(t.shape) for t in (logprob, entropy, value, log_probs)] == [
        (rows,),
        (rows,),
        (rows, 1),
        (rows, choices),
    ]
    assert all(t.dtype == torch.float32 for t in (logprob, entropy, value, log_probs))


@pytest.mark.parametrize("kind", ACTION_SPACES)
@pytest.mark.parametrize("architecture", TOKEN_ARCHITECTURES)
def test_forward_returns_the_five_documented_tensors_for_tokens(token_spec, some_tokens, architecture, kind):
    space = ACTION_SPACES[kind][0]
    spec = token_spec(action_space=space)
    policy = Agent(spec, {"architecture": architecture, **SMALL}, device="cpu")
    state = PolicyState()

    assert_contract(policy(some_tokens(spec, 6), state), 6, kind)
    assert state.lstm_h.shape == (policy.core_num_layers, 6, 16)

    action = draw_actions(space, 2, 3)
    outputs = policy(some_tokens(spec, 6).view(2, 3, -1, 3), PolicyState(), action)
    assert outputs[0] is action
    assert [tuple(t.shape) for t in outputs[1:4]] == [(6,), (6,), (6, 1)]


@pytest.mark.parametrize("kind", ACTION_SPACES)
@pytest.mark.parametrize("lstm", [0, 8])
def test_forward_returns_the_five_documented_tensors_for_vectors(vector_spec, kind, lstm):
    spec = vector_spec(ACTION_SPACES[kind][0])
    policy = Agent(spec, {"agent": {"lstm_hidden_size": lstm, "side_inputs": True}}, device="cpu")
    last = draw_actions(spec.action_space, 5)

    assert_contract(policy(torch.randn(5, 4), PolicyState(last_actions=last, last_rewards=torch.ones(5))), 5, kind)


@pytest.mark.parametrize("architecture", ["light", "mlp"])
@pytest.mark.parametrize("shape", [(12, 10, 3), (3, 12, 10)])
def test_images_enter_networks_too(vector_spec, architecture, shape):
    spec = vector_spec(shape=shape, dtype=np.uint8)
    policy = Agent(spec, {"architecture": architecture}, device="cpu")
    obs = torch.randint(0, 255, (4, *shape), dtype=torch.uint8)

    assert_contract(policy(obs, PolicyState()), 4, "discrete")


def test_logprob_and_entropy_belong_to_the_returned_log_probs(token_spec, some_tokens):
    spec = token_spec()
    policy = Agent(spec, {"architecture": "light"}, device="cpu")
    action, logprob, entropy, _, log_probs = policy(some_tokens(spec, 8), PolicyState())

    torch.testing.assert_close(logprob, log_probs[torch.arange(8), action.long()])
    torch.testing.assert_close(entropy, -(log_probs.exp() * log_probs).sum(1))
    # The actor starts nearly uniform (gain 0.01).
    assert entropy.min() > math.log(5) - 0.01


@pytest.mark.parametrize("architecture", ["light", "fast", "mlp"])
def test_k1_rollout_and_training_forward_agree_with_resets_inside(token_spec, some_tokens, architecture):
    torch.manual_seed(0)
    spec = token_spec()
    policy = Agent(spec, {"architecture": architecture, "side_inputs": True, **SMALL}, device="cpu")
    torch.nn.init.orthogonal_(policy.actor[-1].weight, 1.0)
    rows, steps = 5, 12
    obs = some_tokens(spec, rows * steps).view(rows, steps, -1, 3)
    resets, rewards = torch.rand(rows, steps) < 0.2, torch.randn(rows, steps)
    last = draw_actions(spec.action_space, rows, steps)
    start = torch.randn(2, policy.core_num_layers, rows, policy.hidden_size)

    with torch.no_grad():
        rollout, actions = PolicyState(*start), []
        logprobs, values = [], []
        for t in range(steps):
            rollout = PolicyState(rollout.lstm_h, rollout.lstm_c, resets[:, t], last[:, t], rewards[:, t])
            action, logprob, _, value, _ = policy(obs[:, t], rollout)
            actions.append(action)
            logprobs.append(logprob)
            values.append(value)
    training = PolicyState(*start, resets, last, rewards)
    _, logprob, _, value, _ = policy(obs, training, torch.stack(actions, dim=1))

    ratio = (logprob.view(rows, steps) - torch.stack(logprobs, dim=1)).exp()
    torch.testing.assert_close(ratio, torch.ones(rows, steps), atol=1e-5, rtol=0)
    torch.testing.assert_close(value.view(rows, steps), torch.cat(values, dim=1), atol=1e-5, rtol=0)
    torch.testing.assert_close(training.lstm_h, rollout.lstm_h, atol=1e-5, rtol=0)
    torch.testing.assert_close(training.lstm_c, rollout.lstm_c, atol=1e-5, rtol=0)
    assert not training.lstm_h.requires_grad


def test_recurrent_state_and_side_inputs_change_what_the_policy_does(token_spec, some_tokens):
    torch.manual_seed(0)
    spec = token_spec()
    policy = Agent(spec, {"architecture": "light"}, device="cpu")
    obs = some_tokens(spec, 1)

    def value(**fields):
        return policy(obs, PolicyState(**fields))[3].item()

    alone = value()
    state = torch.ones(1, 1, 128)
    assert value(lstm_h=state, lstm_c=state) != alone
    assert value(last_actions=torch.tensor([2])) != alone
    assert value(last_rewards=torch.tensor([1.0])) != alone


def test_k2_state_last_action_and_last_reward_are_forgotten_at_a_reset(token_spec, some_tokens):
    spec = token_spec()
    policy = Agent(spec, {"architecture": "light"}, device="cpu")
    obs, state = some_tokens(spec, 3), torch.ones(1, 3, 128)
    resets = torch.tensor([True, False, True])
    left = PolicyState(state, state, resets, torch.tensor([1, 1, 4]), torch.tensor([1.0, 1.0, -1.0]))

    after = policy(obs, left)
    fresh = policy(obs, PolicyState())

    torch.testing.assert_close(after[3][resets], fresh[3][resets])
    assert (after[3][~resets] != fresh[3][~resets]).all()


def test_value_alone_equals_the_forwards_and_leaves_state_and_random_numbers(token_spec, some_tokens):
    spec = token_spec()
    policy = Agent(spec, {"architecture": "light"}, device="cpu")
    obs, state, rng = some_tokens(spec, 4), PolicyState(), torch.get_rng_state()

    value = policy.value(obs, state)

    assert state.lstm_h is None
    assert torch.equal(rng, torch.get_rng_state())
    torch.testing.assert_close(value, policy(obs, PolicyState())[3].squeeze(1))


def test_every_parameter_takes_part_in_a_forward(token_spec, some_tokens):
    for architecture in TOKEN_ARCHITECTURES:
        spec = token_spec()
        policy = Agent(spec, {"architecture": architecture, **SMALL}, device="cpu")
        action = torch.zeros(2, 3, dtype=torch.int64)
        _, logprob, entropy, value, _ = policy(some_tokens(spec, 6).view(2, 3, -1, 3), PolicyState(), action)
        (logprob.sum() + entropy.sum() + value.sum()).backward()

        assert [name for name, parameter in policy.named_parameters() if parameter.grad is None] == []


def test_bfloat16_keeps_outputs_and_state_in_float32_and_close(token_spec, some_tokens):
    for architecture in TOKEN_ARCHITECTURES:
        torch.manual_seed(0)
        spec = token_spec()
        policy = Agent(spec, {"architecture": architecture, **SMALL}, device="cpu")
        obs, action, state = some_tokens(spec, 6).view(2, 3, -1, 3), torch.zeros(2, 3, dtype=torch.int64), PolicyState()
        exact = policy(obs, PolicyState(), action)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = policy(obs, state, action)
        (mixed[1].sum() + mixed[3].sum()).backward()

        for got, expected in zip(mixed[1:], exact[1:], strict=True):
            assert got.dtype == torch.float32
            torch.testing.assert_close(got, expected, atol=0.05, rtol=0.05)
        assert state.lstm_h is None or state.lstm_h.dtype == torch.float32


def test_mlp_has_a_critic_of_its_own_unless_it_is_recurrent(vector_spec):
    apart = Agent(vector_spec(), device="cpu")
    _, _, _, value, _ = apart(torch.randn(5, 4), PolicyState())
    value.sum().backward(retain_graph=True)

    assert all(parameter.grad is None for parameter in apart.network.parameters())
    assert all(parameter.grad is not None for parameter in apart.critic_network.parameters())
    assert Agent(vector_spec(), {"lstm_hidden_size": 8}, device="cpu").critic_network is None


def test_cartpole_mlp_is_two_times_64_64():
    # 4·64+64 + 64·64+64 = 4480, twice; actor 64·2+2, critic 64+1.
    from metta_ray.envs.env_spec import EnvSpec

    spec = EnvSpec("gym:CartPole-v1", spaces.Box(-1, 1, (4,), np.float32), spaces.Discrete(2))
    assert Agent(spec, device="cpu").total_params == 2 * 4480 + 130 + 65


def test_parameter_count_of_the_default_policy_is_the_sum_of_its_layers(token_spec):
    spec = token_spec(window=11)
    policy = Agent(spec, device="cpu")
    channels, scalars = policy.network.tokens.num_channels, policy.network.tokens.num_scalars
    core_inputs = 512 + scalars + 5 + 1
    convolutions = 32 * 9 * channels + 32 + 64 * 9 * 32 + 64
    linear = 512 * 64 * 121 + 512
    lstm = 4 * 512 * (core_inputs + 512) + 2 * 4 * 512
    heads = 5 * 512 + 5 + 512 + 1

    assert policy.config.architecture == "default"
    assert policy.total_params == convolutions + linear + lstm + heads
    assert (policy.hidden_size, policy.core_num_layers) == (512, 1)


def test_wrong_observation_and_state_shapes_are_named(token_spec, vector_spec):
    policy = Agent(vector_spec(), {"lstm_hidden_size": 8}, device="cpu")
    with pytest.raises(PolicyMismatchError, match=r"\(5, 3\).*\(4,\)"):
        policy(torch.randn(5, 3), PolicyState())
    with pytest.raises(ValueError, match=r"\(1, 7, 8\).*\(1, 5, 8\)"):
        policy(torch.randn(5, 4), PolicyState(lstm_h=torch.zeros(1, 7, 8), lstm_c=torch.zeros(1, 5, 8)))


@pytest.mark.parametrize("kind", ACTION_SPACES)
def test_k16_policy_from_its_architecture_and_weights_gives_identical_outputs(token_spec, some_tokens, kind):
    spec = token_spec(action_space=ACTION_SPACES[kind][0])
    policy = Agent(spec, {"architecture": "light", "l2_init": True, "clip_range": 2.0}, device="cpu")
    described = json.loads(json.dumps(policy.architecture()))
    copy = MettaAgent.from_architecture(described)
    copy.load_state_dict(policy.state_dict())
    obs, action = some_tokens(spec, 4), draw_actions(spec.action_space, 4)

    assert copy.spec.obs_shape == spec.obs_shape
    for got, expected in zip(copy(obs, PolicyState(), action), policy(obs, PolicyState(), action), strict=True):
        assert torch.equal(got, expected)


def test_k9_l2_init_loss_pulls_weights_back_and_its_reference_is_a_buffer(vector_spec):
    policy = Agent(vector_spec(), {"l2_init": True}, device="cpu")
    weight = policy.actor[-1].weight
    assert policy.l2_init_loss().item() == 0.0
    with torch.no_grad():
        weight += 2.0

    loss = policy.l2_init_loss()
    loss.backward()

    assert loss.item() == pytest.approx(4.0 * weight.numel(), rel=1e-5)
    torch.testing.assert_close(weight.grad, torch.full_like(weight, 4.0))
    assert any(name.startswith("reference_weights.") for name in policy.state_dict())


def test_reference_weights_move_a_tenth_and_survive_saving(vector_spec):
    policy = Agent(vector_spec(), {"l2_init": True}, device="cpu")
    with torch.no_grad():
        policy.actor[-1].weight += 10.0
    policy.update_l2_init_weight_copy()
    assert policy.l2_init_loss().item() == pytest.approx(81.0 * policy.actor[-1].weight.numel(), rel=1e-4)

    restored = Agent(vector_spec(), {}, device="cpu")
    restored.load_state_dict(policy.state_dict())
    assert restored.l2_init_loss().item() == policy.l2_init_loss().item()


def test_weights_are_clipped_to_a_multiple_of_the_largest_initial_one(vector_spec):
    policy = Agent(vector_spec(), {"clip_range": 2.0}, device="cpu")
    layer = policy.actor[-1]
    largest = layer.weight.abs().max().item()
    with torch.no_grad():
        layer.weight += 100.0
        layer.bias += 100.0
    policy.clip_weights()

    assert layer.weight.max().item() == pytest.approx(2 * largest)
    assert layer.bias.min().item() == 100.0


def test_effective_rank_of_an_identity_is_its_size_and_of_one_direction_one(vector_spec):
    policy = Agent(vector_spec(), {"hidden_sizes": [4]}, device="cpu")
    linear = policy.network.layers[0]
    name = "network.layers.0.weight"
    with torch.no_grad():
        linear.weight.copy_(torch.eye(4))
    assert policy.compute_weight_metrics()[name]["effective_rank"] == pytest.approx(4.0)
    with torch.no_grad():
        linear.weight.copy_(torch.ones(4, 4))
    metrics = policy.compute_weight_metrics()[name]
    assert metrics["effective_rank"] == pytest.approx(1.0, abs=1e-3)
    assert metrics["norm"] == pytest.approx(4.0)
    assert metrics["collapsed_share"] == 0.75


def test_sampling_is_repeatable_from_the_saved_generator(token_spec, some_tokens):
    spec = token_spec()
    policy, obs = Agent(spec, {"architecture": "light"}, device="cpu"), some_tokens(spec, 30)
    saved = torch.get_rng_state()
    first = policy(obs, PolicyState())[0]
    torch.set_rng_state(saved)

    assert torch.equal(first, policy(obs, PolicyState())[0])


@pytest.mark.parametrize("kind", [spaces.Discrete(5), spaces.MultiDiscrete([3, 2]), spaces.Box(-1, 1, (2,))])
def test_acting_draws_what_the_forward_draws(token_spec, some_tokens, kind):
    spec = token_spec(action_space=kind)
    policy = Agent(spec, {"architecture": "light"}, device="cpu")
    obs, drawn = some_tokens(spec, 6), []
    for way in (policy, policy.act):
        state = PolicyState(generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            outputs = way(obs, state)
        action, logprob, value = outputs if len(outputs) == 3 else (*outputs[:2], outputs[3])
        drawn.append([action, logprob, value, state.lstm_h, state.lstm_c])

    assert torch.equal(drawn[0][0], drawn[1][0])
    rounding = 1e-6 if isinstance(kind, spaces.Discrete) else 0.0  # there its heads are computed with numpy
    for by_forward, by_acting in zip(*drawn, strict=True):
        torch.testing.assert_close(by_forward, by_acting, atol=rounding, rtol=rounding)
