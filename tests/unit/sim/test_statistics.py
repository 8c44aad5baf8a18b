"""Intervals by hand, and how often they hold what they should."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metta_ray.sim.statistics import NOTHING, Interval, bootstrap, difference, mean, share, share_difference


def column(*values: float) -> np.ndarray:
    return np.array(values)[:, None]


def test_two_episodes_by_hand():
    # Drawn anew, the mean of (0, 1) is 0, 0.5 or 1 with probabilities 1/4, 1/2, 1/4: the middle 95 % reach from 0 to 1.
    assert bootstrap([column(0, 1)], mean()) == (0.5, 0.0, 1.0)


def test_simulations_have_the_same_weight_however_many_episodes_they_have():
    assert bootstrap([column(1, 1), column(4, 4, 4, 4)], mean()) == (2.5, 2.5, 2.5)


def test_a_share_is_what_lies_above_chance_of_what_the_script_has_above_it():
    # (3 - 1) / (5 - 1) = 0.5 and (2 - 0) / (8 - 0) = 0.25
    data = [np.array([[3.0, 1.0, 5.0]] * 3), np.array([[2.0, 0.0, 8.0]] * 2)]
    assert bootstrap(data, share(0, 1, 2)) == (0.375, 0.375, 0.375)


def test_differences_are_paired():
    # Each player's returns vary a lot, their difference does not.
    one = np.array([0.0, 10.0, 20.0, 30.0])
    data = [np.stack([one + 1, one, np.zeros(4), np.full(4, 50.0)], axis=1)]
    assert bootstrap(data, difference()) == pytest.approx((1, 1, 1))
    assert bootstrap(data, share_difference(0, 1, 2, 3)) == pytest.approx((0.02, 0.02, 0.02))
    assert bootstrap(data, difference()).excludes_zero
    assert not bootstrap(data, mean()).low < 0


def test_too_little_to_tell_has_no_ends():
    one = bootstrap([column(3), column(1, 2)], mean())
    assert one.value == 2.25
    assert math.isnan(one.low)
    assert not one.excludes_zero
    assert str(one) == "2.250"
    assert math.isnan(bootstrap([], mean()).value)
    assert math.isnan(bootstrap([np.zeros((0, 1))], mean()).value)
    assert NOTHING.to_json() == {"value": None, "low": None, "high": None}


def test_a_script_no_better_than_chance_gives_no_share():
    result = bootstrap([np.array([[3.0, 1.0, 1.0]] * 3)], share(0, 1, 2))
    assert not math.isfinite(result.value)
    assert math.isnan(result.low)
    assert Interval(math.inf, math.nan, math.nan).to_json()["value"] is None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.floats(-100, 100), min_size=2, max_size=9), min_size=1, max_size=4), st.integers(0, 9))
def test_the_interval_is_repeatable_and_within_the_data(simulations, seed):
    data = [column(*values) for values in simulations]
    first, second = (bootstrap(data, mean(), seed=seed, resamples=200) for _ in range(2))
    assert first == second
    least, most = (np.mean([f(values) for values in simulations]) for f in (min, max))
    assert least - 1e-9 <= first.low <= first.high <= most + 1e-9


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(300):
        one = bootstrap([rng.normal(5, 2, size=(30, 1))], mean(), resamples=400, seed=trial)
        hits += one.low <= 5 <= one.high
    assert 0.89 < hits / 300 < 0.98
