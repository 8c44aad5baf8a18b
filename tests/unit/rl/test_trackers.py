"""Trackers beside ``metrics.jsonl``: what goes there, and that a run does not mind when they fail."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from metta_ray.common.errors import ConfigError
from metta_ray.rl import trackers
from metta_ray.rl.progress import MetricsLog
from metta_ray.rl.trackers import open_trackers


class Failing:
    """A tracker whose disk is full in the epochs given."""

    def __init__(self, *epochs: int) -> None:
        self._epochs = epochs
        self.seen: list[int] = []

    def log(self, epoch: int, agent_step: int, line: Mapping[str, float]) -> None:
        if epoch in self._epochs:
            raise OSError("no space left")
        self.seen.append(epoch)

    def close(self) -> None:
        raise OSError("gone")


def write(log: MetricsLog, epoch: int) -> None:
    log.write(epoch, epoch * 100, {"efficiency": None}, {"reward": 1.5}, losses={"entropy": 0.5}, hyperparameters={})


def test_a_tracker_that_fails_is_a_warning_each_time_it_begins_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failing = Failing(2, 3, 5)
    log = MetricsLog(tmp_path, trackers=[failing])
    with caplog.at_level(logging.WARNING):
        for epoch in range(1, 7):
            write(log, epoch)
        log.close()

    assert failing.seen == [1, 4, 6]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 6
    assert [record.getMessage() for record in caplog.records] == [
        "Failing lacks epoch 2: no space left",
        "Failing lacks epoch 5: no space left",
        "Failing was not closed: gone",
    ]


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    write(MetricsLog(tmp_path), 1)

    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert "efficiency" not in line
    assert line["reward"] == 1.5


def test_none_is_opened_unless_asked_for(tmp_path: Path) -> None:
    assert open_trackers(tmp_path, "a", {}) == []


def test_one_that_cannot_begin_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def cannot(*args: object) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr(trackers, "WandbTracker", cannot)
    with caplog.at_level(logging.WARNING):
        assert open_trackers(tmp_path, "a", {}, wandb=True) == []

    assert "no network" in caplog.text


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_one_that_is_not_installed_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}[name], None)

    with pytest.raises(ConfigError, match=rf"pip install 'metta_ray\[{name}\]'"):
        open_trackers(tmp_path, "a", {}, **{name: True})  # type: ignore[arg-type]


def test_wandb_keeps_an_offline_run_and_continues_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_PROJECT": "p"}.items():
        monkeypatch.setenv(name, value)
    for epochs in ((1, 2), (3,)):
        log = MetricsLog(tmp_path, trackers=open_trackers(tmp_path, "nav-1", {"seed": 3}, wandb=True))
        for epoch in epochs:
            write(log, epoch)
        log.close()

    found = sorted((tmp_path / "wandb").glob("offline-run-*/run-nav-1.wandb"))
    assert found, list(tmp_path.rglob("*"))
    content = b"".join(path.read_bytes() for path in found)
    assert b"losses/entropy" in content
    assert b"agent_step" in content
