"""Service times: calls of any size from a few measured ones, the floor, and the way to JSON and back."""

from __future__ import annotations

import json

import pytest

from metta_ray.control.rates import Curve, ServiceTimes


def times(**changes) -> ServiceTimes:
    values = {
        "environment": Curve.of([(64, 10e-6)]),
        "inference": Curve.of([(64, 30e-6), (256, 15e-6)]),
        "training": Curve.of([(512, 60e-6), (1024, 40e-6)]),
        "look_again": 10e-6,
        "advantage": 0.0,
        "transport": 1e-6,
        "staging": 1e-6,
        "publish_s": 1e-3,
        "load_s": 1e-3,
        "step_bytes": 100.0,
        "weights_bytes": 800_000,
    }
    return ServiceTimes(**values | changes)


def test_a_call_has_a_fixed_part_and_one_per_item():
    fixed, each = 1.28e-3, 10e-6  # seconds of a call, and of each of its rows
    curve = Curve.of((size, fixed / size + each) for size in (256, 64))

    for size in (16, 64, 128, 1024):
        assert curve.at(size) == pytest.approx(fixed / size + each)


def test_larger_calls_that_were_slower_per_item_say_nothing_about_smaller_ones():
    curve = Curve.of([(1024, 40e-6), (2048, 60e-6)])

    assert curve.at(512) == 40e-6
    assert curve.at(1024) == pytest.approx(40e-6)
    assert curve.at(4096) > 60e-6


def test_one_point_holds_for_every_size():
    assert Curve.of([(64, 2e-6)]).at(1000) == 2e-6


def test_the_floor_is_cores_over_the_work_of_an_agent_step():
    measured = times()

    assert measured.floor(2, rows=256, minibatch=1024, update_epochs=1) == pytest.approx(2 / 65e-6)
    assert measured.floor(1, rows=64, minibatch=512, update_epochs=2) == pytest.approx(1 / 160e-6)
    assert measured.floor(1, rows=256, minibatch=1024, update_epochs=1, is_off_policy=True) == pytest.approx(1 / 75e-6)


def test_json_and_back():
    measured = times()

    assert ServiceTimes.from_json(json.loads(json.dumps(measured.to_json()))) == measured


@pytest.mark.parametrize("broken", [{}, {"environment": {"points": []}}, []])
def test_anything_else_is_refused(broken):
    with pytest.raises((KeyError, TypeError, ValueError)):
        ServiceTimes.from_json(broken)
