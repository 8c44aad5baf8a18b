"""Evaluators: as many as there is to play, none where there is nothing; each plays one evaluation at a time.

Looked at now and then by the pipeline's loop, never waited for. An evaluator that dies, hangs or fails to start costs
the evaluation one of its tries and nobody else anything; the next one begins it anew, and what both may have written
counts once (see ``evaluator``). Evaluators that go on being lost are started ever more seldom, and once their budget
(``failure.evaluator``) is used up not at all any more: what is to be played then fails, and training goes on.
"""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from metta_ray.control.evaluation_queue import KIND, Evaluation, EvaluationQueue, EvaluationState
from metta_ray.control.failure import NOBODYS_FAULT, Cause, GoWithout, Replace, decide_evaluator
from metta_ray.service.causes import Outcome, failure_of
from metta_ray.service.children import Child, Children, Future
from metta_ray.service.identity import Identity
from metta_ray.service.process_info import ProcessInfo
from metta_ray.service.run_config import RunConfig

POLL_EVERY_S = 0.1
RETRY_AFTER_S = 0.5
SETTING = "failure.evaluator.per_run"

Result = dict[str, Any]


@dataclass(eq=False)
class Member:
    """One evaluator. number: of the evaluation that it plays."""

    child: Child
    hello: Future | None
    born: float
    info: ProcessInfo | None = None
    number: int | None = None
    answer: Future | None = None
    ask_again_at: float | None = None
    idle_since: float = 0.0
    heartbeat: Future | None = None
    last_sign: float = 0.0

    @property
    def state(self) -> str:
        return "starting" if self.hello is not None else "playing" if self.number is not None else "idle"


@dataclass(frozen=True)
class Played:
    """An evaluator has answered; whoever is told records the result as ``done``."""

    number: int
    result: Result


@dataclass(frozen=True)
class TryFailed:
    """A try is over without a result; recorded already."""

    number: int
    reason: str


@dataclass(frozen=True)
class Lost:
    """An evaluator has ended without being asked to."""

    name: str
    cause: Cause
    reason: str
    decision: Replace | GoWithout


Event = Played | TryFailed | Lost


class EvaluationPool:
    """clock: of this process, for waiting. wall: seconds since 1970, for leases, which outlive it.

    record: makes an event part of the run's books, and so of ``queue``.

    failures: lost evaluators by cause, since this coordinator started. given_up: why no more will be played, if so.
    """

    def __init__(
        self,
        config: RunConfig,
        children: Children,
        run: str,
        clock: Callable[[], float],
        wall: Callable[[], float],
        queue: EvaluationQueue,
        record: Callable[[Mapping[str, Any]], None],
        evaluator_arguments: Callable[[], tuple[Any, ...]],
        next_number: Callable[[], int],
        generation: int,
    ) -> None:
        self.members: list[Member] = []
        self.started = 0
        self.failures: dict[Cause, int] = defaultdict(int)
        self.given_up: str | None = None
        self._config = config
        self._children = children
        self._run = run
        self._clock = clock
        self._wall = wall
        self._queue = queue
        self._record = record
        self._evaluator_arguments = evaluator_arguments
        self._next_number = next_number
        self._generation = generation
        self._polled_at = float("-inf")
        self._lost_at: list[float] = []
        self._not_before = float("-inf")

    @property
    def lost(self) -> int:
        """How many evaluators ended without being asked to."""
        return sum(self.failures.values())

    def waiting_for(self) -> str | None:
        """Which resources starting evaluators lack, in words; None when none does."""
        starting = [member for member in self.members if member.hello is not None]
        return self._children.missing_resources("evaluator", len(starting)) if starting else None

    def poll(self) -> list[Event]:
        """One look at everything; returns at once."""
        now = self._clock()
        if now - self._polled_at < POLL_EVERY_S or not (self.members or self._queue.waiting):
            return []
        self._polled_at = now
        events = self._answers() + self._overdue()
        if self.given_up is not None:
            events += self._refuse_what_waits(self.given_up)
        self._give_out_work()
        self._fit_number()
        return events

    def take_over(self, numbers: Iterable[int], find: Callable[[int], Child | None]) -> None:
        """Goes on with the evaluators of an earlier coordinator; what those played that are gone is tried again."""
        for number in sorted(numbers):
            child = find(number)
            if child is not None:
                self._adopt(number, child)
            else:
                self._record({"kind": "left", "role": "evaluator", "number": number})
        played = {member.number for member in self.members}
        for one in self._queue.running:
            if one.request.number not in played:
                self._fail(one.request.number, "its evaluator was lost")

    def _adopt(self, number: int, child: Child) -> None:
        """Asks it again for what it plays: it may be done."""
        member = Member(child, child.call("describe"), self._clock(), idle_since=self._clock())
        self.members.append(member)
        playing = next((one for one in self._queue.running if one.evaluator == number), None)
        if playing is not None:
            self._ask(member, playing)

    def stop(self) -> None:
        """Ends all evaluators at once. What they play waits again, for the run's next start."""
        for member in list(self.members):
            is_playing = member.number is not None
            if is_playing:
                self._record({"kind": KIND, "what": "returned", "number": member.number})
            self._remove(member, kill=is_playing)  # Ray tells its user of a process that is killed, also of an idle one

    # Answers.

    def _answers(self) -> list[Event]:
        waited = [
            (future, member)
            for member in self.members
            for future in (member.hello, member.answer, member.heartbeat)
            if future is not None
        ]
        done = self._children.wait([future for future, _ in waited], 0.0) if waited else []
        events: list[Event] = []
        for future, member in waited:
            if future in done and member in self.members:
                events += self._answered(member, future)
        return events

    def _answered(self, member: Member, future: Future) -> list[Event]:
        try:
            value = self._children.result(future)
        except Exception as error:
            failure = failure_of(error)
            if failure.outcome is Outcome.PROCESS_LOST:
                return self._lost(member, failure.text, failure.cause)
            self._answer_unknown(member, future)
            return []
        if future is member.answer:
            return self._played(member, value)
        if future is member.hello:
            member.hello, member.idle_since = None, self._clock()
        else:
            member.heartbeat = None
        member.info, member.last_sign = value, self._clock()
        return []

    def _answer_unknown(self, member: Member, future: Future) -> None:
        """The answer was lost on its way: the same question again is answered from memory."""
        if future is member.hello:
            member.hello = member.child.call("describe")
        elif future is member.heartbeat:
            member.heartbeat = None
        else:
            member.answer, member.ask_again_at = None, self._clock() + RETRY_AFTER_S

    def _played(self, member: Member, result: Result) -> list[Event]:
        number, member.number, member.answer = member.number, None, None
        member.idle_since = self._clock()
        if number is None or not self._is_running(number):
            return []
        if "refused" in result:
            self._fail(number, result["refused"], final=True)
            return [TryFailed(number, result["refused"])]
        return [Played(number, result)]

    def _overdue(self) -> list[Event]:
        """Nothing inside a process can tell a hang from hard work: who does not answer in time is ended."""
        now, config, events = self._clock(), self._config, list[Event]()
        late = {one.request.number for one in self._queue.overdue(self._wall())}
        for member in list(self.members):
            if member.number in late:
                events += self._lost(member, f"not finished within {config.evaluator.deadline_s:g} s", Cause.HANG)
            elif member.hello is not None and now - member.born > config.failure.start_deadline_s:
                missing = self._children.missing_resources("evaluator", 1)
                if missing is None:
                    events += self._lost(member, f"not ready {now - member.born:.0f} s after its start", Cause.HANG)
                elif now - member.born > config.evaluator.deadline_s:
                    events += self._end_try(member, f"no place for an evaluator: it waits for {missing}")
            elif member.ask_again_at is not None and now >= member.ask_again_at and member.number is not None:
                self._ask(member, self._queue[member.number])
            self._keep_alive(member)
        return events

    def _keep_alive(self, member: Member) -> None:
        """Renews its lease, and finds out about idle ones that are gone."""
        interval = max(self._config.failure.heartbeat_s, self._config.failure.lease_s / 10)
        if member.hello is None and member.heartbeat is None and self._clock() - member.last_sign > interval:
            member.heartbeat, member.last_sign = member.child.call("describe"), self._clock()

    def _lost(self, member: Member, reason: str, cause: Cause) -> list[Event]:
        """Decides whether and when another one may start; the try that it was to make is over."""
        now, failure = self._clock(), self._config.failure
        self.failures[cause] += 1
        decision = decide_evaluator(cause, tuple(self._lost_at), now, failure.evaluator_budget(), SETTING)
        if isinstance(decision, GoWithout):
            self.given_up = self.given_up or decision.reason
        else:
            self._not_before = max(self._not_before, now + decision.delay_s)
        if cause not in NOBODYS_FAULT:
            self._lost_at.append(now)
        return [Lost(_name(member), cause, reason, decision), *self._end_try(member, reason)]

    def _end_try(self, member: Member, reason: str) -> list[Event]:
        """Ends an evaluator, and with it the try that it was to make."""
        was_starting, number = member.hello is not None, member.number
        self._remove(member, kill=True)
        if was_starting and number is None:  # it was started for what waits
            waiting = self._queue.next(self._wall())
            number = waiting.request.number if waiting is not None else None
        if number is None:
            return []
        self._fail(number, reason)
        return [TryFailed(number, reason)]

    def _refuse_what_waits(self, reason: str) -> list[Event]:
        """Nobody will come to play it."""
        waiting = [one.request.number for one in self._queue.waiting]
        for number in waiting:
            self._fail(number, reason, final=True)
        return [TryFailed(number, reason) for number in waiting]

    def _fail(self, number: int, reason: str, *, final: bool = False) -> None:
        self._record(
            {"kind": KIND, "what": "failed", "number": number, "at": self._wall(), "reason": reason, "final": final}
        )

    def _is_running(self, number: int) -> bool:
        one = self._queue.get(number)
        return one is not None and one.state is EvaluationState.RUNNING

    # Work and members.

    def _give_out_work(self) -> None:
        for member in self.members:
            if member.hello is not None or member.number is not None:
                continue
            one = self._queue.next(self._wall())
            if one is None:
                return
            until = self._wall() + self._config.evaluator.deadline_s
            number, evaluator = one.request.number, member.child.identity.number
            self._record({"kind": KIND, "what": "started", "number": number, "evaluator": evaluator, "until": until})
            self._ask(member, self._queue[number])

    def _ask(self, member: Member, one: Evaluation) -> None:
        member.number, member.ask_again_at = one.request.number, None
        member.answer = member.child.call("evaluate", one.request)

    def _fit_number(self) -> None:
        """Starts one where something waits that none is there for; ends those that were idle for long."""
        now, limit = self._clock(), self._config.evaluator.max_evaluators
        may_start = now >= self._not_before and len(self.members) < limit
        due = [one for one in self._queue.waiting if one.not_before <= self._wall()]
        coming = [member for member in self.members if member.number is None]
        if len(due) > len(coming) and may_start:
            self._start()
        for member in coming:
            is_idle = member.hello is None and not self._queue.waiting
            if is_idle and now - member.idle_since > self._config.evaluator.idle_s:
                self._remove(member)

    def _start(self) -> None:
        identity = Identity(self._run, "evaluator", self._next_number(), secrets.token_hex(8), self._generation)
        joined = {"kind": "joined", "role": "evaluator", "number": identity.number}
        self._record({**joined, "incarnation": identity.incarnation, "generation": identity.generation})
        child = self._children.start("evaluator", identity, *self._evaluator_arguments())
        self.members.append(Member(child, child.call("describe"), self._clock()))
        self.started += 1

    def _remove(self, member: Member, *, kill: bool = False) -> None:
        self.members.remove(member)
        member.child.kill(member.info) if kill else member.child.retire()
        self._record({"kind": "left", "role": "evaluator", "number": member.child.identity.number})


def _name(member: Member) -> str:
    return f"evaluator-{member.child.identity.number}"
