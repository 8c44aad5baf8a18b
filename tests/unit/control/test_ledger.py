import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from metta_ray.common.errors import LedgerError
from metta_ray.control.ledger import Ledger, TicketState


def ledger_after(*events: dict[str, Any]) -> Ledger:
    ledger = Ledger()
    for event in events:
        ledger.apply(event)
    return ledger


def issue(ticket: int, worker: int = 0, steps: int = 64) -> dict[str, Any]:
    return {"kind": "issue", "ticket": ticket, "worker": worker, "steps": steps}


def deliver(ticket: int, version: int = 0, counted: int = 64) -> dict[str, Any]:
    return {"kind": "deliver", "ticket": ticket, "version": version, "counted": counted}


def commit(version: int, *tickets: int) -> dict[str, Any]:
    return {"kind": "commit", "version": version, "tickets": list(tickets)}


def drop(ticket: int, reason: str = "stale") -> dict[str, Any]:
    return {"kind": "drop", "ticket": ticket, "reason": reason}


def lose(ticket: int, reason: str = "crash") -> dict[str, Any]:
    return {"kind": "lose", "ticket": ticket, "reason": reason}


# --- by hand ---------------------------------------------------------------------------------------------


def test_a_new_ledger_is_empty_and_balanced():
    assert Ledger().totals() == {
        "version": 0,
        "agent_step": 0,
        "issued": 0,
        "trained": 0,
        "dropped": {},
        "lost": {},
        "in_flight": 0,
        "queued": 0,
        "open_tickets": 0,
        "imbalance": 0,
    }


def test_every_step_of_a_small_run_is_accounted_for():
    # Five tickets of 64: two trained (one with 14 masked steps), one stale, one lost, one in flight.
    ledger = ledger_after(
        *(issue(number, worker=number % 2) for number in range(5)),
        deliver(0),
        deliver(1, counted=50),
        commit(1, 1, 0),
        drop(2),
        lose(3),
    )

    assert ledger.issued == 320
    assert ledger.trained == ledger.agent_step == 64 + 50
    assert ledger.dropped == {"masked": 14, "stale": 64}
    assert ledger.lost == {"crash": 64}
    assert (ledger.in_flight, ledger.queued) == (64, 0)
    assert ledger.imbalance() == 0
    assert (ledger.version, ledger.next_ticket) == (1, 5)


def test_a_ticket_goes_from_in_flight_to_queued_to_closed():
    ledger = ledger_after(issue(0))
    assert ledger.state_of(0) is TicketState.IN_FLIGHT

    ledger.apply(deliver(0))
    assert ledger.state_of(0) is TicketState.QUEUED
    assert (ledger.in_flight, ledger.queued) == (0, 64)

    ledger.apply(commit(1, 0))
    assert ledger.state_of(0) is None
    assert not ledger.is_open(0)


def test_what_a_worker_delivered_outlives_it():
    ledger = ledger_after(issue(0, worker=7), issue(1, worker=7), issue(2, worker=8), deliver(0))

    assert ledger.tickets_by_worker(7) == [1]
    assert ledger.open_tickets == [0, 1, 2]
    assert [ledger.worker_of(ticket) for ticket in ledger.open_tickets] == [7, 7, 8]


def test_a_closed_ticket_has_no_worker_any_more():
    ledger = ledger_after(issue(0), lose(0))

    with pytest.raises(LedgerError, match="closed"):
        ledger.worker_of(0)


def test_queued_tickets_can_be_dropped_and_lost_too():
    ledger = ledger_after(issue(0), issue(1), deliver(0), deliver(1), drop(0), lose(1, "object_lost"))

    assert ledger.dropped == {"stale": 64}
    assert ledger.lost == {"object_lost": 64}
    assert ledger.imbalance() == 0


def test_going_back_to_a_checkpoint_loses_what_was_trained_after_it_and_what_is_open():
    ledger = ledger_after(issue(0), issue(1), issue(2), issue(3), deliver(0), deliver(1), commit(1, 0), commit(2, 1))

    ledger.apply({"kind": "roll_back", "version": 1, "trained": 64})

    assert (ledger.version, ledger.agent_step) == (1, 64)
    assert ledger.lost == {"restart": 128, "rolled_back": 64}
    assert ledger.open_tickets == []
    assert ledger.next_ticket == 4, "numbers are not used again"
    assert ledger.imbalance() == 0


def test_a_run_that_was_trained_elsewhere_goes_on_with_its_counts():
    ledger = ledger_after({"kind": "adopt", "version": 12, "trained": 1000}, issue(0), deliver(0, 12), commit(13, 0))

    assert (ledger.version, ledger.agent_step, ledger.issued) == (13, 1064, 1064)
    assert ledger.imbalance() == 0


@pytest.mark.parametrize(
    ("event", "complaint"),
    [
        (issue(1), "issued before"),
        (issue(9, steps=0), "steps=0"),
        ({"kind": "issue", "ticket": True, "worker": 0, "steps": 1}, "ticket=True"),
        ({"kind": "issue", "ticket": 9, "worker": 0}, "steps=None"),
        (deliver(0), "closed"),
        (deliver(1), "delivered before"),
        (deliver(9), "never issued"),
        (deliver(2, counted=65), "64 agent steps"),
        (deliver(2, counted=-1), "counted=-1"),
        (drop(0), "closed"),
        (drop(2, ""), "no reason"),
        (lose(0), "closed"),
        (commit(2, 2), "in_flight"),
        (commit(3, 1), "versions grow by one"),
        (commit(1, 1), "versions grow by one"),
        (commit(2, 1, 1), "different tickets"),
        (commit(2), "one or more"),
        (commit(2, 3), "collected with version 5"),
        ({"kind": "roll_back", "version": 2, "trained": 0}, "adopted"),
        ({"kind": "roll_back", "version": 0, "trained": 65}, "adopted"),
        ({"kind": "adopt", "version": 0, "trained": 64}, "rolled back"),
        ({"kind": "issued"}, "unknown kind"),
        ({}, "unknown kind"),
    ],
)
def test_an_event_that_cannot_be_is_refused_and_changes_nothing(event: dict[str, Any], complaint: str):
    ledger = ledger_after(issue(0), issue(1), issue(2), issue(3), deliver(0), commit(1, 0), deliver(1), deliver(3, 5))
    before = ledger.state_dict()

    with pytest.raises(LedgerError, match=complaint):
        ledger.apply(event)

    assert ledger.state_dict() == before


def test_a_commit_with_one_bad_ticket_trains_none_of_them():
    ledger = ledger_after(issue(0), issue(1), deliver(0))

    with pytest.raises(LedgerError):
        ledger.apply(commit(1, 0, 1))

    assert (ledger.trained, ledger.queued) == (0, 64)


def test_other_keys_of_an_event_are_ignored():
    ledger = ledger_after({**issue(0), "at": "noon", "task": "maze"})

    assert ledger.issued == 64


@pytest.mark.parametrize(
    "damage",
    [
        {"trained": 1},
        {"issued": None},
        {"dropped": {"stale": -64}},
        {"open": [{"number": 0}]},
        {"lost": 3},
    ],
)
def test_books_that_do_not_balance_are_not_loaded(damage: dict[str, Any]):
    ledger = ledger_after(issue(0))
    before = ledger.state_dict()

    with pytest.raises(LedgerError):
        ledger.load_state_dict({**before, **damage})

    assert ledger.state_dict() == before


@given(order=st.permutations(range(6)))
def test_any_order_of_deliveries_gives_the_same_totals(order: list[int]):
    tickets = [issue(number, steps=10 + number) for number in range(6)]
    deliveries = [deliver(number, counted=number) for number in order]

    ledger = ledger_after(*tickets, *deliveries, commit(1, *order[:6]))

    assert (
        ledger.totals()
        == ledger_after(
            *tickets, *(deliver(number, counted=number) for number in range(6)), commit(1, *range(6))
        ).totals()
    )


# --- any run ---------------------------------------------------------------------------------------------


class AnyRun(RuleBasedStateMachine):
    """Coordinators, workers and a network that repeats and delays: the books always balance."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.events: list[dict[str, Any]] = []
        self.in_flight: dict[int, int] = {}
        self.queued: dict[int, tuple[int, int]] = {}
        self.closed: list[int] = []
        self.times_trained: dict[int, int] = {}
        self.trained_at_version = {0: 0}

    def apply(self, event: dict[str, Any]) -> None:
        self.ledger.apply(event)
        self.events.append(json.loads(json.dumps(event)))

    def refuse(self, event: dict[str, Any]) -> None:
        before = self.ledger.state_dict()
        with pytest.raises(LedgerError):
            self.ledger.apply(event)
        assert self.ledger.state_dict() == before

    @rule(worker=st.integers(0, 3), steps=st.integers(1, 100), gap=st.integers(0, 2))
    def ticket_is_issued(self, worker: int, steps: int, gap: int) -> None:
        number = self.ledger.next_ticket + gap
        self.apply(issue(number, worker, steps))
        self.in_flight[number] = steps

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def fragment_arrives(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.in_flight)))
        steps = self.in_flight.pop(number)
        counted = data.draw(st.integers(0, steps))
        version = data.draw(st.integers(0, self.ledger.version))
        self.apply(deliver(number, version, counted))
        self.queued[number] = (steps, counted)

    @precondition(lambda self: self.queued)
    @rule(data=st.data())
    def fragment_arrives_again(self, data: st.DataObject) -> None:
        self.refuse(deliver(data.draw(st.sampled_from(sorted(self.queued))), counted=0))

    @precondition(lambda self: self.closed)
    @rule(data=st.data(), kind=st.sampled_from(["deliver", "drop", "lose", "commit"]))
    def fragment_arrives_when_its_ticket_is_closed(self, data: st.DataObject, kind: str) -> None:
        number = data.draw(st.sampled_from(self.closed))
        next_version = self.ledger.version + 1
        self.refuse(
            {
                "deliver": deliver(number, counted=0),
                "drop": drop(number),
                "lose": lose(number),
                "commit": commit(next_version, number),
            }[kind]
        )

    @precondition(lambda self: self.in_flight or self.queued)
    @rule(data=st.data(), event=st.sampled_from([drop, lose]), reason=st.sampled_from(["stale", "crash", "hang"]))
    def ticket_ends_untrained(self, data: st.DataObject, event: Any, reason: str) -> None:
        number = data.draw(st.sampled_from(sorted([*self.in_flight, *self.queued])))
        self.apply(event(number, reason))
        self.close([number])

    @rule(worker=st.integers(0, 3))
    def worker_dies(self, worker: int) -> None:
        lost = self.ledger.tickets_by_worker(worker)
        for number in lost:
            self.apply(lose(number, "crash"))
        self.close(lost)
        assert self.ledger.tickets_by_worker(worker) == []

    @precondition(lambda self: self.queued)
    @rule(data=st.data())
    def update_is_committed(self, data: st.DataObject) -> None:
        batch = data.draw(st.lists(st.sampled_from(sorted(self.queued)), min_size=1, unique=True))
        self.apply(commit(self.ledger.version + 1, *batch))
        for number in batch:
            self.times_trained[number] = self.times_trained.get(number, 0) + 1
        self.close(batch)
        self.trained_at_version[self.ledger.version] = self.ledger.trained

    @rule(data=st.data())
    def run_goes_back_to_a_checkpoint(self, data: st.DataObject) -> None:
        version = data.draw(st.integers(0, self.ledger.version))
        self.apply({"kind": "roll_back", "version": version, "trained": self.trained_at_version[version]})
        self.close([*self.in_flight, *self.queued])
        assert self.ledger.trained == self.trained_at_version[version]

    @rule(ahead=st.integers(0, 5), steps=st.integers(0, 500))
    def checkpoint_ahead_is_adopted(self, ahead: int, steps: int) -> None:
        before = self.ledger.version
        self.apply({"kind": "adopt", "version": before + ahead, "trained": self.ledger.trained + steps})
        self.close([*self.in_flight, *self.queued])
        for version in range(before, self.ledger.version + 1):
            self.trained_at_version[version] = self.ledger.trained

    @rule()
    def coordinator_restarts_from_a_snapshot(self) -> None:
        restored = Ledger()
        restored.load_state_dict(json.loads(json.dumps(self.ledger.state_dict())))
        assert restored.state_dict() == self.ledger.state_dict()
        assert restored.totals() == self.ledger.totals()
        self.ledger = restored

    def close(self, numbers: list[int]) -> None:
        for number in numbers:
            self.in_flight.pop(number, None)
            self.queued.pop(number, None)
            self.closed.append(number)

    @invariant()
    def books_balance(self) -> None:
        ledger = self.ledger
        assert ledger.imbalance() == 0
        accounted = ledger.trained + sum(ledger.dropped.values()) + sum(ledger.lost.values())
        assert ledger.issued == accounted + ledger.in_flight + ledger.queued

    @invariant()
    def ledger_knows_every_open_ticket_and_no_other(self) -> None:
        assert sorted(self.ledger.open_tickets) == sorted([*self.in_flight, *self.queued])
        assert self.ledger.in_flight == sum(self.in_flight.values())
        assert self.ledger.queued == sum(steps for steps, _ in self.queued.values())

    @invariant()
    def no_ticket_is_trained_twice(self) -> None:
        assert set(self.times_trained.values()) <= {1}

    def teardown(self) -> None:
        assert ledger_after(*self.events).state_dict() == self.ledger.state_dict(), "replay equals the live state"


AnyRun.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestAnyRun = AnyRun.TestCase
