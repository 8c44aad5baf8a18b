"""Two real processes over gloo: what ranks agree on, and that two halves make one whole."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from metta_ray.agent.agent_config import AgentConfig
from metta_ray.agent.factory import build_policy
from metta_ray.agent.metta_agent import MettaAgent
from metta_ray.common.errors import ConfigError
from metta_ray.common.util.state_directory import tree_from_bytes, tree_to_bytes
from metta_ray.envs.env_spec import EnvSpec
from metta_ray.rl.distributed import (
    all_reduce_sum,
    barrier,
    broadcast_bytes,
    cleanup_distributed,
    gather_bytes,
    setup_device_and_distributed,
    setup_distributed_vars,
    sum_over_ranks,
    unwrap_agent,
    wrap_agent_distributed,
)
from metta_ray.rl.experience import Experience
from metta_ray.rl.losses import Losses
from metta_ray.rl.optimizer import Optimizer
from metta_ray.rl.trainer_config import TrainerConfig
from metta_ray.rl.update import batch_advantages, minibatch_totals, process_minibatch_update, update_policy

ROOT = Path(__file__).parents[3]
TIMEOUT_S = 120
AGENTS, T = 8, 6
KEPT: list[object] = []
"""Policies of ranks in this process. With a DDP wrapper its process group goes, which waits for gloo's thread, and that
may just be waiting for the interpreter."""
SPEC = EnvSpec("gym:toy", spaces.Box(-1, 1, (4,)), spaces.Discrete(3))


# The data of one process with 8 agents: rank r of n trains on its share of the rows. The rows of agent i have
# i masked actions, so the ranks' shares have different numbers of them.
def experience_of_this_rank(policy: MettaAgent, rank: int, world_size: int) -> Experience:
    """Made-up steps of all agents, of which this rank keeps its share."""
    share = AGENTS // world_size
    mine = slice(rank * share, (rank + 1) * share)
    random = torch.Generator().manual_seed(5)
    sizes = (share, share * T, T, share * T, share * T)
    experience = Experience(
        *sizes,
        SPEC.observation_space,
        SPEC.action_space,
        "cpu",
        hidden_size=policy.hidden_size,
        num_lstm_layers=policy.core_num_layers,
    )
    experience.reset_for_rollout()
    rows = slice(0, share)
    for t in range(T + 1):
        obs = torch.randn(AGENTS, 4, generator=random)[mine]
        actions = torch.randint(3, (AGENTS,), generator=random)[mine]
        logprobs = -1.1 + 0.2 * torch.randn(AGENTS, generator=random)[mine]
        rewards, values = torch.randn(2, AGENTS, generator=random)[:, mine]
        dones = (torch.rand(AGENTS, generator=random) < 0.2)[mine]
        mask = torch.tensor([t >= agent for agent in range(AGENTS)])[mine]
        state = torch.randn(2, 1, AGENTS, policy.hidden_size, generator=random)[:, :, mine]
        outcome = (rewards, dones, torch.zeros_like(dones))
        if t < T:
            recurrent = {"lstm_h": state[0], "lstm_c": state[1]}
            experience.store(obs, actions, logprobs, *outcome, values, rows, mask, recurrent)
        else:
            experience.close(*outcome, values, rows, mask)
    return experience


def config(world_size: int, **ppo: float) -> TrainerConfig:
    steps = AGENTS // world_size * T
    sizes = {"batch_size": steps, "minibatch_size": steps, "bptt_horizon": T, "update_epochs": 30}
    return TrainerConfig.from_mapping({**sizes, "ppo": {"max_grad_norm": 1e9, "l2_reg_loss_coef": 0.01} | ppo})


def parameters_of(agent: MettaAgent) -> np.ndarray:
    return torch.cat([parameter.detach().flatten() for parameter in agent.parameters()]).numpy().copy()


def found_by_this_rank() -> dict[str, Any]:
    """What one rank, told by its environment variables who it is, finds out; alone without those."""
    torch.set_num_threads(1)
    setup_device_and_distributed("cpu")
    _, world_size, rank = setup_distributed_vars()
    torch.manual_seed(100 + (rank if world_size > 1 else 0))
    agent = build_policy(SPEC, AgentConfig(architecture="mlp", hidden_sizes=(8,), lstm_hidden_size=8))
    policy = wrap_agent_distributed(agent, "cpu")
    KEPT.append(policy)
    experience = experience_of_this_rank(agent, rank, world_size)
    losses = Losses()
    optimizer = Optimizer(policy=policy, learning_rate=0.1, max_grad_norm=1e9)
    once = config(world_size)
    advantages = batch_advantages(experience, once, "cpu")
    minibatch = experience.sample_minibatch(advantages, 0.0, 1.0, 0, 1)
    optimizer.zero_grad()
    process_minibatch_update(policy, experience, minibatch, advantages, once, None, 0, losses, "cpu").backward()
    result: dict[str, Any] = {
        "gradient": torch.cat([p.grad.flatten() for p in agent.parameters()]).numpy(),
        "masked": int((~experience.mask).sum()),
        "before": parameters_of(agent),
    }

    totals = minibatch_totals(advantages, torch.zeros_like(advantages), experience.mask)
    result["totals"] = [float(totals.mean), float(totals.std), float(totals.count_per_rank)]

    update_policy(policy, optimizer, experience, config(world_size, target_kl=0.05), None, 0, 0, losses, "cpu")
    result["stopped_after"] = losses.minibatches_processed

    # One rank's data spoilt: every rank skips.
    experience._rewards[:, -1] = float("inf") if rank == world_size - 1 else 0.0
    two_passes = once.model_copy(update={"update_epochs": 2})
    update_policy(policy, optimizer, experience, two_passes, None, 0, 0, losses, "cpu")
    result["skipped"] = optimizer.skipped_updates
    result["after"] = parameters_of(agent)
    last = world_size - 1
    result["gathered"] = [message.decode() for message in gather_bytes(f"rank {rank}".encode() * (rank + 1))]
    result["broadcast"] = broadcast_bytes(b"from one" if rank == last else b"", source=last).decode()
    result["sum"] = sum_over_ranks(rank + 1)
    result["empty"] = broadcast_bytes(b"").decode()
    barrier()
    cleanup_distributed()
    return result


def second_rank(file: str) -> None:
    """The whole life of the other process."""
    Path(file).write_bytes(tree_to_bytes(found_by_this_rank()))
    os._exit(0)  # gloo's thread may still want the interpreter


def as_torchrun_tells(rank: int, port: int) -> dict[str, str]:
    group = {"LOCAL_RANK": rank, "RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    return {name: str(value) for name, value in group.items()}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a process alone, and of two ranks: the first of them is this process, the second one of its own."""
    file = tmp_path_factory.mktemp("ranks") / "second"
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    code = "import sys; from tests.unit.rl.test_distributed import second_rank; second_rank(sys.argv[1])"
    environment = os.environ | as_torchrun_tells(1, port) | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(file)], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        alone = found_by_this_rank()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in as_torchrun_tells(0, port).items():
                patch.setenv(name, value)
            first = found_by_this_rank()
        _, errors = other.communicate(timeout=TIMEOUT_S)
        assert other.returncode == 0, errors
    finally:
        other.kill()
        cleanup_distributed()
    return {"one": alone, "two": [first, tree_from_bytes(file.read_bytes())]}


def test_two_ranks_with_half_the_batch_each_give_the_gradient_of_the_whole(outcomes):
    one, (first, second) = outcomes["one"], outcomes["two"]

    assert first["masked"] != second["masked"]
    assert first["masked"] + second["masked"] == one["masked"]
    assert (one["before"] == first["before"]).all(), "rank 0 has the weights of the single process …"
    assert (first["before"] == second["before"]).all(), "… and rank 1, seeded differently, took them over"
    for rank in (first, second):
        torch.testing.assert_close(
            torch.from_numpy(rank["gradient"]), torch.from_numpy(one["gradient"]), atol=1e-6, rtol=0
        )


def test_advantages_are_normalised_over_all_ranks(outcomes):
    mean, std, count = outcomes["one"]["totals"]
    for rank in outcomes["two"]:
        assert rank["totals"] == pytest.approx([mean, std, count / 2], rel=1e-5)


def test_k12_all_ranks_stop_for_divergence_at_the_same_minibatch(outcomes):
    first, second = outcomes["two"]

    assert first["stopped_after"] == second["stopped_after"] == outcomes["one"]["stopped_after"]
    assert 1 < first["stopped_after"] < 30


def test_numbers_that_are_none_on_one_rank_skip_the_update_on_all(outcomes):
    first, second = outcomes["two"]

    assert first["skipped"] == second["skipped"] == 2
    assert (first["after"] == second["after"]).all()


def test_k35_messages_reach_every_rank(outcomes):
    for rank in outcomes["two"]:
        assert rank["gathered"] == ["rank 0", "rank 1rank 1"]
        assert rank["broadcast"] == "from one"
        assert rank["sum"] == 3
        assert rank["empty"] == ""


# Without a process group


def test_a_single_process_is_its_own_master():
    assert setup_distributed_vars() == (True, 1, 0)
    tensor = torch.ones(2)
    assert all_reduce_sum(tensor) is tensor
    assert sum_over_ranks(7) == 7
    assert broadcast_bytes(b"x") == b"x"
    assert gather_bytes(b"x") == [b"x"]
    barrier()
    cleanup_distributed()


def test_without_a_group_the_agent_is_not_wrapped(build_rig):
    agent = build_rig().agent
    assert wrap_agent_distributed(agent, "cpu") is agent
    assert unwrap_agent(agent) is agent


def test_cuda_without_a_gpu_warns_and_means_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.warns(UserWarning, match="CUDA is not available"):
        assert setup_device_and_distributed("cuda") == torch.device("cpu")


def test_a_name_that_is_no_device_is_refused():
    with pytest.raises(ConfigError, match="device='tpu'"):
        setup_device_and_distributed("tpu")
