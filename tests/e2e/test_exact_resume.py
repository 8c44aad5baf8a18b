"""2k epochs in one go equal k epochs, a stop, a new process and k epochs: bit for bit, on the CPU in fp32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from metta_ray.common.util.state_directory import load_tree
from tests.e2e.small_runs import SMALL_CARTPOLE

CARTPOLE = [
    *SMALL_CARTPOLE,
    "--evaluate",
    "false",
    "--trainer.update-epochs",
    "2",
    "--trainer.checkpoint.checkpoint-interval",
    "100",
]
# 4 environments whose episodes last 50 steps, 40 steps per epoch: every cut lies inside episodes.
NAVIGATION = [
    "--preset",
    "navigation",
    "--evaluate",
    "false",
    "--num-envs",
    "4",
    "--env-overrides.max-steps",
    "50",
    "--trainer.bptt-horizon",
    "20",
    "--trainer.minibatch-size",
    "160",
    "--trainer.update-epochs",
    "1",
    "--trainer.checkpoint.checkpoint-interval",
    "100",
    # Runs that start beside each other on a machine that has not measured yet could each find another way faster.
    "--trainer.autocast",
    "none",
    "--agent.gather-conv",
    "true",
]
TIMING = ("share/", "epoch_seconds", "agent_steps_per_second")


def described(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was learned, without how long it took; NaN compares equal to itself as text."""
    return [{name: repr(value) for name, value in line.items() if not name.startswith(TIMING)} for line in metrics]


def learned_state(checkpoint: Path) -> dict[str, Any]:
    """Everything in a checkpoint but clocks and paths."""
    trainer = {key: value for key, value in load_tree(checkpoint, "trainer").items() if key != "stopwatch"}
    state = {"trainer": repr_tree(trainer), "policy": (checkpoint / "policy.safetensors").read_bytes()}
    for path in sorted(checkpoint.glob("rank*.json")):
        state[path.stem] = repr_tree(load_tree(checkpoint, path.stem))
    return state


def repr_tree(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: repr_tree(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [repr_tree(value) for value in tree]
    return tree.tobytes() if hasattr(tree, "tobytes") else repr(tree)


def assert_same_outcome(whole: Any, resumed: Any) -> None:
    assert described(whole.metrics()) == described(resumed.metrics())
    assert whole.checkpoints()[-1] == resumed.checkpoints()[-1]
    name = whole.checkpoints()[-1]
    one = learned_state(whole.run_dir / "checkpoints" / name)
    two = learned_state(resumed.run_dir / "checkpoints" / name)
    assert one.keys() == two.keys()
    for key in one:
        assert one[key] == two[key], f"{key} differs"


def run_whole_and_in_two_parts(start_training, options: list[str], total: int, cut: int, ranks: int = 1) -> str:
    """Compares both; returns what the resumed process printed."""
    options = [*options, "--total-timesteps", str(total)]
    whole = start_training(*options, run="whole", ranks=ranks)
    start_training(*options, "--stop-after-epochs", cut, run="parts", ranks=ranks).wait()
    resumed = start_training(*options, run="parts", ranks=ranks)
    out, _ = resumed.wait()
    whole.wait()
    assert_same_outcome(whole, resumed)
    return out


def test_cartpole_resumes_bit_for_bit_with_evaluations_on_the_way(start_training):
    """The run in one go evaluates after epochs 2 and 4, the interrupted one only after epoch 4."""
    every_two = ["--trainer.checkpoint.checkpoint-interval", "2", "--trainer.simulation.evaluate-interval", "2"]
    every_two += ["--trainer.checkpoint.wandb-checkpoint-interval", "0"]
    out = run_whole_and_in_two_parts(start_training, [*CARTPOLE, *every_two], total=6 * 256, cut=2)

    assert "evaluation of model_0004" in out
    assert "continuing parts after epoch 2, 512 agent steps" in out
    assert "restored weights, optimiser, schedules, curriculum, environments" in out


def test_recurrent_navigation_resumes_bit_for_bit_in_the_middle_of_episodes(start_training, tmp_path):
    batch = agents_of_navigation() * 40
    options = [*NAVIGATION, "--trainer.batch-size", str(batch)]
    run_whole_and_in_two_parts(start_training, options, total=6 * batch, cut=3)

    trainer = json.loads((tmp_path / "runs/parts/checkpoints/model_0003/rank0.json").read_text())
    assert trainer["vecenv"], "environments are part of the checkpoint"
    curriculum = load_tree(tmp_path / "runs/parts/checkpoints/model_0006", "rank0")["curriculum"]
    assert curriculum, "the curriculum is part of the checkpoint"


def agents_of_navigation() -> int:
    from metta_ray.envs.registry import resolve_env

    return 4 * resolve_env("mettagrid:bucketed").spec().agents_per_env


@pytest.mark.parametrize("ranks", [2])
def test_two_ranks_resume_bit_for_bit(start_training, ranks):
    run_whole_and_in_two_parts(start_training, CARTPOLE, total=4 * 512, cut=2, ranks=ranks)


def test_worker_processes_resume_bit_for_bit(start_training):
    batch = agents_of_navigation() * 40
    options = [*NAVIGATION, "--trainer.batch-size", str(batch), "--num-workers", "2", "--async-factor", "2"]
    run_whole_and_in_two_parts(start_training, options, total=4 * batch, cut=2)


def test_a_run_that_was_asked_to_stop_by_sigterm_resumes_bit_for_bit(start_training):
    options = [*CARTPOLE, "--total-timesteps", str(30 * 256)]
    whole = start_training(*options, run="whole")
    stopped = start_training(*options, run="parts")
    stopped.stop_after_line(3)
    out, _ = stopped.wait()
    epochs = len(stopped.metrics())
    assert 3 <= epochs < 30, "it stopped on the way"
    assert f"model_{epochs:04d}" in out, "and saved where it stopped"
    resumed = start_training(*options, run="parts")
    resumed.wait()
    whole.wait()
    assert_same_outcome(whole, resumed)
