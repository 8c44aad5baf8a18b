"""A fast subset of what the presets learn. Thresholds are far above what a policy that learns nothing can reach,
and well below what is reached (see the README's table), so that other processors and versions pass too."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]


def train(tmp_path, *options):
    """Runs run.py without its final evaluation; returns the lines of metrics.jsonl."""
    command = [sys.executable, str(ROOT / "run.py"), "--run", "learning", "--data-dir", str(tmp_path)]
    command += ["--evaluate", "false", *options]
    subprocess.run(command, check=True, cwd=ROOT, timeout=400, capture_output=True)
    lines = (tmp_path / "learning" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def mean_of_last(epochs, name, count):
    return float(np.mean([epoch[name] for epoch in epochs if epoch.get(name) is not None][-count:]))


def test_smoke_is_learned_within_100k_agent_steps(tmp_path):
    epochs = train(tmp_path, "--preset", "smoke", "--total-timesteps", "100000")

    assert mean_of_last(epochs, "env_episode/return", 5) > 20, "random: 0.7, shortest path: about 30"


def test_cartpole_is_learned_within_80k_steps(tmp_path):
    epochs = train(tmp_path, "--preset", "cartpole", "--total-timesteps", "80000")

    assert mean_of_last(epochs, "env_episode/return", 20) > 400, "random: about 22, most possible: 500"


def test_tmaze_is_solved_with_memory(tmp_path):
    # Seeds 1 to 3 are solved within the preset's length, seed 0 is not.
    epochs = train(tmp_path, "--preset", "tmaze", "--seed", "1")

    assert mean_of_last(epochs, "env_episode/score", 8) > 0.85, "chance: 0.5"


def test_tmaze_is_not_solved_without_memory(tmp_path):
    """The engine tells the last action, which is a little memory too: it is left out."""
    without = ["--agent.lstm-hidden-size", "0", "--agent.last-action-token", "false"]
    epochs = train(tmp_path, "--preset", "tmaze", *without)

    assert mean_of_last(epochs, "env_episode/score", 8) < 0.65


def test_navigation_improves_in_small_rooms(tmp_path):
    rooms = ["--env", "mettagrid:navigation", "--env-overrides.terrain", "varied_terrain/balanced_small"]
    epochs = train(tmp_path, *rooms, "--env-overrides.max-steps", "200", "--total-timesteps", "160000", "--seed", "2")

    finished = [epoch["env_episode/return"] for epoch in epochs if "env_episode/return" in epoch]
    assert np.mean(finished[-3:]) > 1.5 * np.mean(finished[:3]), "seeds 0 to 7: 1.48 to 1.98, this one 1.83"
