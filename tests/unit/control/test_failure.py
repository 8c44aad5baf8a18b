from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from metta_ray.control.failure import (
    Budget,
    Cause,
    Decision,
    GiveUp,
    GoWithout,
    Raise,
    Replace,
    backoff,
    decide,
    decide_evaluator,
)

BUDGET = Budget(slot_limit=3, run_limit=6, window_s=100.0, backoff_s=1.0, max_backoff_s=10.0)
UNLIMITED = Budget(backoff_s=0.0)


def decided(history: tuple[float, ...] = (), run_history: tuple[float, ...] = (), **changes: Any) -> Decision:
    """A crash of slot 2 at second 1000; three other slots are in use."""
    arguments: dict[str, Any] = {"now": 1000.0, "budget": BUDGET, "slot": 2, "other_slots": 3, **changes}
    return decide(Cause.CRASH, history, run_history, **arguments)


def test_a_first_failure_is_replaced_at_once():
    assert decided() == Replace(0.0, "crash: first failure of slot 2, replaced at once")


def test_failures_of_other_slots_cause_no_delay():
    assert decided((), (990.0, 991.0, 992.0)) == decided()


def test_the_second_and_third_failure_wait_one_and_two_seconds():
    assert decided((990.0,)) == Replace(1.0, "crash: failure 2 in 100 s of slot 2, replaced after 1 s")
    assert decided((980.0, 990.0)) == Replace(2.0, "crash: failure 3 in 100 s of slot 2, replaced after 2 s")


def test_a_slot_beyond_its_limit_is_given_up():
    assert decided((970.0, 980.0, 990.0)) == GiveUp(2, "crash: 4 failures of slot 2 in 100 s, limit 3")


def test_the_last_slot_is_not_given_up_the_run_fails():
    decision = decided((970.0, 980.0, 990.0), other_slots=0)

    assert decision == Raise("crash: 4 failures of slot 2 in 100 s, limit 3; no other slot is left")


def test_too_many_failures_in_the_run_end_it_whoever_they_hit():
    assert isinstance(decided((), (994.0, 995.0, 996.0, 997.0, 998.0)), Replace)

    decision = decided((), (994.0, 995.0, 996.0, 997.0, 998.0, 999.0))

    assert isinstance(decision, Raise)
    assert decision.reason.startswith("crash: 7 failures in 100 s, the run's limit is 6")


def test_what_lies_outside_the_window_is_forgotten():
    assert decided((900.0, 899.0, 1.0), (900.0,) * 9) == decided()
    assert decided((900.1,)) != decided()


@pytest.mark.parametrize("cause", [Cause.PREEMPTED, Cause.DRAINED])
def test_preemptions_are_never_delayed_or_given_up(cause: Cause):
    many = tuple(float(second) for second in range(1000))

    decision = decide(cause, many, many, 1000.0, UNLIMITED, slot=0, other_slots=0)

    assert isinstance(decision, Replace)
    assert decision.delay_s == 0.0


@pytest.mark.parametrize(("failures", "delay_s"), [(1, 0), (2, 1), (3, 2), (4, 4), (5, 8), (6, 10), (10_000, 10)])
def test_back_off_doubles_up_to_its_maximum(failures: int, delay_s: float):
    assert backoff(failures, BUDGET) == delay_s


@given(failures=st.integers(1, 10**9), base=st.floats(0, 1e6), most=st.floats(0, 1e6))
def test_back_off_is_bounded_for_any_number_of_failures(failures: int, base: float, most: float):
    assert 0 <= backoff(failures, Budget(backoff_s=base, max_backoff_s=most)) <= most


def evaluator_decided(*history: float, cause: Cause = Cause.CRASH) -> Replace | GoWithout:
    """An evaluator that is lost at second 1000."""
    return decide_evaluator(cause, history, 1000.0, BUDGET, "limit")


def test_evaluators_are_replaced_ever_later_and_then_done_without():
    assert evaluator_decided() == Replace(0.0, "crash: first evaluator lost, replaced at once")
    assert evaluator_decided(980.0, 990.0) == Replace(2.0, "crash: 3 evaluators lost in 100 s, replaced after 2 s")

    assert evaluator_decided(*range(990, 996)) == GoWithout("7 evaluators lost in 100 s (limit=6), the last by crash")
    assert evaluator_decided(*range(800, 896)) == evaluator_decided(), "what lies outside the window is forgotten"
    assert evaluator_decided(*range(990, 996), cause=Cause.PREEMPTED) == Replace(0.0, "preempted: replaced at once")


class AnyFailures(RuleBasedStateMachine):
    """Slots that fail for any reason at any time, and a pool that does what it is told."""

    @initialize(slots=st.integers(1, 4), slot_limit=st.none() | st.integers(0, 3), run_limit=st.none() | st.just(5))
    def start(self, slots: int, slot_limit: int | None, run_limit: int | None) -> None:
        self.now = 0.0
        self.in_use = set(range(slots))
        self.has_failed: Raise | None = None
        self.of_slot: dict[tuple[int, Cause], list[float]] = defaultdict(list)
        self.of_run: dict[Cause, list[float]] = defaultdict(list)
        limited = Budget(slot_limit, run_limit, window_s=10.0, max_backoff_s=4.0)
        self.budgets = dict.fromkeys(Cause, limited) | {Cause.PREEMPTED: UNLIMITED, Cause.DRAINED: UNLIMITED}

    @rule(seconds=st.floats(0, 8))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.in_use and not self.has_failed)
    @rule(data=st.data(), cause=st.sampled_from([Cause.CRASH, Cause.HANG, Cause.PREEMPTED]))
    def a_slot_fails(self, data: st.DataObject, cause: Cause) -> None:
        slot = data.draw(st.sampled_from(sorted(self.in_use)))
        budget = self.budgets[cause]
        history, run_history = self.of_slot[slot, cause], self.of_run[cause]
        decision = decide(
            cause,
            tuple(history),
            tuple(run_history),
            self.now,
            budget,
            slot=slot,
            other_slots=len(self.in_use) - 1,
        )
        recent = [time for time in history if self.now - time < budget.window_s]
        history.append(self.now)
        run_history.append(self.now)

        assert cause is not Cause.PREEMPTED or decision == Replace(0.0, decision.reason)
        match decision:
            case Replace(delay_s):
                assert (delay_s == 0) == (not recent or budget.backoff_s == 0), "only repeat offenders wait"
                assert delay_s <= budget.max_backoff_s
                assert budget.slot_limit is None or self.within(history, budget) <= budget.slot_limit
            case GiveUp(given_up):
                assert given_up == slot
                assert budget.slot_limit is not None
                assert self.within(history, budget) == budget.slot_limit + 1
                self.in_use.remove(slot)
            case Raise():
                self.has_failed = decision

    def within(self, history: list[float], budget: Budget) -> int:
        return sum(self.now - time < budget.window_s for time in history)

    @invariant()
    def a_run_that_goes_on_has_a_slot_in_use(self) -> None:
        assert self.in_use or self.has_failed

    @invariant()
    def no_more_failures_are_replaced_than_the_budget_of_the_run_allows(self) -> None:
        for cause, history in self.of_run.items():
            limit = self.budgets[cause].run_limit
            assert limit is None or self.has_failed or self.within(history, self.budgets[cause]) <= limit


AnyFailures.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestAnyFailures = AnyFailures.TestCase
