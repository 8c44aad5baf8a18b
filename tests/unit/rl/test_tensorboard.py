import sys

import pytest

from metta_ray.common.errors import ConfigError
from metta_ray.rl.progress import MetricsLog
from metta_ray.rl.trackers import open_trackers


def test_epochs_are_written_as_tensorboard_scalars(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = MetricsLog(tmp_path, trackers=open_trackers(tmp_path, "a", {}, tensorboard=True))
    log.write(1, 2048, {"agent_steps_per_second": 10.0}, {"reward": 1.5}, losses={"entropy": 0.7}, hyperparameters={})
    log.write(2, 4096, {"agent_steps_per_second": 20.0}, {"reward": 2.5}, losses={"entropy": 0.6}, hyperparameters={})

    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()

    assert [(event.step, event.value) for event in events.Scalars("reward")] == [(2048, 1.5), (4096, 2.5)]
    assert [event.value for event in events.Scalars("losses/entropy")] == pytest.approx([0.7, 0.6])


def test_tensorboard_that_is_not_installed_is_refused_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)

    with pytest.raises(ConfigError, match=r"metta_ray\[tensorboard\]"):
        open_trackers(tmp_path, "a", {}, tensorboard=True)
