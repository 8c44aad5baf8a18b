from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metta_ray.common.errors import ConfigError
from metta_ray.control.schedule import Queued, choose_batch, is_due, tickets_to_issue, useful_workers


def credits(**changes: Any) -> int:
    """Nothing outstanding, batches of 32,768, fragments of 4,096, one batch of look-ahead, no byte budget."""
    start: dict[str, Any] = {
        "outstanding_steps": 0,
        "batch_steps": 32_768,
        "fragment_steps": 4_096,
        "target_staleness": 1,
        "bytes_outstanding": 0,
        "fragment_bytes": 0,
        "byte_budget": 0,
        "paused": False,
    }
    return tickets_to_issue(**{**start, **changes})


def test_sixteen_workers_are_useful_by_default():
    assert useful_workers(32_768, 4_096, 1) == 16


def test_at_the_start_as_many_tickets_are_issued_as_workers_are_useful():
    assert credits() == 16
    assert credits(target_staleness=0) == 8


def test_what_is_outstanding_uses_up_credits():
    assert credits(outstanding_steps=15 * 4_096) == 1
    assert credits(outstanding_steps=16 * 4_096) == 0


def test_after_the_staleness_was_lowered_nothing_is_issued_until_it_fits_again():
    assert credits(outstanding_steps=16 * 4_096, target_staleness=0) == 0


def test_nothing_is_issued_while_paused():
    assert credits(paused=True) == 0


def test_the_byte_budget_bounds_too():
    assert credits(fragment_bytes=100, byte_budget=1_000) == 10
    assert credits(fragment_bytes=100, byte_budget=1_000, bytes_outstanding=950) == 0
    assert credits(fragment_bytes=100, byte_budget=1_000, bytes_outstanding=1_100) == 0


def test_a_byte_budget_that_cannot_hold_a_batch_is_refused_with_the_number_it_needs():
    with pytest.raises(ConfigError, match="8 fragments of 100 bytes are 800"):
        credits(fragment_bytes=100, byte_budget=799)


def test_a_batch_of_a_broken_number_of_fragments_can_still_be_filled():
    # 100 / 30: four fragments; three would never be a batch.
    assert credits(batch_steps=100, fragment_steps=30, target_staleness=0) == 4


@given(
    batch=st.integers(1, 1000),
    fragment=st.integers(1, 300),
    target=st.integers(0, 3),
    fragments=st.integers(0, 50),
)
def test_pacing_never_exceeds_its_bound_and_never_starves_the_learner(
    batch: int, fragment: int, target: int, fragments: int
):
    issued = credits(
        outstanding_steps=fragments * fragment, batch_steps=batch, fragment_steps=fragment, target_staleness=target
    )

    outstanding = fragments + issued
    assert outstanding * fragment >= batch, "what is outstanding is enough for an update"
    assert issued == 0 or outstanding == useful_workers(batch, fragment, target)


# --- batches ---------------------------------------------------------------------------------------------


def test_a_batch_waits_until_there_is_enough():
    queued = [Queued(0, 0, 10), Queued(1, 0, 10)]

    assert choose_batch(queued, batch_steps=30) == []
    assert choose_batch([*queued, Queued(2, 0, 10)], batch_steps=30) == [0, 1, 2]


def test_the_oldest_version_is_trained_on_first():
    queued = [Queued(3, 7, 10), Queued(5, 6, 10), Queued(4, 7, 10), Queued(9, 5, 10)]

    assert choose_batch(queued, batch_steps=20) == [9, 5]
    assert choose_batch(queued, batch_steps=40) == [9, 5, 3, 4]


def test_a_batch_takes_no_more_than_it_needs():
    assert choose_batch([Queued(n, 0, 10) for n in range(9)], batch_steps=20) == [0, 1]


def test_a_synchronous_batch_is_in_ticket_order_whoever_was_faster():
    queued = [Queued(2, 0, 10), Queued(0, 0, 10), Queued(1, 0, 10)]

    assert choose_batch(queued, batch_steps=30, synchronous=True) == [0, 1, 2]


def test_a_synchronous_batch_waits_for_earlier_tickets_in_flight():
    queued = [Queued(0, 0, 10), Queued(2, 0, 10)]

    assert choose_batch(queued, batch_steps=20, synchronous=True, in_flight=[1]) == []
    assert choose_batch(queued, batch_steps=20, synchronous=True, in_flight=[3]) == [0, 2]


# --- intervals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "previous", "interval", "due"),
    [
        (10, 9, 10, True),
        (9, 8, 10, False),
        (11, 10, 10, False),
        (25, 9, 10, True),  # jumped over 10 and 20
        (0, 0, 10, False),
        (10, 10, 10, False),
        (5, 4, 0, False),
    ],
)
def test_an_interval_is_due_when_a_multiple_was_reached_or_jumped_over(
    value: int, previous: int, interval: int, due: bool
):
    assert is_due(value, previous, interval) is due


@given(jumps=st.lists(st.integers(0, 25), max_size=30), interval=st.integers(1, 10))
def test_no_multiple_is_missed_or_counted_twice(jumps: list[int], interval: int):
    value, times = 0, 0
    for jump in jumps:
        times += is_due(value + jump, value, interval)
        value += jump

    assert times <= value // interval
    assert (times == 0) == (value < interval)
