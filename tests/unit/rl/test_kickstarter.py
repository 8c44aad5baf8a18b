"""Learning from teachers: what is added to the loss, how long, and what teachers remember."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from metta_ray.agent.agent_config import AgentConfig
from metta_ray.agent.factory import build_policy
from metta_ray.agent.policy_state import PolicyState
from metta_ray.agent.policy_store import PolicyStore
from metta_ray.common.errors import ConfigError, MettaRayError
from metta_ray.rl.kickstarter import Kickstarter
from metta_ray.rl.kickstarter_config import KickstartConfig
from metta_ray.rl.update import batch_advantages, process_minibatch_update

LSTM = {"lstm_hidden_size": 8, "side_inputs": True}


@pytest.fixture
def store(tmp_path: Path) -> PolicyStore:
    return PolicyStore(device="cpu", data_dir=str(tmp_path))


@pytest.fixture
def teacher_uri(tmp_path: Path, store: PolicyStore):
    """``teacher_uri(rig, "name", seed=3)`` saves a policy for the rig's environment."""

    def save(rig: Any, name: str, seed: int, **agent: Any) -> str:
        torch.manual_seed(seed)
        policy = build_policy(rig.vecenv.driver_env, AgentConfig(architecture="mlp", hidden_sizes=(8,), **agent))
        record = store.create_empty_policy_record(name, tmp_path / "policies" / name)
        record.policy = policy
        return store.save(record).uri

    return save


def batch_of(rig: Any) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """(minibatch of all rows, the student's log-probabilities and values for it)."""
    minibatch = rig.experience.sample_minibatch(torch.zeros_like(rig.experience.values), 0.0, 1.0, 0, 1)
    state = PolicyState(
        lstm_h=minibatch["lstm_h"] if rig.agent.lstm else None,
        lstm_c=minibatch["lstm_c"] if rig.agent.lstm else None,
        resets=minibatch["dones"] > 0,
        last_actions=minibatch["last_actions"],
        last_rewards=minibatch["rewards"],
    )
    _, _, _, values, log_probs = rig.agent(minibatch["obs"], state, minibatch["actions"])
    return minibatch, log_probs, values.view(minibatch["rewards"].shape)


def kickstarter_for(rig: Any, store: PolicyStore, **config: Any) -> Kickstarter:
    return Kickstarter(KickstartConfig(**config), "cpu", store, rig.vecenv)


@pytest.mark.parametrize(
    ("agent_step", "factor"),
    [(0, 1.0), (400, 1.0), (500, 5 / 6), (700, 0.5), (999, 1 / 600), (1000, 0.0), (1001, 0.0), (10**9, 0.0)],
)
def test_coefficient_stays_then_falls_linearly_to_zero(build_rig, store, agent_step, factor):
    kickstarter = kickstarter_for(build_rig(), store, kickstart_steps=1000, anneal_ratio=0.6)
    assert kickstarter.coefficient(agent_step) == pytest.approx(factor)


def test_without_annealing_help_ends_at_once(build_rig, store):
    kickstarter = kickstarter_for(build_rig(), store, kickstart_steps=1000, anneal_ratio=0.0)
    assert [kickstarter.coefficient(step) for step in (0, 1000, 1001)] == [1.0, 1.0, 0.0]


def test_k10_terms_of_two_teachers_are_summed_each_with_its_own_weight(build_rig, store, teacher_uri):
    rig = build_rig(horizon=6)
    rig.collect()
    one, two = teacher_uri(rig, "one", 1), teacher_uri(rig, "two", 2)
    minibatch, log_probs, values = batch_of(rig)

    def loss(**config: Any) -> tuple[float, float]:
        kickstarter = kickstarter_for(rig, store, **config)
        return tuple(float(term.detach()) for term in kickstarter.loss(0, log_probs, values, rig.experience, minibatch))

    first = loss(teacher_uri=one)
    second = loss(teacher_uri=two)
    both = loss(
        teacher_uri=one,
        action_loss_coef=3.0,
        value_loss_coef=0.5,
        additional_teachers=[{"teacher_uri": two, "action_loss_coef": 2.0, "value_loss_coef": 0.25}],
    )

    assert both[0] == pytest.approx(3 * first[0] + 2 * second[0], rel=1e-5)
    assert both[1] == pytest.approx(0.5 * first[1] + 0.25 * second[1], rel=1e-5)


def test_k11_value_term_compares_element_by_element_and_action_term_is_the_cross_entropy(build_rig, store, teacher_uri):
    rig = build_rig(num_envs=2, horizon=3, agent={"side_inputs": False})
    rig.collect()
    rig.experience._masks[0, 2] = False
    kickstarter = kickstarter_for(
        rig, store, teacher_uri=teacher_uri(rig, "one", 1, side_inputs=False), kickstart_steps=100, anneal_ratio=0.5
    )
    minibatch, log_probs, values = batch_of(rig)
    action_loss, value_loss = kickstarter.loss(75, log_probs, values, rig.experience, minibatch)

    teacher = kickstarter.teachers[0].policy
    action_sum = value_sum = 0.0
    counted = 0
    for row in range(2):
        for t in range(3):
            if not minibatch["mask"][row, t]:
                continue
            counted += 1
            _, _, _, value, teacher_logs = teacher(minibatch["obs"][row, t][None], PolicyState())
            student_logs = log_probs.view(2, 3, -1)[row, t]
            action_sum += -float((teacher_logs.exp() * student_logs).sum().detach())
            value_sum += float((value - values[row, t]).square().sum().detach())
    assert counted == 5
    assert float(action_loss.detach()) == pytest.approx(0.5 * action_sum / 5, rel=1e-4)
    assert float(value_loss.detach()) == pytest.approx(0.5 * value_sum / 5, rel=1e-4)


def test_shapes_that_do_not_fit_are_not_broadcast(build_rig, store, teacher_uri):
    rig = build_rig()
    rig.collect()
    kickstarter = kickstarter_for(rig, store, teacher_uri=teacher_uri(rig, "one", 1))
    minibatch, log_probs, values = batch_of(rig)
    with pytest.raises(AssertionError):
        kickstarter.loss(0, log_probs, values.reshape(-1, 1), rig.experience, minibatch)


def test_student_learns_from_the_teacher_which_itself_gets_no_gradient(build_rig, store, teacher_uri):
    rig = build_rig(horizon=16, optimizer={"learning_rate": 0.01}, trainer={"update_epochs": 30})
    rig.collect()
    kickstarter = kickstarter_for(rig, store, teacher_uri=teacher_uri(rig, "one", 1), action_loss_coef=10.0)
    teacher = kickstarter.teachers[0].policy
    with torch.no_grad():
        teacher.actor[-1].bias += torch.tensor([0.0, 3.0])  # it is sure of itself
    terms = []
    for _ in range(30):
        advantages = batch_advantages(rig.experience, rig.config, "cpu")
        minibatch = rig.experience.sample_minibatch(advantages, 0.0, 1.0, 0, 1)
        rig.losses.zero()
        arguments = (rig.experience, minibatch, advantages, rig.config, kickstarter, 0, rig.losses, "cpu")
        rig.optimizer.step(process_minibatch_update(rig.agent, *arguments), 0)
        terms.append(rig.losses.ks_action_loss_sum + rig.losses.ks_value_loss_sum)

    assert terms[-1] < 0.9 * terms[0]
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not teacher.training


def test_teacher_memory_goes_on_from_batch_to_batch_as_if_it_had_acted_step_by_step(build_rig, store, teacher_uri):
    rig = build_rig("mettagrid:smoke", num_envs=3, horizon=10, segments_per_agent=2, agent=LSTM)
    kickstarter = kickstarter_for(rig, store, teacher_uri=teacher_uri(rig, "one", 1, **LSTM))
    teacher = kickstarter.teachers[0].policy
    state = PolicyState()
    for _ in range(3):
        rig.collect()
        minibatch, log_probs, values = batch_of(rig)
        kickstarter.loss(0, log_probs, values, rig.experience, minibatch)
        seen = kickstarter.teachers[0].log_probs
        for rows in rig.experience.agent_rows():
            inputs = rig.experience.inputs(rows)
            for t in range(10):
                state.resets = inputs["dones"][:, t] > 0
                state.last_actions, state.last_rewards = inputs["last_actions"][:, t], inputs["rewards"][:, t]
                with torch.no_grad():
                    _, _, _, _, one_by_one = teacher(inputs["obs"][:, t], state, inputs["actions"][:, t])
                torch.testing.assert_close(seen[rows, t], one_by_one, atol=1e-5, rtol=0)
    assert rig.experience.dones.sum() > 0


def test_teacher_memory_is_saved_and_loaded(build_rig, store, teacher_uri):
    rig = build_rig(agent=LSTM)
    uri = teacher_uri(rig, "one", 1, **LSTM)
    one, two = (kickstarter_for(rig, store, teacher_uri=uri) for _ in range(2))
    assert one.state_dict() == {"teachers": [{}]}
    rig.collect()
    one.loss(0, *batch_of(rig)[1:], rig.experience, batch_of(rig)[0])
    two.load_state_dict(one.state_dict())
    rig.collect()
    minibatch, log_probs, values = batch_of(rig)
    terms = [k.loss(0, log_probs, values, rig.experience, minibatch) for k in (one, two)]
    assert terms[0] == terms[1]

    with pytest.raises(ValueError, match="1 kickstart teachers, here are 0"):
        kickstarter_for(rig, store).load_state_dict(one.state_dict())


def test_after_the_last_kickstart_step_teachers_cost_nothing(build_rig, store, teacher_uri):
    rig = build_rig()
    rig.collect()
    kickstarter = kickstarter_for(rig, store, teacher_uri=teacher_uri(rig, "one", 1), kickstart_steps=10)
    minibatch, log_probs, values = batch_of(rig)

    assert [float(term) for term in kickstarter.loss(11, log_probs, values, rig.experience, minibatch)] == [0.0, 0.0]
    assert kickstarter.teachers[0].log_probs.numel() == 0, "it was not asked"


def test_teachers_that_cannot_help_are_refused(build_rig, store, teacher_uri):
    rig = build_rig()
    with pytest.raises(ConfigError, match="no policy_store"):
        Kickstarter(KickstartConfig(teacher_uri="file:///x"), "cpu", None, rig.vecenv)
    with pytest.raises(MettaRayError, match="nowhere"):
        kickstarter_for(rig, store, teacher_uri="file:///nowhere")
    uri = teacher_uri(rig, "one", 1)
    other = build_rig("gym:Acrobot-v1")
    with pytest.raises(MettaRayError, match=r"shape|Discrete"):
        kickstarter_for(other, store, teacher_uri=uri)
    continuous = build_rig("gym:Pendulum-v1")
    with pytest.raises(ConfigError, match="discrete actions"):
        kickstarter_for(continuous, store, teacher_uri=uri)
    assert not kickstarter_for(rig, store).enabled
