"""A closer look at some epochs."""

from __future__ import annotations

import gzip
import json
import math

import pytest
import torch
from torch import nn

from metta_ray.rl.diagnostics import gradient_stats, profiled_epoch
from metta_ray.rl.trainer_config import TorchProfilerConfig


def test_an_epoch_on_the_interval_leaves_a_trace_and_others_do_not(tmp_path):
    config = TorchProfilerConfig(interval_epochs=2, profile_dir=str(tmp_path / "traces"))
    for epoch in range(4):
        with profiled_epoch(config, epoch) as path:
            torch.ones(3).sum()
        assert (path is not None) == (epoch == 2)

    (trace,) = (tmp_path / "traces").iterdir()
    assert trace.name == "epoch_0002.json.gz"
    assert json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]


def test_switched_off_it_does_nothing(tmp_path):
    config = TorchProfilerConfig(interval_epochs=0, profile_dir=str(tmp_path / "traces"))
    with profiled_epoch(config, 10) as path:
        assert path is None
    assert not (tmp_path / "traces").exists()


def test_gradient_statistics_by_hand():
    layer = nn.Linear(2, 1)
    assert gradient_stats(layer) == {}
    layer.weight.grad = torch.tensor([[1.0, 2.0]])
    layer.bias.grad = torch.tensor([6.0])

    assert gradient_stats(layer) == pytest.approx(
        {"grad/mean": 3.0, "grad/variance": 14 / 3, "grad/norm": math.sqrt(41)}
    )
