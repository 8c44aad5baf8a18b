"""Rollout pool: keeps the wanted number of workers collecting and yields fragments as they arrive.

Waits for:    any worker's answer.
Released by:  ``order``, which gives a worker its next ticket.

A worker is replaced as soon as it is known to be lost: at once the first time, later only for slots that go on
failing. What was ordered from it is reported with the loss, so that nothing is forgotten.
"""

from __future__ import annotations

import secrets
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from metta_ray.control.deadlines import Durations
from metta_ray.control.failure import Cause, GiveUp, Raise, Replace, decide
from metta_ray.rl.fragment import FragmentHeader
from metta_ray.service.causes import Failure, Outcome, failure_of
from metta_ray.service.children import Child, Children, Future
from metta_ray.service.identity import Identity
from metta_ray.service.orders import Ticket
from metta_ray.service.process_info import ProcessInfo
from metta_ray.service.run_config import RunConfig

MAX_STARTING = 4
"""Workers that start at a time while others are at work: each start costs the others a core for seconds."""
RETRY_AFTER_S = 0.2
FAILED_STARTS = 3
"""So many failed starts in a row, with no worker ever ready, end the run: they would all fail."""


class MemberState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


@dataclass(eq=False)
class Order:
    """A ticket on its way. begun: when the worker could begin with it. retry_at: ask again then (answer unknown)."""

    ticket: Ticket
    header: Future
    fragment: Future
    begun: float
    retry_at: float | None = None


@dataclass(eq=False)
class Member:
    """One life of a worker in a slot."""

    slot: int
    child: Child
    hello: Future | None
    born: float
    state: MemberState = MemberState.STARTING
    info: ProcessInfo | None = None
    orders: deque[Order] = field(default_factory=deque)
    fragments: int = 0
    settled: list[int] = field(default_factory=list)
    heartbeat: Future | None = None
    last_sign: float = 0.0
    idle_since: float | None = None  # without an order since then
    without_order: float = 0.0  # seconds, since the last delivery

    @property
    def number(self) -> int:
        return self.child.identity.number


# Events.


@dataclass(frozen=True)
class Joined:
    """A new life begins in a slot; recorded before it can do anything."""

    slot: int
    identity: Identity


@dataclass(frozen=True)
class Ready:
    member: Member


@dataclass(frozen=True)
class Delivered:
    """fragment: reference to the arrays. without_order: how long, since its last delivery, the worker had no order,
    in seconds; what it waited beyond that it spent on the way."""

    member: Member
    header: FragmentHeader
    fragment: Future
    without_order: float = 0.0


@dataclass(frozen=True)
class Missing:
    """The fragment of a ticket is gone, the worker is not."""

    member: Member
    ticket: int
    reason: str


@dataclass(frozen=True)
class Left:
    """A life ended. tickets: what it still owed. failure None: it was drained."""

    member: Member
    tickets: tuple[int, ...]
    failure: Failure | None
    decision: Replace | GiveUp | Raise | None


Event = Joined | Ready | Delivered | Missing | Left


class RolloutPool:
    """wanted: how many workers there should be. ``poll`` is to be called again and again; nothing else waits."""

    def __init__(
        self,
        config: RunConfig,
        children: Children,
        run: str,
        clock: Callable[[], float],
        worker_arguments: Callable[[int], tuple[Any, ...]],
        next_number: Callable[[], int],
        generation: int,
    ) -> None:
        """worker_arguments: slot → what the worker's constructor gets beside its identity.
        next_number: a number that no worker of the run had."""
        self.wanted = 0
        self.members: dict[int, Member] = {}
        self.failures: dict[Cause, int] = defaultdict(int)
        self.given_up: set[int] = set()
        self.first_failure: Failure | None = None
        self._config = config
        self._children = children
        self._run = run
        self._clock = clock
        self._worker_arguments = worker_arguments
        self._next_number = next_number
        self._generation = generation
        self._retiring: list[Member] = []
        self._by_number: dict[int, Member] = {}
        self._not_before: dict[int, float] = {}
        self._slot_history: dict[tuple[int, Cause], list[float]] = defaultdict(list)
        self._run_history: dict[Cause, list[float]] = defaultdict(list)
        self._durations = Durations()
        self._failed_starts = 0
        self._ever_ready = False

    # What is there.

    @property
    def ready(self) -> list[Member]:
        """Workers that take orders, by slot."""
        return [self.members[slot] for slot in sorted(self.members) if self.members[slot].state is MemberState.READY]

    @property
    def to_be_filled(self) -> int:
        """How many slots have a worker or are to get one: those wanted, without those given up."""
        return sum(slot not in self.given_up for slot in range(self.wanted))

    @property
    def starting(self) -> list[Member]:
        return [member for member in self.members.values() if member.state is MemberState.STARTING]

    @property
    def draining(self) -> list[Member]:
        return [*self._retiring, *(m for m in self.members.values() if m.state is MemberState.DRAINING)]

    def with_number(self, number: int) -> Member | None:
        """The living worker of this number."""
        return self._by_number.get(number)

    def is_known(self, incarnation: str) -> bool:
        return any(m.child.identity.incarnation == incarnation for m in (*self.members.values(), *self._retiring))

    def restarts(self, slot: int) -> int:
        """How often the slot's worker was replaced after a failure."""
        return sum(len(times) for (failed, _), times in self._slot_history.items() if failed == slot)

    def waiting_for(self) -> str | None:
        """Which resources starting workers lack, in words; None when none does."""
        starting = self.starting
        return self._children.missing_resources("rollout", len(starting)) if starting else None

    # What is asked.

    def order(self, member: Member, ticket: Ticket) -> None:
        header, fragment = member.child.call("collect", ticket, results=2)
        now = self._clock()
        if member.idle_since is not None:
            member.without_order += now - member.idle_since
            member.idle_since = None
        member.orders.append(Order(ticket, header, fragment, now))
        member.settled.clear()

    def snapshots(self) -> dict[int, Future]:
        """Slot → future of the state of each ready worker, after what it was ordered until now."""
        return {member.slot: member.child.call("snapshot") for member in self.ready}

    def adopt(self, slot: int, child: Child, orders: Mapping[int, Ticket]) -> None:
        """Takes over a worker of an earlier coordinator and asks it again for what it owes."""
        member = self._new_member(slot, child)
        for ticket in orders.values():
            self.order(member, ticket)

    def poll(self, timeout_s: float, also: Sequence[Future] = ()) -> list[Event]:
        """What happened, waiting at most so long for something to happen here or with the futures ``also``."""
        events: list[Event] = self._reconcile()
        if events:
            timeout_s = 0.0
        waiting = self._awaited()
        done = set(self._children.wait([*(future for future, _ in waiting), *also], timeout_s))
        for future, member in waiting:
            if future in done:
                events += self._answered(member, future)
        return events + self._overdue()

    def leave_nodes(self, nodes: Collection[str]) -> list[Member]:
        """Drains the workers of nodes that will be taken away, and lets others begin in their slots at once."""
        leaving = [m for m in self.members.values() if m.info is not None and m.info.node_id in nodes]
        for member in leaving:
            member.state = MemberState.DRAINING
            del self.members[member.slot]
            self._retiring.append(member)
            self.failures[Cause.PREEMPTED] += 1
        return leaving

    def stop(self) -> list[Event]:
        """Ends all workers at once."""
        self.wanted = 0
        events: list[Event] = []
        for member in (*self.members.values(), *self._retiring):
            member.child.kill(member.info) if member.orders else member.child.retire()
            events.append(Left(member, _owed(member), None, None))
        self.members.clear()
        self._retiring.clear()
        self._by_number.clear()
        return events

    # Membership.

    def _reconcile(self) -> list[Event]:
        """One step towards the wanted number: starts in waves, retires the highest slots."""
        events: list[Event] = []
        now = self._clock()
        for slot in sorted(self.members):
            member = self.members[slot]
            if slot >= self.wanted and member.state is not MemberState.DRAINING:
                if member.state is MemberState.STARTING and not member.orders:
                    events.append(self._retire(member))
                else:
                    member.state = MemberState.DRAINING
        for member in list(self.draining):
            if not member.orders:
                events.append(self._retire(member))
        wave = max(MAX_STARTING, len(self.ready)) - len(self.starting)
        for slot in range(self.wanted):
            if wave <= 0:
                break
            if slot in self.members and self.members[slot].state is MemberState.DRAINING:
                # Wanted again before it was gone: it finishes what it owes beside its successor.
                self._retiring.append(self.members.pop(slot))
            if slot in self.members or slot in self.given_up or now < self._not_before.get(slot, 0.0):
                continue
            events.append(self._start(slot))
            wave -= 1
        return events

    def _start(self, slot: int) -> Event:
        identity = Identity(self._run, "rollout", self._next_number(), secrets.token_hex(8), self._generation)
        child = self._children.start("rollout", identity, *self._worker_arguments(slot))
        self._new_member(slot, child)
        return Joined(slot, identity)

    def _new_member(self, slot: int, child: Child) -> Member:
        member = Member(slot, child, child.call("describe"), self._clock())
        self.members[slot] = self._by_number[member.number] = member
        return member

    def _retire(self, member: Member) -> Event:
        self._remove(member)
        member.child.retire()
        return Left(member, _owed(member), None, None)

    def _remove(self, member: Member) -> None:
        self._by_number.pop(member.number, None)
        if self.members.get(member.slot) is member:
            del self.members[member.slot]
        else:
            self._retiring.remove(member)

    # Answers.

    def _awaited(self) -> list[tuple[Future, Member]]:
        """Per worker its greeting, its oldest order and its life sign: answers to orders come in order."""
        now, waiting = self._clock(), []
        for member in (*self.members.values(), *self._retiring):
            if member.hello is not None:
                waiting.append((member.hello, member))
            if member.orders:
                first = member.orders[0]
                if first.retry_at is not None and now >= first.retry_at:
                    first.header, first.fragment = member.child.call("collect", first.ticket, results=2)
                    first.retry_at = None
                if first.retry_at is None:
                    waiting.append((first.header, member))
            if member.heartbeat is None and now - member.last_sign >= self._config.failure.heartbeat_s:
                if member.state is not MemberState.STARTING:
                    member.heartbeat, member.last_sign = member.child.call("describe"), now
            elif member.heartbeat is not None:
                waiting.append((member.heartbeat, member))
        return waiting

    def _answered(self, member: Member, future: Future) -> list[Event]:
        if not (self.members.get(member.slot) is member or member in self._retiring):
            return []  # it left while this list was worked through
        try:
            value = self._children.result(future)
        except Exception as error:
            return self._failed(member, future, failure_of(error))
        if future is member.hello:
            member.hello, member.info = None, value
            member.state = MemberState.READY if member.state is MemberState.STARTING else member.state
            member.last_sign = now = self._clock()
            self._ever_ready, self._failed_starts = True, 0
            if member.orders:
                member.orders[0].begun = now
            else:
                member.idle_since = now
            return [Ready(member)]
        if future is member.heartbeat:
            member.heartbeat, member.info = None, value
            return []
        return [self._delivered(member, value)]

    def _delivered(self, member: Member, header: FragmentHeader) -> Event:
        order, now = member.orders.popleft(), self._clock()
        # As the worker measured it: here it would hold what this process did in between.
        self._durations.add(sum(seconds for name, seconds in header.seconds.items() if name != "waiting"))
        if member.orders:
            member.orders[0].begun = now
        else:
            member.idle_since = now
        member.fragments += 1
        without_order, member.without_order = member.without_order, 0.0
        return Delivered(member, header, order.fragment, without_order)

    def _failed(self, member: Member, future: Future, failure: Failure) -> list[Event]:
        is_order = bool(member.orders) and future is member.orders[0].header
        if failure.outcome is Outcome.UNKNOWN:
            # A lost answer: the same ticket again is never sampled again, so asking is safe.
            if is_order:
                member.orders[0].retry_at = self._clock() + RETRY_AFTER_S
            elif future is member.hello:
                member.hello = member.child.call("describe")
            else:
                member.heartbeat = None
            return []
        if failure.outcome is Outcome.DATA_LOST and is_order:
            order = member.orders.popleft()
            return [Missing(member, order.ticket.number, failure.text)]
        return [self._lost(member, failure)]

    def _overdue(self) -> list[Event]:
        """Ends workers that do not answer in time. Nothing inside a process can tell a hang from hard work."""
        now, failure = self._clock(), self._config.failure
        deadline = self._durations.deadline(failure.collect_deadline_s)
        events: list[Event] = []
        for member in (*self.members.values(), *self._retiring):
            if member.state is MemberState.STARTING:
                late = now - member.born > failure.start_deadline_s
                if late and self._children.missing_resources("rollout", 1) is None:
                    text = f"not ready {now - member.born:.1f} s after its start"
                    events.append(self._lost(member, Failure(Outcome.PROCESS_LOST, Cause.HANG, text)))
            elif member.orders and now - member.orders[0].begun > deadline:
                ticket, waited = member.orders[0].ticket.number, now - member.orders[0].begun
                self._durations.add_missed(deadline)
                text = f"ticket {ticket} was not answered in {waited:.1f} s (deadline {deadline:.1f} s)"
                events.append(self._lost(member, Failure(Outcome.PROCESS_LOST, Cause.HANG, text)))
            elif not member.orders and member.heartbeat is not None and now - member.last_sign > deadline:
                text = f"gave no sign of life for {now - member.last_sign:.1f} s, with nothing to do"
                events.append(self._lost(member, Failure(Outcome.PROCESS_LOST, Cause.HANG, text)))
        return events

    def _lost(self, member: Member, failure: Failure) -> Event:
        """Ends what may be left of it and decides what follows."""
        was_starting = member.state is MemberState.STARTING
        self._remove(member)
        member.child.kill(member.info)
        self.failures[failure.cause] += 1
        self.first_failure = self.first_failure or failure
        now, slot, cause = self._clock(), member.slot, failure.cause
        decision = decide(
            cause,
            tuple(self._slot_history[slot, cause]),
            tuple(self._run_history[cause]),
            now,
            self._config.failure.budget(cause),
            slot=slot,
            other_slots=max(0, self.wanted - len(self.given_up) - 1),
        )
        self._slot_history[slot, cause].append(now)
        self._run_history[cause].append(now)
        if was_starting:
            self._failed_starts += 1
            if not self._ever_ready and self._failed_starts >= FAILED_STARTS:
                decision = Raise(f"{self._failed_starts} rollout workers failed to start, none ever did")
        if isinstance(decision, Replace):
            self._not_before[slot] = now + decision.delay_s
        elif isinstance(decision, GiveUp):
            self.given_up.add(slot)
        return Left(member, _owed(member), failure, decision)


def _owed(member: Member) -> tuple[int, ...]:
    return tuple(order.ticket.number for order in member.orders)
