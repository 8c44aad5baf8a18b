"""Evaluations that were asked for: each ends once, whatever fails in between."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from metta_ray.common.errors import LedgerError
from metta_ray.control.evaluation_queue import (
    DETAILED,
    HISTORY,
    PAUSES_S,
    TRIES,
    EvaluationQueue,
    EvaluationState,
)


def asked(number: int, policy: str = "model_0001", at: float = 0.0, **more: Any) -> dict[str, Any]:
    return {"kind": "evaluation", "what": "asked", "at": at, "number": number, "policy_uri": policy, **more}


def started(number: int, evaluator: int = 0, until: float = 100.0) -> dict[str, Any]:
    return {"kind": "evaluation", "what": "started", "number": number, "evaluator": evaluator, "until": until}


def failed(number: int, at: float = 0.0, **more: Any) -> dict[str, Any]:
    return {"kind": "evaluation", "what": "failed", "number": number, "at": at, "reason": "killed", **more}


def returned(number: int) -> dict[str, Any]:
    return {"kind": "evaluation", "what": "returned", "number": number}


def done(number: int, at: float = 0.0, **result: Any) -> dict[str, Any]:
    answer = {"suite": "evaluation", "score": 0.5, **result}
    return {"kind": "evaluation", "what": "done", "number": number, "at": at, "result": answer, "verdict": "kept"}


def queue_after(*events: dict[str, Any]) -> EvaluationQueue:
    queue = EvaluationQueue()
    for event in events:
        queue.apply(event)
    return queue


# --- by hand ---------------------------------------------------------------------------------------------


def test_a_new_queue_has_nothing_to_do():
    queue = EvaluationQueue()

    assert queue.is_idle
    assert queue.next(0.0) is None


def test_the_oldest_is_next_and_what_people_wait_for_goes_before_what_the_interval_asked():
    queue = queue_after(
        asked(0, "a", asked_by="interval"), asked(1, "b", asked_by="user"), asked(2, "c", asked_by="end")
    )

    order = []
    while (one := queue.next(0.0)) is not None:
        order.append(one.request.number)
        queue.apply(started(one.request.number))

    assert order == [1, 2, 0]


def test_three_tries_and_then_it_has_failed_for_good():
    queue = queue_after(asked(0))
    for _ in range(TRIES):
        queue.apply(started(0))
        queue.apply(failed(0))

    assert queue[0].state is EvaluationState.FAILED
    assert (queue[0].tries, queue[0].reason) == (TRIES, "killed")
    assert queue.is_idle


def test_the_second_try_begins_at_once_and_the_third_after_a_pause():
    queue = queue_after(asked(0), started(0), failed(0, at=50.0))
    assert PAUSES_S[0] == 0
    assert queue.next(50.0) is queue[0]

    queue.apply(started(0))
    queue.apply(failed(0, at=60.0))

    assert queue.next(60.0) is None
    assert queue.next(60.0 + PAUSES_S[1]) is queue[0]


def test_a_failure_that_no_try_can_help_is_final_at_once():
    queue = queue_after(asked(0), started(0), failed(0, final=True))

    assert queue[0].state is EvaluationState.FAILED


def test_evaluators_that_do_not_even_start_use_up_the_tries_too():
    queue = queue_after(asked(0), failed(0), failed(0), failed(0))

    assert queue[0].state is EvaluationState.FAILED


def test_what_was_given_back_has_spent_no_try():
    queue = queue_after(asked(0), started(0), returned(0))

    assert queue[0].state is EvaluationState.WAITING
    assert queue[0].tries == 0


def test_a_lease_ends():
    queue = queue_after(asked(0), started(0, until=10.0))

    assert queue.overdue(9.9) == []
    assert queue.overdue(10.0) == [queue[0]]


@pytest.mark.parametrize(
    "event",
    [
        started(0),
        failed(7),
        done(7),
        returned(1),
        done(1),
        asked(0),
        {"what": "lost", "number": 1},
        pytest.param(asked(2, "model_0002"), id="asked twice"),
    ],
)
def test_what_cannot_happen_is_refused_and_changes_nothing(event: dict[str, Any]):
    queue = queue_after(asked(0), started(0), asked(1, "model_0002"))
    before = queue.state_dict()

    with pytest.raises(LedgerError):
        queue.apply(event)

    assert queue.state_dict() == before


def test_a_result_counts_once():
    queue = queue_after(asked(0), started(0), done(0, score=0.5))

    with pytest.raises(LedgerError, match="is done"):
        queue.apply(done(0, score=0.7))

    assert queue[0].result["score"] == 0.5


def test_the_same_policy_suite_and_seed_are_asked_for_once_and_after_a_failure_again():
    queue = queue_after(asked(0, suite="smoke"))
    same = queue[0].request
    assert queue.same_as(same) is queue[0]

    for event in (started(0), done(0)):
        queue.apply(event)
        assert queue.same_as(same) is queue[0]
    queue.apply(asked(1, suite="smoke", seed=1))
    queue.apply(asked(2, suite="smoke", fingerprint="another policy at the same place"))
    queue.apply(failed(1, final=True))

    queue.apply(asked(3, suite="smoke", seed=1))
    assert len(queue.all()) == 4


def standing(version: int, compared: int) -> dict[str, Any]:
    return {"compared": compared, "best": {"version": version, "score": 0.1 * version}}


def test_the_best_policy_is_what_the_evaluation_says_that_has_seen_most():
    queue = queue_after(*(asked(n, f"model_{n}") for n in range(3)), *(started(n, n) for n in range(3)))

    queue.apply(done(0, standing=standing(1, compared=1)))
    queue.apply(done(2, standing=standing(3, compared=3)))
    queue.apply(done(1, standing=standing(1, compared=2)))

    assert queue.best == {"evaluation": {"version": 3, "score": pytest.approx(0.3), "compared": 3}}


def test_history_is_bounded_and_old_results_keep_only_their_numbers():
    queue = EvaluationQueue()
    for number in range(HISTORY + 10):
        for event in (asked(number, f"model_{number}"), started(number), done(number, at=number, text="long")):
            queue.apply(event)

    assert [one.request.number for one in queue.all()] == list(range(10, HISTORY + 10))
    assert queue.get(0) is None
    assert sum("text" in one.result for one in queue.all()) == DETAILED
    assert all(one.result["score"] == 0.5 for one in queue.all())


def test_a_journal_with_a_snapshot_in_it_leads_to_the_same_queue():
    events = [asked(0), started(0), failed(0), started(0, 1), asked(1, "model_0002"), done(0), started(1)]
    middle = queue_after(*events[:4])
    records = [{"kind": "snapshot", "state": {"evaluations": middle.state_dict()}}, {"kind": "issue"}, *events[4:]]

    assert EvaluationQueue.of_records(records).state_dict() == queue_after(*events).state_dict()


def test_a_snapshot_that_is_none_is_refused():
    with pytest.raises(LedgerError, match="not a saved queue"):
        EvaluationQueue().load_state_dict({"evaluations": [{}], "best": {}, "next_number": 1})


# --- in every order --------------------------------------------------------------------------------------


class QueueMachine(RuleBasedStateMachine):
    """Any event at any time. What the queue refuses must have changed nothing; what it takes must be the model's."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = EvaluationQueue()
        self.events: list[dict[str, Any]] = []
        self.begun: dict[int, int] = {}
        self.ended: dict[int, str] = {}

    def say(self, event: dict[str, Any]) -> bool:
        before = json.dumps(self.queue.state_dict())
        try:
            self.queue.apply(json.loads(json.dumps(event)))
        except LedgerError:
            assert json.dumps(self.queue.state_dict()) == before
            return False
        self.events.append(event)
        return True

    @rule(policy=st.integers(0, 5), seed=st.integers(0, 1), by=st.sampled_from(["interval", "end", "user"]))
    def ask(self, policy: int, seed: int, by: str) -> None:
        number = self.queue.next_number
        if self.say(asked(number, f"model_{policy}", seed=seed, asked_by=by)):
            self.begun[number] = 0

    @rule(evaluator=st.integers(0, 3), now=st.floats(0, 100))
    def start_next(self, evaluator: int, now: float) -> None:
        one = self.queue.next(now)
        if one is not None:
            assert self.say(started(one.request.number, evaluator, now + 10))
            self.begun[one.request.number] += 1

    @rule(number=st.integers(0, 8), at=st.floats(0, 100), final=st.booleans())
    def fail(self, number: int, at: float, final: bool) -> None:
        was_waiting = (one := self.queue.get(number)) is not None and one.state is EvaluationState.WAITING
        if self.say(failed(number, at, final=final)):
            self.begun[number] += was_waiting
            if self.queue[number].state is EvaluationState.FAILED:
                assert final or self.begun[number] == TRIES
                assert self.ended.setdefault(number, "failed") == "failed"

    @rule(number=st.integers(0, 8))
    def give_back(self, number: int) -> None:
        if self.say(returned(number)):
            self.begun[number] -= 1

    @rule(number=st.integers(0, 8), at=st.floats(0, 100))
    def finish(self, number: int, at: float) -> None:
        if self.say(done(number, at)):
            assert number not in self.ended, "an evaluation ends once"
            self.ended[number] = "done"

    @rule()
    def restart(self) -> None:
        again = EvaluationQueue()
        again.load_state_dict(json.loads(json.dumps(self.queue.state_dict())))
        assert again.state_dict() == self.queue.state_dict()
        self.queue = again

    @invariant()
    def each_is_in_one_state_with_the_tries_that_it_had(self) -> None:
        assert sum(self.queue.counts().values()) == len(self.begun)
        for one in self.queue.all():
            assert one.tries == self.begun[one.request.number] <= TRIES
            assert one.state.is_open == (one.request.number not in self.ended)

    @invariant()
    def a_journal_of_its_events_leads_here(self) -> None:
        assert queue_after(*self.events).state_dict() == self.queue.state_dict()


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=12))
def test_however_often_they_are_asked_for_no_two_open_ones_are_the_same(policies: list[str]):
    queue = EvaluationQueue()
    for policy in policies:
        with contextlib.suppress(LedgerError):
            queue.apply(asked(queue.next_number, policy))

    keys = [one.request.key for one in queue.all()]
    assert len(set(keys)) == len(keys) == len(set(policies))
