"""The ledger: where every agent step of a run went.

A ticket orders one fragment of a fixed number of agent steps. It is issued once and ends once:

    issue ──▶ in flight ──deliver──▶ queued ──commit──▶ trained
                  │                    │
                  └────── drop ◀───────┤      data that came and was refused (stale, invalid, foreign)
                  └────── lose ◀───────┘      data that will never come, or is gone again

so that after every event, in agent steps,

    issued = trained + Σ dropped(reason) + Σ lost(reason) + in flight + queued

A fragment is queued from its delivery until its update is committed, also while it is being trained on. All
changes are events, plain dicts of JSON values, and ``apply`` is the only way to make one: a journal that kept
the events rebuilds the ledger by applying them again. Only open tickets are remembered one by one; ticket
numbers grow, so a number below ``next_ticket`` that is not open is a closed one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Self

from metta_ray.common.errors import LedgerError

MASKED = "masked"
"""Dropped: agent steps of a trained fragment that a mask keeps out of the loss."""
ROLLED_BACK = "rolled_back"
"""Lost: agent steps trained after the checkpoint that the run went back to."""
RESTART = "restart"
"""Lost: tickets that were open when the run went on from a checkpoint."""


class TicketState(StrEnum):
    """What an open ticket waits for."""

    IN_FLIGHT = "in_flight"
    """issued, nothing came back"""
    QUEUED = "queued"
    """delivered; waiting for its update to be committed"""


@dataclass(frozen=True)
class OpenTicket:
    """A ticket that has not ended. ``version`` and ``counted`` mean something once it is queued."""

    number: int
    worker: int
    steps: int
    state: TicketState = TicketState.IN_FLIGHT
    version: int = 0
    counted: int = 0


class Ledger:
    """Counts of one run, over all its starts. Agent steps everywhere but in ``version`` and ``next_ticket``."""

    def __init__(self) -> None:
        self._version = 0
        self._next_ticket = 0
        self._issued = 0
        self._trained = 0
        self._dropped: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()
        self._open: dict[int, OpenTicket] = {}

    # --- events ------------------------------------------------------------------------------------------

    def apply(self, event: Mapping[str, Any]) -> None:
        """Makes one event part of the books. LedgerError for one that cannot be; nothing has changed then.

        {"kind": "issue", "ticket": n, "worker": stream, "steps": n}    a number not below ``next_ticket``
        {"kind": "deliver", "ticket": n, "version": n, "counted": n}    from in flight; counted ≤ steps
        {"kind": "drop", "ticket": n, "reason": text}                   from in flight or queued
        {"kind": "lose", "ticket": n, "reason": text}                   from in flight or queued
        {"kind": "commit", "version": n, "tickets": [n, …]}             version + 1; every ticket queued
        {"kind": "roll_back", "version": n, "trained": n}               to a checkpoint of this run's past
        {"kind": "adopt", "version": n, "trained": n}                   a checkpoint ahead of these books

        Other keys are ignored. A second delivery, or one of a closed ticket, is such an error: ask
        ``state_of`` first where they are to be expected.
        """
        match event.get("kind"):
            case "issue":
                self._issue(event)
            case "deliver":
                self._deliver(event)
            case "drop":
                self._close(event, into=self._dropped)
            case "lose":
                self._close(event, into=self._lost)
            case "commit":
                self._commit(event)
            case "roll_back":
                self._roll_back(event)
            case "adopt":
                self._adopt(event)
            case kind:
                raise LedgerError(
                    f"unknown kind of event {kind!r}; known: issue, deliver, drop, lose, commit, roll_back, adopt"
                )

    def _issue(self, event: Mapping[str, Any]) -> None:
        number = _integer(event, "ticket")
        worker = _integer(event, "worker")
        steps = _integer(event, "steps", minimum=1)
        if number < self._next_ticket:
            raise LedgerError(f"ticket {number} was issued before; the next free number is {self._next_ticket}")

        self._open[number] = OpenTicket(number, worker, steps)
        self._next_ticket = number + 1
        self._issued += steps

    def _deliver(self, event: Mapping[str, Any]) -> None:
        ticket = self._ticket(_integer(event, "ticket"))
        version = _integer(event, "version")
        counted = _integer(event, "counted")
        if ticket.state is not TicketState.IN_FLIGHT:
            raise LedgerError(f"ticket {ticket.number} was delivered before")
        if counted > ticket.steps:
            raise LedgerError(f"ticket {ticket.number} has {ticket.steps} agent steps; {counted} cannot count")

        self._open[ticket.number] = replace(ticket, state=TicketState.QUEUED, version=version, counted=counted)

    def _close(self, event: Mapping[str, Any], *, into: Counter[str]) -> None:
        ticket = self._ticket(_integer(event, "ticket"))
        reason = _reason(event)

        del self._open[ticket.number]
        into[reason] += ticket.steps

    def _commit(self, event: Mapping[str, Any]) -> None:
        version = _integer(event, "version")
        tickets = [self._trainable(number) for number in _distinct(event, "tickets")]
        if version != self._version + 1:
            raise LedgerError(f"commit of version {version} after version {self._version}; versions grow by one")

        for ticket in tickets:
            del self._open[ticket.number]
            self._trained += ticket.counted
            _book(self._dropped, MASKED, ticket.steps - ticket.counted)
        self._version = version

    def _roll_back(self, event: Mapping[str, Any]) -> None:
        version, trained = _integer(event, "version"), _integer(event, "trained")
        if version > self._version or trained > self._trained:
            raise LedgerError(
                f"cannot roll back to version {version} with {trained} trained agent steps: the ledger is at "
                f"version {self._version} with {self._trained}; what is ahead is adopted"
            )

        self._lose_open_tickets()
        _book(self._lost, ROLLED_BACK, self._trained - trained)
        self._version, self._trained = version, trained

    def _adopt(self, event: Mapping[str, Any]) -> None:
        # A run that the library trained, or whose journal was lost: its earlier steps enter as issued and trained.
        version, trained = _integer(event, "version"), _integer(event, "trained")
        if version < self._version or trained < self._trained:
            raise LedgerError(
                f"cannot adopt version {version} with {trained} trained agent steps: the ledger is at "
                f"version {self._version} with {self._trained} already; what is behind is rolled back to"
            )

        self._lose_open_tickets()
        self._issued += trained - self._trained
        self._version, self._trained = version, trained

    def _lose_open_tickets(self) -> None:
        _book(self._lost, RESTART, self.in_flight + self.queued)
        self._open.clear()

    def _ticket(self, number: int) -> OpenTicket:
        if number in self._open:
            return self._open[number]
        state = "is closed" if number < self._next_ticket else "was never issued"
        raise LedgerError(f"ticket {number} {state}")

    def _trainable(self, number: int) -> OpenTicket:
        ticket = self._ticket(number)
        if ticket.state is not TicketState.QUEUED:
            raise LedgerError(f"ticket {number} is {ticket.state}; only queued ones can be trained on")
        if ticket.version > self._version:
            raise LedgerError(
                f"ticket {number} was collected with version {ticket.version}, the learner is at {self._version}"
            )
        return ticket

    # --- questions ---------------------------------------------------------------------------------------

    def is_open(self, ticket: int) -> bool:
        return ticket in self._open

    def state_of(self, ticket: int) -> TicketState | None:
        """None for a ticket that is closed or was never issued."""
        return self._open[ticket].state if ticket in self._open else None

    def worker_of(self, ticket: int) -> int:
        """Who an open ticket was issued to. LedgerError for one that is not open."""
        return self._ticket(ticket).worker

    def tickets_by_worker(self, stream: int) -> list[int]:
        """Tickets in flight at a worker: what is lost when it dies. What it delivered outlives it."""
        return [
            ticket.number
            for ticket in self._open.values()
            if ticket.worker == stream and ticket.state is TicketState.IN_FLIGHT
        ]

    @property
    def open_tickets(self) -> list[int]:
        """Growing numbers."""
        return list(self._open)

    @property
    def version(self) -> int:
        """Commits so far = version of the newest weights."""
        return self._version

    @property
    def next_ticket(self) -> int:
        """The lowest number that was never issued."""
        return self._next_ticket

    @property
    def agent_step(self) -> int:
        """What users see as progress: trained agent steps."""
        return self._trained

    @property
    def issued(self) -> int:
        return self._issued

    @property
    def trained(self) -> int:
        return self._trained

    @property
    def dropped(self) -> dict[str, int]:
        return dict(self._dropped)

    @property
    def lost(self) -> dict[str, int]:
        return dict(self._lost)

    @property
    def in_flight(self) -> int:
        return self._steps_in(TicketState.IN_FLIGHT)

    @property
    def queued(self) -> int:
        return self._steps_in(TicketState.QUEUED)

    def _steps_in(self, state: TicketState) -> int:
        return sum(ticket.steps for ticket in self._open.values() if ticket.state is state)

    def imbalance(self) -> int:
        """issued − everything it went into. 0, or agent steps were counted twice or not at all."""
        closed = self._trained + self._dropped.total() + self._lost.total()
        return self._issued - closed - self.in_flight - self.queued

    def totals(self) -> dict[str, Any]:
        """The books on one page, as JSON values."""
        return {
            "version": self.version,
            "agent_step": self.agent_step,
            "issued": self.issued,
            "trained": self.trained,
            "dropped": self.dropped,
            "lost": self.lost,
            "in_flight": self.in_flight,
            "queued": self.queued,
            "open_tickets": len(self._open),
            "imbalance": self.imbalance(),
        }

    # --- saving ------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything, as JSON values: a snapshot takes the place of all events before it."""
        return {
            "version": self._version,
            "next_ticket": self._next_ticket,
            "issued": self._issued,
            "trained": self._trained,
            "dropped": dict(self._dropped),
            "lost": dict(self._lost),
            "open": [asdict(ticket) for ticket in self._open.values()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of ``state_dict``. LedgerError for books that do not balance; nothing has changed then."""
        loaded = self._from_state(state)
        if loaded.imbalance():
            raise LedgerError(
                f"the saved ledger does not balance: {loaded.imbalance()} agent steps are unaccounted for"
            )
        self.__dict__.update(loaded.__dict__)

    @classmethod
    def _from_state(cls, state: Mapping[str, Any]) -> Self:
        ledger = cls()
        try:
            ledger._version = _integer(state, "version")
            ledger._next_ticket = _integer(state, "next_ticket")
            ledger._issued = _integer(state, "issued")
            ledger._trained = _integer(state, "trained")
            ledger._dropped.update({reason: _integer(state["dropped"], reason) for reason in state["dropped"]})
            ledger._lost.update({reason: _integer(state["lost"], reason) for reason in state["lost"]})
            tickets = [OpenTicket(**{**ticket, "state": TicketState(ticket["state"])}) for ticket in state["open"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise LedgerError(f"not a saved ledger: {error!r}") from error
        ledger._open = {ticket.number: ticket for ticket in tickets}
        return ledger


def _book(account: Counter[str], reason: str, steps: int) -> None:
    """An entry of nothing leaves no trace, so that replayed and live books are equal."""
    if steps:
        account[reason] += steps


def _integer(event: Mapping[str, Any], key: str, *, minimum: int = 0) -> int:
    value = event.get(key)
    if type(value) is not int or value < minimum:
        raise LedgerError(f"{key}={value!r} in {dict(event)} is not an integer from {minimum} on")
    return value


def _reason(event: Mapping[str, Any]) -> str:
    reason = event.get("reason")
    if not isinstance(reason, str) or not reason:
        raise LedgerError(f"{dict(event)} gives no reason; every agent step that is not trained on needs one")
    return reason


def _distinct(event: Mapping[str, Any], key: str) -> Iterable[int]:
    numbers = event.get(key)
    if not isinstance(numbers, list | tuple) or not numbers or len(set(map(str, numbers))) != len(numbers):
        raise LedgerError(f"{key}={numbers!r} is not a list of one or more different tickets")
    return [_integer({key: number}, key) for number in numbers]
