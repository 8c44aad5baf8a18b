"""Evaluators that come and go, and the evaluations that they play, over children that do as they are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from metta_ray.control.evaluation_queue import TRIES, EvaluationState
from metta_ray.control.failure import Cause, GoWithout, Replace
from metta_ray.service.books import Books
from metta_ray.service.evaluation_pool import EvaluationPool, Lost, Played, TryFailed
from tests.fakes import FakeChildren, FakeEvaluator, ManualClock, preempted, raised, small_config, unavailable


class Evaluating:
    """A pool over books, without a run around it."""

    def __init__(self, run_dir: Path, children: FakeChildren | None = None, **settings: Any) -> None:
        self.clock = children.clock if children else ManualClock()
        self.children = children or FakeChildren(self.clock)
        self.config = small_config(2, 10, **settings)
        self.books = Books(run_dir, None)
        self.queue = self.books.evaluations
        self.pool = EvaluationPool(
            self.config,
            self.children,
            "fake",
            self.clock,
            self.clock,
            self.queue,
            self.books.record,
            lambda: (),
            lambda: self.books.take_number("evaluator"),
            generation=0,
        )

    def ask(self, *policies: str, **more: Any) -> None:
        for policy in policies:
            number = self.queue.next_number
            event = {"kind": "evaluation", "what": "asked", "at": self.clock(), "number": number}
            self.books.record({**event, "policy_uri": f"file:///{policy}", "version": number + 1, **more})

    def poll(self, times: int = 1) -> list[Any]:
        """What happened; results are recorded, as whoever uses the pool does."""
        events = []
        for _ in range(times):
            self.clock.advance(0.2)
            for event in self.pool.poll():
                events.append(event)
                if isinstance(event, Played):
                    done = {"kind": "evaluation", "what": "done", "at": self.clock()}
                    self.books.record({**done, "number": event.number, "result": event.result})
        return events

    def playing(self) -> FakeEvaluator:
        """The evaluator, once it plays."""
        self.poll(3)
        [evaluator] = [one for one in self.children.evaluators if one.open_calls("evaluate")]
        return evaluator

    def state(self, number: int = 0) -> EvaluationState:
        return self.queue[number].state


@pytest.fixture
def place(tmp_path: Path) -> Evaluating:
    return Evaluating(tmp_path)


def test_without_anything_to_play_there_is_no_evaluator(place: Evaluating):
    assert place.poll(5) == []
    assert place.children.evaluators == []


def test_an_evaluator_comes_plays_and_its_result_is_told_once(place: Evaluating):
    place.ask("a")

    place.playing().finish()
    events = place.poll(5)

    assert [type(event) for event in events] == [Played]
    assert place.state() is EvaluationState.DONE


def test_one_evaluator_plays_one_after_the_other(place: Evaluating):
    place.ask("a", "b")
    evaluator = place.playing()
    assert evaluator.played == [0]

    evaluator.finish()
    place.poll(2)
    evaluator.finish()
    place.poll(2)

    assert evaluator.played == [0, 1]
    assert len(place.children.all) == 1
    assert place.queue.is_idle


def test_as_many_evaluators_as_there_is_to_play_up_to_the_limit(tmp_path: Path):
    place = Evaluating(tmp_path, evaluator__max_evaluators=2)
    place.ask("a", "b", "c")

    place.poll(5)

    assert [one.played for one in place.children.evaluators] == [[0], [1]]


def test_an_idle_evaluator_ends_after_a_while(place: Evaluating):
    place.ask("a")
    place.playing().finish()
    place.poll(2)
    assert len(place.children.evaluators) == 1

    place.clock.advance(place.config.evaluator.idle_s)
    place.poll(2)

    assert place.children.evaluators == []
    assert place.books.members["evaluator"] == {}


def test_a_killed_evaluator_costs_a_try_and_another_one_plays_it(place: Evaluating):
    place.ask("a")
    place.playing().die()

    [loss, failure] = place.poll()
    place.playing().finish()

    assert isinstance(loss, Lost)
    assert (loss.name, loss.cause, loss.decision) == (
        "evaluator-0",
        Cause.CRASH,
        Replace(0.0, "crash: first evaluator lost, replaced at once"),
    )
    assert isinstance(failure, TryFailed)
    assert [type(event) for event in place.poll(2)] == [Played]
    assert place.queue[0].tries == 2
    assert [one.identity.number for one in place.children.all] == [0, 1]


def test_after_three_tries_it_has_failed_and_nobody_starts_for_it_any_more(place: Evaluating):
    place.ask("a")
    for _ in range(TRIES):
        place.clock.advance(10.0)
        place.playing().die()
        place.poll()

    place.clock.advance(100.0)
    place.poll(5)

    assert place.state() is EvaluationState.FAILED
    assert len(place.children.all) == TRIES
    assert place.children.evaluators == []


def test_an_evaluator_that_raises_is_replaced(place: Evaluating):
    place.ask("a")
    first = place.playing()
    first.fail(raised(RuntimeError("the engine fell over")))

    [loss, failure] = place.poll()

    assert "the engine fell over" in failure.reason
    assert loss.reason == failure.reason
    assert not first.is_alive
    assert place.state() in (EvaluationState.WAITING, EvaluationState.RUNNING)


def test_what_no_try_can_help_fails_at_once_and_the_evaluator_stays(place: Evaluating):
    place.ask("a", "b")
    evaluator = place.playing()
    evaluator.refuse("the policy was deleted")

    [failure] = place.poll()

    assert failure == TryFailed(0, "the policy was deleted")
    assert place.state() is EvaluationState.FAILED
    assert evaluator.played == [0, 1]


def test_a_hanging_evaluator_is_ended_at_its_deadline(tmp_path: Path):
    place = Evaluating(tmp_path, evaluator__deadline_s=60)
    place.ask("a")
    hanging = place.playing()
    hanging.freeze()
    assert place.poll() == []

    place.clock.advance(60.0)
    [loss, failure] = place.poll()

    assert "60 s" in failure.reason
    assert loss.cause is Cause.HANG
    assert hanging.end == "killed"


def test_a_lost_answer_is_asked_for_again_and_counts_once(place: Evaluating):
    place.ask("a")
    evaluator = place.playing()
    evaluator.fail(unavailable())
    assert place.poll() == []

    place.clock.advance(1.0)
    place.poll(2)
    evaluator.finish()

    assert evaluator.played == [0, 0]
    assert [type(event) for event in place.poll(2)] == [Played]
    assert place.queue[0].tries == 1


def test_an_evaluator_that_cannot_start_uses_up_the_tries(place: Evaluating):
    place.children.start_seconds = None
    place.ask("a")
    for _ in range(TRIES):
        place.clock.advance(10.0)
        place.poll(2)
        place.children.evaluators[0].die()
        place.poll()

    assert place.state() is EvaluationState.FAILED


def test_one_without_a_place_waits_and_gives_up_only_after_the_deadline(tmp_path: Path):
    place = Evaluating(tmp_path, evaluator__deadline_s=600)
    place.children.start_seconds = None
    place.children.missing["evaluator"] = "1 evaluator (0 free)"
    place.ask("a")
    place.poll(2)
    assert place.pool.waiting_for() == "1 evaluator (0 free)"

    place.clock.advance(500.0)
    assert place.poll(2) == []
    place.clock.advance(100.0)
    [failure] = place.poll(1)

    assert "it waits for 1 evaluator (0 free)" in failure.reason
    assert place.pool.failures == {}, "nobody was lost"


def test_evaluators_that_go_on_dying_are_started_ever_more_seldom(place: Evaluating):
    place.ask("a", "b")
    place.playing().die()
    place.poll()
    place.playing().die()
    place.poll()

    place.poll(4)
    assert place.children.evaluators == [], "the second loss costs a second"
    place.poll(3)

    assert len(place.children.evaluators) == 1


def test_after_the_budget_nobody_starts_what_waits_fails_and_what_is_played_goes_on(tmp_path: Path):
    place = Evaluating(tmp_path, evaluator__max_evaluators=2, failure__evaluator={"per_run": 1})
    place.ask("a", "b", "c")
    place.poll(5)
    [first, second] = place.children.evaluators
    first.die()
    place.poll(4)
    [third] = [one for one in place.children.evaluators if one is not second]
    assert third.played == [0]
    third.die()

    [loss, *failures] = place.poll()

    assert isinstance(loss.decision, GoWithout)
    assert loss.decision.reason == ("2 evaluators lost in 300 s (failure.evaluator.per_run=1), the last by crash")
    assert place.pool.given_up == loss.decision.reason
    assert [failure.number for failure in failures] == [0, 0, 2], "the try of the first, then all that waits"
    assert failures[-1].reason == loss.decision.reason
    second.finish()
    place.poll(2)
    place.ask("d")
    place.poll(2)
    assert [place.state(number) for number in range(4)] == [
        EvaluationState.FAILED,
        EvaluationState.DONE,
        EvaluationState.FAILED,
        EvaluationState.FAILED,
    ]
    assert place.pool.failures == {Cause.CRASH: 2}
    assert len(place.children.all) == 3


def test_losses_that_lie_long_ago_and_preemptions_use_up_no_budget(tmp_path: Path):
    place = Evaluating(tmp_path, failure__evaluator={"per_run": 1})
    place.ask("a", "b")
    place.playing().die(preempted())
    place.poll()
    place.playing().die()
    place.poll()

    place.clock.advance(place.config.failure.window_s)
    place.playing().die()
    place.poll()

    assert place.pool.given_up is None
    assert place.pool.failures == {Cause.PREEMPTED: 1, Cause.CRASH: 2}


def test_a_coordinator_that_is_back_takes_over_what_is_being_played(tmp_path: Path):
    before = Evaluating(tmp_path)
    before.ask("a")
    evaluator = before.playing()
    before.books.close()

    after = Evaluating(tmp_path, before.children)
    after.pool.take_over(list(after.books.members["evaluator"]), lambda number: evaluator)
    evaluator.finish()
    evaluator.finish()

    assert [type(event) for event in after.poll(3)] == [Played]
    assert after.queue[0].tries == 1
    assert after.state() is EvaluationState.DONE


def test_what_was_played_by_an_evaluator_that_is_gone_is_tried_again(tmp_path: Path):
    before = Evaluating(tmp_path)
    before.ask("a")
    before.playing().die()
    before.books.close()

    after = Evaluating(tmp_path, before.children)
    after.pool.take_over(list(after.books.members["evaluator"]), lambda number: None)
    after.playing().finish()
    after.poll()

    assert after.queue[0].tries == 2
    assert after.state() is EvaluationState.DONE
    assert after.children.evaluators[0].identity.number == 1


def test_a_run_that_stops_gives_back_what_is_played(tmp_path: Path):
    place = Evaluating(tmp_path)
    place.ask("a")
    evaluator = place.playing()

    place.pool.stop()

    assert not evaluator.is_alive
    assert (place.queue[0].state, place.queue[0].tries) == (EvaluationState.WAITING, 0)
    assert place.books.members["evaluator"] == {}


def test_idle_evaluators_keep_their_lease(place: Evaluating):
    place.ask("a")
    evaluator = place.playing()
    calls = len(evaluator.calls)

    place.clock.advance(place.config.failure.lease_s / 2)
    place.poll(2)

    assert [call.method for call in evaluator.calls[calls:]] == ["describe"]
