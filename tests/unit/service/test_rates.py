"""Service times are measured for environments and networks of any kind, and leave no trace in the process."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metta_ray.rl.presets import preset_settings
from metta_ray.rl.trainer_config import TrainerConfig
from metta_ray.service import rates
from metta_ray.service.measuring import usable_cores


def trainer_of(preset: str) -> tuple[TrainerConfig, dict]:
    settings = preset_settings(preset)
    return TrainerConfig(**settings["trainer"]), settings["agent"]


@pytest.mark.parametrize("preset", ["cartpole", "tmaze"])
def test_every_part_takes_time(preset: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rates, "THREAD_TURNS", 1)  # beside other tests threads that wait for each other take long
    trainer, agent = trainer_of(preset)

    times = rates.measure_service_times(trainer, agent, seconds=0.1)

    for curve in (times.environment, times.inference, times.training):
        assert all(seconds > 0 for _, seconds in curve.points)
    assert trainer.minibatch_size in dict(times.training.points)
    assert min(times.look_again, times.transport, times.staging, times.publish_s, times.load_s) > 0
    assert times.step_bytes > 0
    assert times.thread_gains[0] == (1, 1.0)
    assert [count for count, _ in times.thread_gains] == [1, 2, 4, 8, 16][: len(times.thread_gains)]
    assert len(times.thread_gains) == min(16, usable_cores()).bit_length()
    assert times.weights_bytes > 4 * 64 * 64


def test_chance_and_threads_are_left_as_they_were():
    trainer, agent = trainer_of("cartpole")
    torch.manual_seed(3)
    np.random.seed(3)
    threads = torch.get_num_threads()
    expected = torch.random.get_rng_state(), np.random.get_state()[1].copy()

    rates.measure_service_times(trainer, agent, seconds=0.05)

    assert torch.equal(torch.random.get_rng_state(), expected[0])
    assert np.array_equal(np.random.get_state()[1], expected[1])
    assert torch.get_num_threads() == threads
