"""Every code block of the document that this library promises to run, as printed, after the prefix change.

The blocks run in order in one namespace, as a reader would type them. What the prose takes for granted (a loss, an
experience buffer, a directory) is supplied before a block; where the document prints ``...`` the test writes the
arguments that the reference lists. Product code never sees an Ellipsis.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from metta_ray.agent.metta_agent import MettaAgent
from metta_ray.envs.vecenv import VecEnv
from metta_ray.rl.run_directories import release_run_directories

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "tests" / "golden" / "seed_api.md"
HAS_GPU = torch.cuda.is_available()
Namespace = dict[str, Any]

# "..." of the document → what the reference lists for this place.
ARGUMENTS = {
    '{"agent": {...}}': '{"agent": {"architecture": "light", "lstm_hidden_size": 96}}',
    "compute_advantage(...)": """compute_advantage(
        experience.values, experience.rewards, experience.dones, torch.ones_like(experience.values),
        torch.zeros_like(experience.values), 0.99, 0.95, 1.0, 1.0, device)""",
    "process_minibatch_update(...)": """process_minibatch_update(
        agent, experience, experience.sample_minibatch(advantages, 0.0, 1.0, 0, 1), advantages, trainer_config,
        kickstarter, agent_step, losses, device)""",
}

# What the prose presupposes, block by block, as a reader would have written it above.
EXPERIENCE = """
from metta_ray.agent.policy_state import PolicyState
from metta_ray.api import Kickstarter, Losses, Stopwatch

trainer_config = TrainerConfig(batch_size=256, minibatch_size=256, bptt_horizon=64)
experience = Experience(
    total_agents=env.num_agents, batch_size=256, bptt_horizon=64, minibatch_size=256, max_minibatch_size=256,
    obs_space=env.driver_env.single_observation_space, atn_space=env.driver_env.single_action_space,
    device=device, hidden_size=agent.hidden_size, num_lstm_layers=agent.core_num_layers,
)
timer, stats, losses, agent_step = Stopwatch(), {}, Losses(), 0
kickstarter = Kickstarter(trainer_config.kickstart, device, None, env)
"""
LOSS = """
from metta_ray.agent.policy_state import PolicyState

received = env.recv()
_, logprobs, _, values, _ = agent(torch.from_numpy(received.obs).to(device), PolicyState())
env.hold()
loss, epoch = (values - 1.0).square().mean() - logprobs.mean(), 0
weights_before = [parameter.detach().clone() for parameter in agent.parameters()]
"""
DISTRIBUTED = """
from metta_ray.api import setup_distributed_vars

single_agent = agent
"""
CHECKPOINT = """
epoch, agent_step = 20, 5120
policy_store, checkpoint_dir = PolicyStore(device=str(device)), dirs.checkpoint_dir
"""
REPORT = """
from torch.nn.parallel import DistributedDataParallel
from metta_ray.api import cleanup_distributed

assert isinstance(agent, DistributedDataParallel) and world_size == 2
assert (saved_policy is None) == (not is_master)
checksum = sum(parameter.double().sum().item() for parameter in agent.parameters())
print(f"rank {rank} ends with {checksum:.12f} at {agent_step} {epoch}\\n", end="", flush=True)  # in one piece
cleanup_distributed()
"""
GIVEN = ("", "", "", LOSS, EXPERIENCE, DISTRIBUTED, CHECKPOINT, "")


def blocks() -> list[str]:
    found = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    assert len(found) == len(GIVEN)
    return found


def as_run_here(block: str) -> str:
    """The block after the prefix change, with arguments for each printed ``...``."""
    ported = re.sub(r"\bmetta\.", "metta_ray.", block)
    for printed, meant in ARGUMENTS.items():
        ported = ported.replace(printed, meant)
    assert "..." not in ported, "a new ... in the document: say in ARGUMENTS what it stands for"
    return ported


@pytest.fixture
def run_through(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[int], Namespace]]:
    """Runs the blocks up to and with the given one, and returns the namespace that a reader would have."""
    monkeypatch.chdir(tmp_path)
    namespace: Namespace = {"__name__": "seed_document"}
    done = 0

    def run(last: int) -> Namespace:
        nonlocal done
        for number in range(done, last + 1):
            for source in (GIVEN[number], as_run_here(blocks()[number])):
                exec(compile(source, f"block {number} of {DOCUMENT.name}", "exec"), namespace)
        done = last + 1
        return namespace

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*CUDA is not available.*")
        yield run
    if "env" in namespace:
        namespace["env"].close()
    if "dirs" in namespace:
        release_run_directories(namespace["dirs"])


def test_quick_start_makes_directories_an_environment_and_a_policy(run_through, tmp_path):
    seen = run_through(0)

    assert Path(seen["dirs"].checkpoint_dir).is_dir()
    assert Path(seen["dirs"].run_dir).parent == tmp_path / "train_dir"
    assert seen["device"].type == ("cuda" if HAS_GPU else "cpu")
    assert isinstance(seen["env"], VecEnv)
    assert len(seen["env"].curriculum.task_table().templates) == 64
    assert isinstance(seen["agent"], MettaAgent)


def test_environment_with_sizes_and_with_curriculum(run_through):
    seen = run_through(0)
    simple, with_curriculum = as_run_here(blocks()[1]).split("\n\n")

    exec(simple, seen)
    room = seen["env"].curriculum.task_table().templates
    assert seen["env"].num_agents == 4
    assert [(task.spec.width, task.spec.height) for task in room] == [(32, 32)]

    exec(with_curriculum, seen)
    assert len(seen["env"].curriculum.task_table().templates) == 64


def test_agent_for_cuda_warns_and_uses_the_cpu_where_there_is_no_gpu(run_through, caplog):
    seen = run_through(1)
    default, custom = as_run_here(blocks()[2]).split("\n\n")

    with caplog.at_level(logging.WARNING):
        exec(default, seen)
    assert next(seen["agent"].parameters()).device.type == ("cuda" if HAS_GPU else "cpu")
    assert ("'cuda'" in caplog.text and "using the CPU" in caplog.text) == (not HAS_GPU)
    assert seen["agent"].config.architecture == "default"
    assert seen["agent"].hidden_size == 512

    exec(custom, seen)
    assert type(seen["config"]).__name__ == "DictConfig"
    assert seen["agent"].config.architecture == "light"
    assert seen["agent"].hidden_size == 96


def test_optimizer_step_moves_the_weights_against_the_loss(run_through):
    seen = run_through(3)

    assert seen["optimizer"].last_grad_norm > 0
    pairs = zip(seen["weights_before"], seen["agent"].parameters(), strict=True)
    assert any(not torch.equal(before, after) for before, after in pairs)
    assert seen["optimizer"].param_groups[0]["lr"] == 3e-4


def test_optimizer_block_runs_with_muon_too(run_through):
    seen = run_through(2)
    block = as_run_here(blocks()[3])
    assert '"adam",  # or "muon"' in block

    exec(LOSS + block.replace('"adam"', '"muon"'), seen)

    assert {type(one).__name__ for one in seen["optimizer"].optimizers} == {"Adam", "Muon"}


def test_training_functions_fill_the_buffer_and_give_a_loss_with_gradient(run_through):
    seen = run_through(4)
    experience, advantages, loss = seen["experience"], seen["advantages"], seen["loss"]

    assert experience.ready_for_training
    assert seen["num_steps"] == seen["env"].num_agents
    assert experience.mask.all()
    # The recurrence, at the last column that it reaches: A = r' + γ·(1 - done')·V' - V.
    last = experience.rewards[:, -1] + 0.99 * (1 - experience.dones[:, -1]) * experience.values[:, -1]
    torch.testing.assert_close(advantages[:, -2], last - experience.values[:, -2])
    assert advantages.shape == experience.values.shape
    assert not advantages.requires_grad
    assert loss.shape == ()
    assert torch.isfinite(loss)
    assert seen["losses"].minibatches_processed == 1

    seen["agent"].zero_grad()
    loss.backward()
    with_gradient = [parameter.grad is not None and parameter.grad.any() for parameter in seen["agent"].parameters()]
    assert all(with_gradient)


def test_episode_infos_of_the_rollout_end_up_in_the_stats(run_through):
    seen = run_through(3)
    block = as_run_here(blocks()[4])
    exec(EXPERIENCE, seen)

    # As printed, the infos of the last step are the ones that count: episodes of one step end there too.
    exec("env.close()\nenv = Environment(num_agents=4, env_config={'max_steps': 1})", seen)
    exec(block, seen)

    assert seen["stats"]
    assert any(path.startswith("task_reward/") for path in seen["stats"]), sorted(seen["stats"])


def test_distributed_setup_in_one_process_changes_nothing(run_through):
    seen = run_through(5)

    assert seen["device"].type == ("cuda" if HAS_GPU else "cpu")
    assert (seen["is_master"], seen["world_size"], seen["rank"]) == (True, 1, 0)
    assert seen["agent"] is seen["single_agent"]


def test_load_checkpoint_gives_back_what_save_checkpoint_saved(run_through):
    seen = run_through(4)
    seen["optimizer"].step(seen["loss"], 0)
    run_through(5)
    save, load = as_run_here(blocks()[6]).split("\n\n")
    exec(CHECKPOINT + save, seen)
    weights = {name: tensor.clone() for name, tensor in seen["agent"].state_dict().items()}
    moments = seen["optimizer"].optimizer.state_dict()["state"][0]["exp_avg"].clone()

    # Another start: fresh weights, fresh optimiser, forgotten counters.
    fresh = as_run_here(blocks()[2]).split("\n\n")[1] + as_run_here(blocks()[3]).split("# Training step")[0]
    exec(fresh + "\nepoch = agent_step = None", seen)
    exec(load, seen)

    assert (seen["agent_step"], seen["epoch"]) == (5120, 20)
    assert seen["saved_policy"].uri == f"file://{seen['policy_path']}"
    for name, tensor in seen["agent"].state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=0)
    restored = seen["optimizer"].optimizer.state_dict()["state"][0]["exp_avg"]
    torch.testing.assert_close(restored, moments, rtol=0, atol=0)
    assert seen["policy_store"].policy_record(seen["policy_path"]).metadata["agent_step"] == 5120


def test_configuration_validates_as_printed(run_through):
    config = run_through(7)["trainer_config"]

    assert (config.total_timesteps, config.batch_size) == (10_000_000, 16_384)
    assert (config.ppo.gamma, config.ppo.gae_lambda) == (0.99, 0.95)
    assert config.batch_size % config.minibatch_size == 0


def test_the_document_runs_under_torchrun_with_two_ranks(tmp_path):
    """The same blocks as one script, wrapped before training: both ranks end with the same weights."""
    order = (0, 1, 2, 5, 3, 4, 6, 7)
    parts = [f"{GIVEN[number]}\n{as_run_here(blocks()[number])}" for number in order]
    parts.insert(order.index(4) + 1, "optimizer.step(loss, epoch)")
    script = tmp_path / "script.py"
    script.write_text("\n".join([*parts, REPORT]).replace('"cuda"', '"cpu"'))

    environment = {**os.environ, "DATA_DIR": str(tmp_path / "runs"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    run = subprocess.run(
        ["timeout", "--signal=TERM", "200", *command], cwd=tmp_path, env=environment, capture_output=True, text=True
    )

    assert run.returncode == 0, run.stderr[-4000:]
    reports = dict(re.findall(r"rank (\d) ends with (.*)", run.stdout))
    assert reports.keys() == {"0", "1"}
    assert reports["0"] == reports["1"]
