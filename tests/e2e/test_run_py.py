"""What a person does with ``run.py``: start, continue, start afresh, watch it fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metta_ray.report.run_data import read_run
from tests.e2e.small_runs import SMALL_CARTPOLE

OPTIONS = [*SMALL_CARTPOLE, "--trainer.update-epochs", "1"]

EXPLODING_ENV = '''
import gymnasium, numpy as np

class Exploding(gymnasium.Env):
    """Rewards become infinite after 70 steps of an environment."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    steps = 0

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        reward = float("inf") if self.steps > 70 else 1.0
        return np.zeros(2, np.float32), reward, self.steps % 20 == 0, False, {}
'''


def test_a_run_says_what_it_does_continues_under_its_name_and_starts_afresh_on_request(start_training):
    first = start_training(*OPTIONS, "--total-timesteps", 512)
    out, err = first.wait()
    assert "gym:CartPole-v1" in out
    assert "4 environments" in out
    assert "100% epoch 2 · 512 agent steps" in out
    assert "environment" in out
    assert "inference" in out
    assert "training" in out
    assert "evaluation of model_0002" in out
    assert f"checkpoint: file://{first.run_dir}/checkpoints/model_0002" in out
    assert "resume:     python run.py --run a" in out
    assert "Traceback" not in err

    second = start_training(*OPTIONS, "--total-timesteps", 768, "--evaluate", "false")
    out, _ = second.wait()
    assert "continuing a after epoch 2, 512 agent steps, from" in out
    assert "restored weights, optimiser, schedules, curriculum, environments, recurrent state, random states" in out
    assert [line["epoch"] for line in second.metrics()] == [1, 2, 3]

    fresh = start_training(*OPTIONS, "--total-timesteps", 256, "--evaluate", "false", "--fresh")
    out, _ = fresh.wait()
    assert "continuing" not in out
    assert [line["epoch"] for line in fresh.metrics()] == [1]
    (aside,) = fresh.run_dir.parent.glob("a.before_*")
    assert (aside / "checkpoints" / "model_0003" / "manifest.json").exists()


def test_a_run_with_a_curriculum_writes_down_how_it_stood_and_its_page_shows_it(start_training):
    sizes = ["--num-envs", "16", "--trainer.bptt-horizon", "16"]
    sizes += ["--trainer.batch-size", "1024", "--trainer.minibatch-size", "512"]
    training = start_training("--preset", "navigation", *sizes, "--total-timesteps", 3072, "--evaluate", "false")
    training.wait()

    heat = read_run("a", str(training.run_dir)).heat
    assert heat is not None
    assert heat.is_recorded
    assert heat.agent_steps == [1024, 2048, 3072]
    assert len(heat.tasks) == 64
    assert heat.values[0][0] == pytest.approx(1 / 64, rel=1e-4)


def test_three_updates_in_a_row_that_are_not_finite_end_the_run_and_name_the_last_good_checkpoint(
    start_training, tmp_path: Path
):
    (tmp_path / "exploding.py").write_text(EXPLODING_ENV)
    options = ["--env", "exploding:Exploding", "--trainer.checkpoint.checkpoint-interval", "1", "--evaluate", "false"]
    options += ["--trainer.checkpoint.wandb-checkpoint-interval", "0", "--trainer.simulation.evaluate-interval", "0"]
    training = start_training(*OPTIONS, *options, "--total-timesteps", 100_000)
    out, err = training.wait(expect=1)

    # 64 steps per environment and epoch: the first is sound, every row of the second has an infinity.
    assert training.checkpoints() == ["model_0001"]
    assert err.count("training stopped: 3 updates in a row") == 1
    assert f"Last good checkpoint: {training.run_dir}/checkpoints/model_0001" in err
    assert "Traceback" not in err
    assert "epoch 1" in out
    manifest = json.loads((training.run_dir / "checkpoints/model_0001/manifest.json").read_text())
    assert manifest["kind"] == "trainer_checkpoint"
