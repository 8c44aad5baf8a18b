"""The line of an epoch and the file of all epochs."""

from __future__ import annotations

import json

import pytest

from metta_ray.common.profiling.stopwatch import Stopwatch
from metta_ray.rl.progress import EpochProgress, MetricsLog

SPEED = {"agent_steps_per_second": 15210.4, "epoch_seconds": 2.0}
SHARES = {"share/environment": 0.25, "share/inference": 0.3, "share/training": 0.4, "share/other": 0.05}


def write(log: MetricsLog, epoch: int, **metrics: object) -> None:
    log.write(epoch, epoch * 100, SPEED, metrics, losses={"entropy": 0.5}, hyperparameters={"lr": 0.001})


def test_a_line_of_the_file_has_every_number_under_its_name(tmp_path):
    write(MetricsLog(tmp_path), 3, **{"overview/reward": 1.5, "names": ["a"]})

    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "epoch": 3,
        "agent_step": 300,
        **SPEED,
        "losses/entropy": 0.5,
        "hyperparameters/lr": 0.001,
        "overview/reward": 1.5,
    }


def test_on_resume_epochs_that_were_not_saved_are_dropped(tmp_path):
    log = MetricsLog(tmp_path)
    for epoch in range(1, 6):
        write(log, epoch)
    with log.path.open("a") as file:
        file.write('{"epoch": 6, "agent_st')  # the process died here
    resumed = MetricsLog(tmp_path, keep_until_epoch=3)
    write(resumed, 4)

    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]


def test_a_first_start_has_nothing_to_drop(tmp_path):
    write(MetricsLog(tmp_path, keep_until_epoch=0), 1)
    assert (tmp_path / "metrics.jsonl").exists()


def test_shares_of_phases_and_the_rest_make_the_whole():
    timer = Stopwatch()
    timer.start()
    progress = EpochProgress(timer, 1000)
    for _ in range(2):
        with timer("_rollout.env"):
            sum(range(20000))
        with timer("_train"):
            sum(range(20000))
        lap = progress.lap(100)
        shares = {name: value for name, value in lap.items() if name.startswith("share/")}
        assert set(shares) == {"share/environment", "share/inference", "share/training", "share/other"}
        assert sum(shares.values()) == pytest.approx(1.0)
        assert shares["share/inference"] == 0.0
        assert lap["agent_steps_per_second"] == pytest.approx(100 / lap["epoch_seconds"])


def test_the_line_is_readable():
    progress = EpochProgress(Stopwatch(), 1000)
    line = progress.line(12, 310, [3.0, 3.512], SPEED | SHARES)

    assert line.startswith("[######··············]  31% epoch 12 · 310 agent steps · 15,210/s · reward 3.26 · ")
    assert line.endswith("environment 25% inference 30% training 40%")
    assert "reward –" in EpochProgress(Stopwatch(), 10).line(1, 10, [], SPEED | SHARES)
    assert "100%" in progress.line(99, 1024, [], SPEED | SHARES)


def test_the_reward_shown_is_the_mean_of_the_last_fifty_episodes():
    progress = EpochProgress(Stopwatch(), 1000)
    progress.line(1, 10, [100.0] * 30, SPEED | SHARES)

    assert "reward 2.20" in progress.line(2, 20, [1.0] * 20 + [3.0] * 30, SPEED | SHARES)
    assert "reward 2.20" in progress.line(3, 30, [], SPEED | SHARES), "an epoch without an end of an episode"
