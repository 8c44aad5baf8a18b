from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from metta_ray.control.admission import FOREIGN, INVALID, REASONS, STALE, Admit, Decision, Drop, admit
from metta_ray.control.schedule import Queued, choose_batch, tickets_to_issue


def admitted(**changes: Any) -> Decision:
    """A good fragment, collected with version 3, for a learner at version 5, with changes."""
    good: dict[str, Any] = {
        "policy_version": 3,
        "train_version": 5,
        "max_staleness": 4,
        "generation": 2,
        "current_generation": 2,
        "incarnation": "a1",
        "known_incarnation": "a1",
        "fault": None,
    }
    return admit(**{**good, **changes})


def test_a_good_fragment_is_admitted():
    assert admitted() == Admit()


@pytest.mark.parametrize(("policy_version", "decision"), [(1, Admit()), (0, Drop(STALE))])
def test_staleness_equal_to_the_bound_is_admitted_and_one_more_is_not(policy_version: int, decision: Decision):
    assert admitted(policy_version=policy_version) == decision


def test_in_synchronous_mode_only_the_current_version_is_admitted():
    assert admitted(policy_version=5, max_staleness=0) == Admit()
    assert admitted(policy_version=4, max_staleness=0) == Drop(STALE)


def test_a_fragment_from_a_future_that_was_rolled_back_is_stale():
    assert admitted(policy_version=6) == Drop(STALE)


@pytest.mark.parametrize("generation", [1, 3])
def test_another_generation_is_foreign(generation: int):
    assert admitted(generation=generation) == Drop(FOREIGN)


@pytest.mark.parametrize("known", ["b2", None])
def test_a_replaced_or_removed_worker_is_foreign(known: str | None):
    assert admitted(known_incarnation=known) == Drop(FOREIGN)


def test_a_fault_makes_it_invalid_and_goes_into_the_detail():
    decision = admitted(fault="rewards are not finite")

    assert decision == Drop(INVALID)
    assert isinstance(decision, Drop)
    assert decision.detail == "rewards are not finite"


def test_who_sent_it_is_asked_before_what_it_says():
    assert admitted(generation=1, fault="bad", policy_version=0) == Drop(FOREIGN)
    assert admitted(fault="bad", policy_version=0) == Drop(INVALID)


def test_the_detail_says_the_numbers():
    decision = admitted(policy_version=0)

    assert isinstance(decision, Drop)
    assert decision.detail == "staleness 5, allowed are 0 to 4"


@given(
    policy_version=st.integers(0, 20),
    train_version=st.integers(0, 20),
    max_staleness=st.integers(0, 5),
    generation=st.integers(0, 2),
    known=st.sampled_from(["a1", "b2", None]),
    fault=st.none() | st.just("bad"),
)
def test_nothing_is_admitted_beyond_the_bound_or_from_strangers(
    policy_version: int, train_version: int, max_staleness: int, generation: int, known: str | None, fault: str | None
):
    decision = admitted(
        policy_version=policy_version,
        train_version=train_version,
        max_staleness=max_staleness,
        generation=generation,
        known_incarnation=known,
        fault=fault,
    )

    good = generation == 2 and known == "a1" and fault is None
    assert (decision == Admit()) == (good and 0 <= train_version - policy_version <= max_staleness)
    assert isinstance(decision, Admit) or decision.reason in REASONS


@dataclass
class Ticket:
    number: int
    version: int


class PacedTraining(RuleBasedStateMachine):
    """Workers of any speed, a learner, pacing and admission: no stale training, bounded data, no standstill."""

    FRAGMENT = 10
    BATCH = 30

    @initialize(target_staleness=st.integers(0, 2), slack=st.integers(0, 2))
    def start(self, target_staleness: int, slack: int) -> None:
        self.target, self.max_staleness = target_staleness, target_staleness + slack
        self.version = 0
        self.next_number = 0
        self.in_flight: list[Ticket] = []
        self.queue: list[Ticket] = []

    @property
    def outstanding_steps(self) -> int:
        return self.FRAGMENT * (len(self.in_flight) + len(self.queue))

    def credits(self) -> int:
        return tickets_to_issue(
            outstanding_steps=self.outstanding_steps,
            batch_steps=self.BATCH,
            fragment_steps=self.FRAGMENT,
            target_staleness=self.target,
            bytes_outstanding=0,
            fragment_bytes=0,
            byte_budget=0,
            paused=False,
        )

    def is_admitted(self, ticket: Ticket) -> bool:
        decision = admitted(policy_version=ticket.version, train_version=self.version, max_staleness=self.max_staleness)
        return isinstance(decision, Admit)

    @rule()
    def issue(self) -> None:
        for _ in range(self.credits()):
            self.in_flight.append(Ticket(self.next_number, self.version))
            self.next_number += 1

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def deliver_any(self, data: st.DataObject) -> None:
        ticket = self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1)))
        if self.is_admitted(ticket):
            self.queue.append(ticket)

    @rule()
    def train(self) -> None:
        self.queue = [ticket for ticket in self.queue if self.is_admitted(ticket)]
        batch = choose_batch(
            [Queued(ticket.number, ticket.version, self.FRAGMENT) for ticket in self.queue],
            batch_steps=self.BATCH,
            synchronous=self.target == 0,
            in_flight=[ticket.number for ticket in self.in_flight],
        )
        for ticket in self.queue:
            assert ticket.number not in batch or 0 <= self.version - ticket.version <= self.max_staleness
        self.queue = [ticket for ticket in self.queue if ticket.number not in batch]
        self.version += bool(batch)

    @rule()
    def everything_that_is_collected_leads_to_an_update(self) -> None:
        """Progress: workers that deliver and a learner that trains always get to the next version."""
        before = self.version
        for _ in range(self.max_staleness + 3):
            self.issue()
            while self.in_flight:
                ticket = self.in_flight.pop(0)
                if self.is_admitted(ticket):
                    self.queue.append(ticket)
            self.train()
        assert self.version > before

    @invariant()
    def data_is_bounded(self) -> None:
        assert self.outstanding_steps <= (self.target + 1) * self.BATCH


PacedTraining.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestPacedTraining = PacedTraining.TestCase
