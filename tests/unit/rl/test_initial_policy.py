"""A new run that starts from the weights of an existing policy."""

from __future__ import annotations

import pytest
import torch

from metta_ray.agent.policy_store import PolicyStore
from metta_ray.common.errors import CheckpointError, PolicyMismatchError
from metta_ray.rl.initial_policy import load_initial_policy
from metta_ray.rl.trainer_checkpoint import save_checkpoint
from metta_ray.rl.trainer_config import InitialPolicyConfig


@pytest.fixture
def store(tmp_path):
    return PolicyStore(device="cpu", data_dir=str(tmp_path))


@pytest.fixture
def three_policies(build_rig, tmp_path):
    """Epochs 1, 2 and 3 with scores 0.5, 0.9 and 0.1: their weights by epoch, and the directory."""
    folder, weights = tmp_path / "checkpoints", {}
    for epoch, score in ((1, 0.5), (2, 0.9), (3, 0.1)):
        rig = build_rig(seed=epoch)
        save_checkpoint(epoch, 0, rig.agent, rig.optimizer, None, folder, 1, metadata={"score": score})
        weights[epoch] = rig.weights()
    return folder, weights


def chosen_epoch(agent, weights) -> int:
    (epoch,) = [
        epoch
        for epoch, saved in weights.items()
        if all(torch.equal(tensor, saved[name]) for name, tensor in agent.state_dict().items())
    ]
    return epoch


@pytest.mark.parametrize(
    ("config", "epoch"), [({"type": "top", "metric": "score"}, 2), ({"type": "latest"}, 3), ({"type": "top"}, 3)]
)
def test_the_policy_asked_for_is_taken(build_rig, store, three_policies, config, epoch):
    folder, weights = three_policies
    agent = build_rig(seed=9).agent
    uri = load_initial_policy(agent, store, InitialPolicyConfig(uri=str(folder), **config))

    assert chosen_epoch(agent, weights) == epoch
    assert uri is not None
    assert uri.endswith(f"model_{epoch:04d}")


def test_one_policy_can_be_named(build_rig, store, three_policies):
    folder, weights = three_policies
    agent = build_rig(seed=9).agent
    load_initial_policy(agent, store, InitialPolicyConfig(uri=str(folder / "model_0001"), type="specific"))
    assert chosen_epoch(agent, weights) == 1


def test_among_several_chance_decides(build_rig, store, three_policies):
    folder, weights = three_policies
    agent = build_rig(seed=9).agent
    config = InitialPolicyConfig(uri=str(folder), type="latest", range=2)
    seen = set()
    for _ in range(20):
        load_initial_policy(agent, store, config)
        seen.add(chosen_epoch(agent, weights))
    assert seen == {2, 3}


def test_filters_exclude(build_rig, store, three_policies):
    folder, weights = three_policies
    agent = build_rig(seed=9).agent
    load_initial_policy(agent, store, InitialPolicyConfig(uri=str(folder), type="latest", filters={"epoch": 1}))
    assert chosen_epoch(agent, weights) == 1


def test_without_a_uri_nothing_happens(build_rig, store):
    rig = build_rig()
    before = rig.weights()
    assert load_initial_policy(rig.agent, store, InitialPolicyConfig()) is None
    assert all(torch.equal(before[name], tensor) for name, tensor in rig.agent.state_dict().items())


def test_what_is_missing_or_does_not_fit_is_refused(build_rig, store, three_policies, tmp_path):
    folder, _ = three_policies
    with pytest.raises(CheckpointError, match="nowhere"):
        load_initial_policy(build_rig().agent, store, InitialPolicyConfig(uri=str(tmp_path / "nowhere")))
    other = build_rig(agent={"hidden_sizes": (4,)}).agent
    with pytest.raises(PolicyMismatchError, match="another architecture"):
        load_initial_policy(other, store, InitialPolicyConfig(uri=str(folder)))
