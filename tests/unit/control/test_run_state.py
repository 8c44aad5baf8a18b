import pytest
from hypothesis import given
from hypothesis import strategies as st

from metta_ray.common.errors import UsageError
from metta_ray.control.run_state import FOLLOWERS, RunState, advance, may_follow

FINAL = {RunState.DONE, RunState.FAILED, RunState.STOPPED}


def test_an_ordinary_run():
    state = RunState.STARTING
    for following in ("waiting", "running", "paused", "running", "draining", "evaluating", "done"):
        state = advance(state, RunState(following))

    assert state is RunState.DONE
    assert state.is_final


def test_only_three_states_are_final():
    assert {state for state in RunState if state.is_final} == FINAL


def test_a_run_may_fail_in_every_state_that_is_not_final():
    assert all(may_follow(state, RunState.FAILED) for state in RunState if not state.is_final)


def test_staying_is_always_allowed():
    assert all(advance(state, state) is state for state in RunState)


def test_what_cannot_follow_is_refused_with_what_may():
    with pytest.raises(UsageError, match="from draining to running; what may follow is done, evaluating, failed, stop"):
        advance(RunState.DRAINING, RunState.RUNNING)
    with pytest.raises(UsageError, match="nothing: it is final"):
        advance(RunState.DONE, RunState.RUNNING)


def test_a_draining_run_only_ends_perhaps_after_a_last_evaluation():
    assert FOLLOWERS[RunState.DRAINING] == FINAL | {RunState.EVALUATING}


def test_every_state_is_reached_and_reaches_an_end():
    for state in RunState:
        assert state is RunState.STARTING or any(state in followers for followers in FOLLOWERS.values())
        assert state.is_final or FOLLOWERS[state] & (FINAL | {RunState.DRAINING})


@given(st.lists(st.sampled_from(list(RunState)), max_size=20))
def test_nothing_leaves_a_final_state(wishes: list[RunState]):
    state = RunState.STARTING
    ended_in = None
    for wish in wishes:
        if may_follow(state, wish):
            state = advance(state, wish)
        ended_in = ended_in or (state if state.is_final else None)

    assert ended_in is None or state is ended_in
