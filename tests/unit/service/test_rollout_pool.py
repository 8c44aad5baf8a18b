"""The rollout pool against workers in this process: what it starts, asks, hears, ends and replaces."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from metta_ray.common.errors import EnvironmentFault
from metta_ray.control.failure import Cause, GiveUp, Raise, Replace
from metta_ray.service.identity import Identity
from metta_ray.service.orders import PublishedWeights, Ticket
from metta_ray.service.rollout_pool import (
    MAX_STARTING,
    Delivered,
    Event,
    Joined,
    Left,
    Member,
    MemberState,
    Missing,
    Ready,
    RolloutPool,
)
from tests.fakes import (
    FakeChildren,
    FakeWorker,
    ManualClock,
    failed_to_start,
    lost_object,
    preempted,
    raised,
    small_config,
    unavailable,
)


class Pool:
    """A pool and all it said."""

    def __init__(self, workers: int = 2, **settings: Any) -> None:
        self.clock = ManualClock()
        self.children = FakeChildren(self.clock)
        numbers, self._tickets = itertools.count(), itertools.count()
        self.pool = RolloutPool(
            small_config(2, 10, **settings),
            self.children,
            "pool",
            self.clock,
            lambda slot: (slot,),
            numbers.__next__,
            1,
        )
        self.pool.wanted = workers
        self.events: list[Event] = []

    def poll(self, seconds: float = 0.05) -> list[Event]:
        events = self.pool.poll(seconds)
        self.events += events
        return events

    def pass_time(self, seconds: float) -> list[Event]:
        """In turns, as the coordinator does."""
        events = []
        end = self.clock() + seconds
        while self.clock() < end:
            events += self.poll(0.1)
            self.clock.advance(0.01)
        return events

    def order(self, slot: int, count: int = 1, **fields: Any) -> list[int]:
        numbers = []
        for _ in range(count):
            ticket = Ticket(next(self._tickets), 1, PublishedWeights(0, None), **fields)
            self.pool.order(self.pool.members[slot], ticket)
            numbers.append(ticket.number)
        return numbers

    def member(self, slot: int) -> Member:
        return self.pool.members[slot]

    def worker(self, slot: int) -> FakeWorker:
        child: Any = self.pool.members[slot].child
        return child

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def delivered(self) -> list[int]:
        return [event.header.ticket for event in self.of(Delivered)]


def ready_pool(workers: int = 2, **settings: Any) -> Pool:
    pool = Pool(workers, **settings)
    while len(pool.pool.ready) < workers:
        pool.poll()
    return pool


# Starting.


def test_workers_start_in_waves():
    pool = Pool(workers=10)
    pool.children.start_seconds = None

    pool.poll()
    assert len(pool.children.workers) == MAX_STARTING
    pool.poll()
    assert len(pool.children.workers) == MAX_STARTING

    for worker in pool.children.workers:
        worker.become_ready()
    pool.poll()
    pool.poll()
    assert len(pool.children.workers) == 2 * MAX_STARTING


def test_waves_grow_with_the_pool():
    """Six that are at work can spare the cores of six that start."""
    pool = ready_pool(6)
    pool.children.start_seconds = None

    pool.pool.wanted = 20
    pool.poll()

    assert len(pool.pool.starting) == 6


def test_a_life_is_announced_before_it_can_do_anything():
    pool = Pool(1)

    [joined] = [event for event in pool.poll() if isinstance(event, Joined)]

    assert (joined.slot, joined.identity.number) == (0, 0)
    assert pool.pool.ready == [pool.member(0)]
    assert [event.member.slot for event in pool.of(Ready)] == [0]


def test_ready_workers_are_listed_by_slot_whoever_was_first():
    pool = Pool(3)
    pool.children.start_seconds = None
    pool.poll()

    for worker in reversed(pool.children.workers):
        worker.become_ready()
        pool.poll()

    assert [member.slot for member in pool.pool.ready] == [0, 1, 2]


def test_no_worker_that_ever_starts_ends_the_run_at_once():
    pool = Pool(2)
    pool.children.start_seconds = None
    decisions = []
    for _ in range(20):
        pool.poll()
        for worker in pool.children.workers:
            worker.die(failed_to_start(EnvironmentFault("no such map")))
        decisions = [event.decision for event in pool.of(Left)]
        if any(isinstance(decision, Raise) for decision in decisions):
            break
        pool.clock.advance(0.1)

    assert [type(decision) for decision in decisions[:3]] == [Replace, Replace, Raise]
    assert "none ever did" in decisions[2].reason
    assert pool.pool.first_failure is not None
    assert pool.pool.first_failure.cause is Cause.ENVIRONMENT
    assert "no such map" in pool.pool.first_failure.text


def test_a_start_that_takes_too_long_is_a_hang_unless_resources_are_missing():
    pool = Pool(1, failure__start_deadline_s=5)
    pool.children.start_seconds = None
    pool.children.missing["rollout"] = "1 CPU (0 free) for 1 rollout worker"

    assert pool.pass_time(8) == pool.of(Joined)
    assert "1 CPU" in (pool.pool.waiting_for() or "")

    pool.children.missing.clear()
    pool.poll()
    [left] = pool.of(Left)
    assert left.failure.cause is Cause.HANG
    assert pool.pool.waiting_for() is None


# Orders.


def test_answers_come_in_the_order_of_tickets_of_a_worker():
    pool = ready_pool(2)
    tickets = pool.order(0, 3) + pool.order(1)

    for worker in (pool.worker(0), pool.worker(0), pool.worker(1), pool.worker(0)):
        worker.deliver()
    for _ in range(4):
        pool.poll()

    assert [t for t in pool.delivered if t in tickets[:3]] == tickets[:3]
    assert sorted(pool.delivered) == tickets
    assert [member.fragments for member in pool.pool.ready] == [3, 1]


def test_what_is_settled_is_told_once():
    pool = ready_pool(1)
    pool.member(0).settled += [7, 8]

    pool.order(0, settled=tuple(pool.member(0).settled))

    assert pool.worker(0).tickets[0].settled == (7, 8)
    assert pool.member(0).settled == []


def test_an_unknown_answer_is_asked_for_again_and_nothing_is_sampled_twice():
    pool = ready_pool(1)
    [ticket] = pool.order(0)
    worker = pool.worker(0)

    worker.answer_is_lost()
    pool.poll()
    assert worker.tickets == []

    pool.pass_time(0.5)
    assert [again.number for again in worker.tickets] == [ticket]

    worker.deliver()
    pool.poll()
    assert pool.delivered == [ticket]
    assert worker.sampled == [ticket]
    assert pool.of(Left) == []


def test_an_order_that_never_arrived_is_asked_again_too():
    pool = ready_pool(1)
    [ticket] = pool.order(0)

    pool.worker(0).fail(unavailable())
    pool.pass_time(0.5)
    pool.worker(0).deliver()
    pool.poll()

    assert pool.delivered == [ticket]


def test_a_worker_that_stays_unreachable_is_ended_at_the_deadline():
    pool = ready_pool(1)
    pool.order(0)
    worker = pool.worker(0)

    while not pool.of(Left):
        for call in worker.open_calls("collect"):
            call.fail(unavailable())
        pool.pass_time(0.3)
        assert pool.clock() < 1015

    assert pool.of(Left)[0].failure.cause is Cause.HANG


def test_a_greeting_that_is_lost_is_asked_for_again():
    pool = Pool(1)
    pool.children.start_seconds = None
    pool.poll()
    worker = pool.worker(0)

    worker.open_calls("describe")[0].fail(unavailable())
    pool.poll()
    worker.become_ready()
    pool.poll()

    assert pool.pool.ready == [pool.member(0)]


def test_data_that_is_lost_costs_the_ticket_and_not_the_worker():
    pool = ready_pool(1)
    first, second = pool.order(0, 2)
    worker = pool.worker(0)
    worker.fail(raised(lost_object()))
    worker.deliver()
    pool.poll()
    pool.poll()

    assert [event.ticket for event in pool.of(Missing)] == [first]
    assert pool.delivered == [second]
    assert worker.is_alive


# Losses.


def test_a_worker_that_died_is_replaced_at_once_and_reported_with_what_it_owed():
    pool = ready_pool(2)
    tickets = pool.order(0, 2)
    before = pool.clock()

    pool.worker(0).die()
    pool.poll()
    pool.poll()

    [left] = pool.of(Left)
    assert left.tickets == tuple(tickets)
    assert left.failure.cause is Cause.CRASH
    assert left.decision == Replace(0.0, left.decision.reason)
    assert pool.member(0).number == 2
    assert pool.clock() - before < 0.2


def test_a_slot_that_goes_on_failing_waits_twice_as_long_each_time():
    pool = ready_pool(2, failure__backoff_s=1)
    delays = []
    for _ in range(4):
        pool.order(0)
        pool.worker(0).die()
        died_at = pool.clock()
        number = pool.member(0).number
        while 0 not in pool.pool.members or pool.member(0).number == number:
            pool.poll()
            pool.clock.advance(0.05)
        delays.append(pool.clock() - died_at)
        pool.poll()

    assert delays == pytest.approx([0.1, 1, 2, 4], abs=0.2)
    assert pool.member(1).number == 1, "the other slot was left alone"


def test_a_hang_is_found_after_its_deadline_and_what_it_had_is_lost():
    pool = ready_pool(2, failure__collect_deadline_s=3)
    tickets = pool.order(0, 2)
    pool.order(1)
    worker = pool.worker(0)
    worker.freeze()
    pool.worker(1).deliver(seconds={"environment": 0.1})

    pool.pass_time(2.8)
    assert pool.of(Left) == []

    pool.pass_time(0.5)
    [left] = pool.of(Left)
    assert left.failure.cause is Cause.HANG
    assert "deadline 3.0 s" in left.failure.text
    assert left.tickets == tuple(tickets)
    assert worker.end == "killed"


def test_the_deadline_counts_from_when_a_worker_could_begin():
    """A second ticket that waits behind a long first one is not late."""
    pool = ready_pool(1, failure__collect_deadline_s=3)
    pool.order(0, 2)

    for _ in range(2):
        pool.pass_time(2.5)
        pool.worker(0).deliver(seconds={})
        pool.poll()

    assert len(pool.delivered) == 2
    assert pool.of(Left) == []


def test_a_deadline_follows_what_is_usual():
    pool = ready_pool(1, failure__collect_deadline_s=3)
    for _ in range(3):
        pool.order(0)
        pool.worker(0).deliver(seconds={"environment": 1.5, "inference": 0.5, "waiting": 100.0})
        pool.poll()

    pool.order(0)
    pool.pass_time(9.5)
    assert pool.of(Left) == []

    pool.pass_time(1)
    assert len(pool.of(Left)) == 1


def test_hangs_one_after_another_are_found_though_the_deadline_grows():
    pool = ready_pool(1, failure__collect_deadline_s=3, failure__backoff_s=0)
    waited = []
    for _ in range(3):
        pool.order(0)
        pool.worker(0).freeze()
        began, known = pool.clock(), len(pool.of(Left))
        while len(pool.of(Left)) == known:
            pool.poll(0.1)
        waited.append(pool.clock() - began)
        pool.pass_time(0.5)

    assert waited == pytest.approx([3, 6, 12], abs=0.3)


def test_a_worker_that_raises_is_ended_with_its_traceback():
    pool = ready_pool(2)
    pool.order(0)

    pool.worker(0).fail(raised(EnvironmentFault("the door is gone")))
    pool.poll()

    [left] = pool.of(Left)
    assert left.failure.cause is Cause.ENVIRONMENT
    assert "the door is gone" in left.failure.text
    assert "user.py" in left.failure.traceback
    assert pool.pool.failures == {Cause.ENVIRONMENT: 1}


def test_a_slot_that_uses_up_its_budget_is_given_up():
    pool = ready_pool(2, failure__environment__per_slot=2, failure__backoff_s=0.1)
    for _ in range(3):
        pool.order(0)
        pool.worker(0).fail(raised(EnvironmentFault("again")))
        pool.pass_time(1)

    assert isinstance(pool.of(Left)[-1].decision, GiveUp)
    assert pool.pool.given_up == {0}
    assert [member.slot for member in pool.pool.ready] == [1]


def test_the_last_slot_is_not_given_up_but_ends_the_run():
    pool = ready_pool(1, failure__environment__per_slot=1, failure__backoff_s=0.1)
    for _ in range(2):
        pool.order(0)
        pool.worker(0).fail(raised(EnvironmentFault("again")))
        pool.pass_time(1)

    decision = pool.of(Left)[-1].decision
    assert isinstance(decision, Raise)
    assert "no other slot" in decision.reason


def test_answers_of_a_worker_that_was_given_up_on_are_heard_by_nobody():
    pool = ready_pool(1, failure__collect_deadline_s=3)
    [ticket] = pool.order(0)
    worker = pool.worker(0)
    [late] = worker.open_calls("collect")
    worker.freeze()
    pool.pass_time(4)
    assert pool.of(Left)[0].tickets == (ticket,)

    late.error = None
    late.answer(worker.collect(late.args[0]), "fragment")
    pool.pass_time(1)

    assert pool.delivered == []


def test_a_worker_that_dies_between_two_orders_is_noticed_by_its_life_sign():
    pool = ready_pool(2)

    pool.worker(1).die()
    pool.pass_time(2.5)

    assert [event.member.slot for event in pool.of(Left)] == [1]


# Size.


def test_scaling_down_retires_the_highest_slots_and_draining_loses_nothing():
    pool = ready_pool(3)
    kept = pool.order(0, 1)
    owed = pool.order(2, 2)
    worker, idle = pool.worker(2), pool.worker(1)

    pool.pool.wanted = 1
    pool.poll()
    assert idle.end == "retired"
    assert pool.member(2).state is MemberState.DRAINING
    assert [member.slot for member in pool.pool.ready] == [0]

    worker.deliver()
    worker.deliver()
    pool.pass_time(0.5)
    assert pool.delivered == owed
    assert worker.end == "retired"
    assert all(event.tickets == () and event.failure is None for event in pool.of(Left))
    assert [t.number for t in pool.worker(0).tickets] == kept


def test_a_draining_worker_that_is_wanted_again_finishes_beside_its_successor():
    pool = ready_pool(2)
    owed = pool.order(1)
    old = pool.worker(1)

    pool.pool.wanted = 1
    pool.poll()
    pool.pool.wanted = 2
    pool.poll()
    pool.poll()
    assert pool.member(1).child is not old
    assert [member.child for member in pool.pool.draining] == [old]
    assert len(pool.pool.ready) == 2

    old.deliver()
    pool.pass_time(0.5)
    assert pool.delivered == owed
    assert pool.pool.draining == []
    assert old.end == "retired"


def test_a_draining_worker_that_hangs_is_ended_and_reports_what_it_owed():
    pool = ready_pool(2, failure__collect_deadline_s=3)
    owed = pool.order(1)
    pool.worker(1).freeze()

    pool.pool.wanted = 1
    pool.pass_time(4)

    [left] = pool.of(Left)
    assert left.tickets == tuple(owed)
    assert pool.pool.draining == []
    assert len(pool.children.workers) == 1


def test_a_worker_that_is_starting_and_no_longer_wanted_is_ended():
    pool = Pool(3)
    pool.children.start_seconds = None
    pool.poll()

    pool.pool.wanted = 1
    pool.poll()

    assert len(pool.children.workers) == 1
    assert len(pool.of(Left)) == 2


def test_stop_ends_everything_and_tells_what_was_owed():
    pool = ready_pool(2)
    owed = pool.order(0, 2)
    pool.pool.wanted = 1
    busy, idle = pool.worker(0), pool.worker(1)

    left = pool.pool.stop()

    assert [event.tickets for event in left] == [tuple(owed), ()]
    assert (busy.end, idle.end) == ("killed", "retired")
    assert pool.children.workers == []


def test_workers_of_an_earlier_coordinator_are_asked_again_for_what_they_owe():
    pool = Pool(2)
    child = pool.children.start("rollout", Identity("pool", "rollout", 17, "earlier", 0))
    owed = {4: Ticket(4, 1, PublishedWeights(0, None)), 5: Ticket(5, 1, PublishedWeights(0, None))}

    pool.pool.adopt(0, child, owed)
    child.deliver()
    child.deliver()
    pool.pass_time(0.5)

    assert pool.delivered == [4, 5]
    assert [event.slot for event in pool.of(Joined)] == [1], "only the empty slot got a new worker"
    assert pool.pool.is_known("earlier")


def test_snapshots_are_asked_of_ready_workers_by_slot():
    pool = ready_pool(2)

    snapshots = pool.pool.snapshots()

    assert {slot: bytes(future.value).decode() for slot, future in snapshots.items()} == {
        0: "state of rollout-0(run=pool)",
        1: "state of rollout-1(run=pool)",
    }


def test_a_preempted_slot_is_replaced_without_limit_or_delay():
    """Nobody is to blame for a node that is taken away."""
    pool = ready_pool(1)
    for _ in range(30):
        pool.order(0)
        pool.worker(0).die(preempted())
        pool.poll()
        pool.poll()

    assert len(pool.of(Left)) == 30
    assert all(event.decision.delay_s == 0 for event in pool.of(Left))
