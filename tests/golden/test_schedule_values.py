"""Schedules against values worked out by hand."""

import math

import pytest

from metta_ray.rl.hyperparameter_schedule import scheduled_value
from metta_ray.rl.trainer_config import ScheduleConfig


@pytest.mark.parametrize(
    ("kind", "settings", "values"),
    [
        # Initial value 0.4; at progress 0, 1/4, 1/2, 1 and beyond the end.
        ("constant", {}, [0.4, 0.4, 0.4, 0.4, 0.4]),
        # 0.4 + (0.04 - 0.4) p: without min_value the end is a tenth.
        ("linear", {}, [0.4, 0.31, 0.22, 0.04, 0.04]),
        ("linear", {"min_value": 0.0}, [0.4, 0.3, 0.2, 0.0, 0.0]),
        ("linear", {"min_value": 0.02}, [0.4, 0.305, 0.21, 0.02, 0.02]),
        # 0.1 + 0.15 (1 + cos πp): cos π/4 = 0.70710678
        ("cosine", {"min_value": 0.1}, [0.4, 0.356066017, 0.25, 0.1, 0.1]),
        # max(0.4 · 0.95^p, m): 0.95^¼ = 0.987258537, 0.95^½ = 0.974679434
        ("exponential", {}, [0.4, 0.394903415, 0.389871774, 0.38, 0.38]),
        # 0.4 · 0.01^p: 0.01^¼ = 0.316227766, 0.01^½ = 0.1; 0.004 is below the end value 0.02
        ("exponential", {"rate": 0.01, "min_value": 0.02}, [0.4, 0.126491106, 0.04, 0.02, 0.02]),
        # 0.4 - 0.36 · ln(1 + 0.1 p) / ln 1.1: ln 1.025 / ln 1.1 = 0.259075, ln 1.05 / ln 1.1 = 0.511909
        ("logarithmic", {}, [0.4, 0.306733, 0.215713, 0.04, 0.04]),
        # rate 3: ln 1.75 / ln 4 = 0.403677, ln 2.5 / ln 4 = 0.660964; 0.4 - 0.4 · these
        ("logarithmic", {"rate": 3.0, "min_value": 0.0}, [0.4, 0.238529, 0.135614, 0.0, 0.0]),
    ],
)
def test_schedule_has_the_values_worked_out_by_hand(kind, settings, values):
    schedule = ScheduleConfig(type=kind, **settings)

    got = [scheduled_value(schedule, 0.4, progress) for progress in (0.0, 0.25, 0.5, 1.0, 1.7)]

    assert got == pytest.approx(values, rel=3e-6, abs=1e-15)


def test_cosine_is_half_way_down_at_half_time():
    schedule = ScheduleConfig(type="cosine", min_value=0.0)
    assert scheduled_value(schedule, 1.0, 0.5) == pytest.approx((1 + math.cos(math.pi / 2)) / 2)
