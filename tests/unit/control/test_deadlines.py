import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metta_ray.control.deadlines import Durations


def durations(*seconds: float, window: int = 100) -> Durations:
    result = Durations(window)
    for value in seconds:
        result.add(value)
    return result


def test_the_minimum_holds_while_nothing_is_known():
    assert durations().p95() is None
    assert durations().deadline(10.0) == 10.0


def test_p95_of_one_to_a_hundred_is_ninety_five():
    assert durations(*range(100, 0, -1)).p95() == 95


def test_p95_of_a_few_is_the_longest():
    assert durations(0.2, 0.9, 0.1).p95() == 0.9


def test_one_outlier_in_a_hundred_does_not_count():
    assert durations(*[1.0] * 99, 60.0).p95() == 1.0


def test_the_deadline_is_five_times_what_is_usual_but_not_under_the_minimum():
    assert durations(3.0).deadline(10.0) == 15.0
    assert durations(1.0).deadline(10.0) == 10.0
    assert durations(3.0).deadline(10.0, factor=2.0) == 10.0


def test_only_the_window_is_remembered():
    assert durations(100.0, *[1.0] * 10, window=10).p95() == 1.0


def test_a_real_slow_down_raises_the_deadline_after_one_call_in_twenty():
    usual = durations(*[2.0] * 100)
    for _ in range(6):
        usual.add(usual.deadline(10.0))  # the calls that were killed at their deadline of 10 s

    assert usual.deadline(10.0) == 50.0


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf])
def test_what_is_no_duration_is_refused(seconds: float):
    with pytest.raises(ValueError, match="not a duration"):
        durations(seconds)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200))
def test_at_least_95_percent_are_within_p95(seconds: list[float]):
    p95 = durations(*seconds, window=len(seconds)).p95()

    assert p95 in seconds
    assert sum(value <= p95 for value in seconds) >= 0.95 * len(seconds)


def test_a_missed_deadline_doubles_it_while_little_is_known_and_fades():
    durations = Durations()

    durations.add_missed(durations.deadline(10.0))
    assert durations.deadline(10.0) == 20.0
    durations.add_missed(durations.deadline(10.0))
    assert durations.deadline(10.0) == 40.0

    for _ in range(98):
        durations.add(1.0)
    assert durations.deadline(10.0) == 10.0
