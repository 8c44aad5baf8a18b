"""Evaluations that a run was asked for: each is played once, after at most three tries, and its result counts once.

    ask ──▶ waiting ──start──▶ running ──done──▶ done
               ▲                  │
               ├───── failed ─────┤      the try is over; after the third, or where no try can help: failed for good
               └──── returned ────┘      its evaluator was ended on purpose: no try is spent

All changes are events, plain dicts of JSON values, and ``apply`` is the only way to make one, so that a journal that
kept the events rebuilds the queue. A running evaluation is leased to its evaluator until a moment of the wall clock,
which, unlike a process's own, means the same after a restart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Self

from metta_ray.common.errors import LedgerError

KIND = "evaluation"
TRIES = 3
PAUSES_S = (0.0, 5.0)
"""Before the second and the third try: the first failure is mostly a lost process, the second may be its node's."""
HISTORY = 200
"""So many finished evaluations are remembered."""
DETAILED = 10
"""So many of them with everything that their evaluator answered."""
DETAILS = ("text", "simulations")


class EvaluationState(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"

    @property
    def is_open(self) -> bool:
        return self in (EvaluationState.WAITING, EvaluationState.RUNNING)


@dataclass(frozen=True)
class EvaluationRequest:
    """One exact policy in one suite.

    fingerprint: of the policy's files; the same path may hold another policy later. version: of the run that asks; None
    for a policy from elsewhere. suite: a name, or "" for the one that suits the training environment. episodes: of each
    simulation; None: as the suite has it. asked_by: ``interval``, ``end`` or ``user``.
    """

    number: int
    policy_uri: str
    fingerprint: str = ""
    version: int | None = None
    suite: str = ""
    episodes: int | None = None
    seed: int = 0
    asked_by: str = "user"

    @property
    def key(self) -> tuple[Any, ...]:
        """Requests that agree in it are one."""
        return (self.policy_uri, self.fingerprint, self.suite, self.episodes, self.seed)


@dataclass(frozen=True)
class Evaluation:
    """A request and what became of it. tries: begun so far. until: end of the lease. reason: of the last failure.

    result: what the evaluator answered, with ``score``, ``low``, ``high`` and ``standing`` in it. verdict:
    ``promoted``, ``regressed`` or ``kept``. asked_at, ended_at: seconds since 1970.
    """

    request: EvaluationRequest
    asked_at: float
    state: EvaluationState = EvaluationState.WAITING
    tries: int = 0
    evaluator: int | None = None
    until: float = 0.0
    not_before: float = 0.0
    reason: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    verdict: str = ""
    ended_at: float | None = None

    def summary(self) -> dict[str, Any]:
        """One row of a listing, as JSON values."""
        request, result = self.request, self.result
        return {
            "number": request.number,
            "policy": request.policy_uri.rstrip("/").rpartition("/")[2],
            "policy_uri": request.policy_uri,
            "version": request.version,
            "agent_step": result.get("agent_step"),
            "suite": result.get("suite") or request.suite or "evaluation",
            "seed": request.seed,
            "asked_by": request.asked_by,
            "state": self.state.value,
            "tries": self.tries,
            **{name: result.get(name) for name in ("score", "low", "high", "measure", "episodes", "incomplete")},
            "verdict": self.verdict,
            "reason": self.reason,
            "seconds": result.get("seconds"),
            "asked_at": self.asked_at,
            "ended_at": self.ended_at,
        }


class EvaluationQueue:
    """best: suite → what its newest standing calls the best policy (``version``, ``policy``, ``score``, ``low``, …)."""

    def __init__(self) -> None:
        self.best: dict[str, dict[str, Any]] = {}
        self._next_number = 0
        self._all: dict[int, Evaluation] = {}

    # --- events ------------------------------------------------------------------------------------------

    def apply(self, event: Mapping[str, Any]) -> None:
        """Makes an event part of the queue. LedgerError for one that cannot be; nothing has changed then.

        {"what": "asked", "at": seconds, "number": n, …}         the fields of a request; not below ``next_number``
        {"what": "started", "number": n, "evaluator": n, "until": seconds}          from waiting
        {"what": "failed", "number": n, "at": seconds, "reason": text, "final": bool}   from waiting or running
        {"what": "returned", "number": n}                                           from running
        {"what": "done", "number": n, "at": seconds, "result": {…}, "verdict": text}    from running
        """
        match event.get("what"):
            case "asked":
                self._ask(event)
            case "started":
                one = self._in(event, EvaluationState.WAITING)
                self._put(
                    one,
                    state=EvaluationState.RUNNING,
                    tries=one.tries + 1,
                    evaluator=int(event["evaluator"]),
                    until=float(event["until"]),
                )
            case "failed":
                self._fail(event)
            case "returned":
                one = self._in(event, EvaluationState.RUNNING)
                self._put(one, state=EvaluationState.WAITING, tries=one.tries - 1, evaluator=None)
            case "done":
                self._finish(event)
            case what:
                raise LedgerError(f"{what!r} cannot happen to an evaluation; known: asked, started, failed, done")

    def _ask(self, event: Mapping[str, Any]) -> None:
        known = EvaluationRequest.__dataclass_fields__
        request = EvaluationRequest(**{name: value for name, value in event.items() if name in known})
        if request.number < self._next_number:
            raise LedgerError(f"evaluation {request.number} was asked for before; next is {self._next_number}")
        if (same := self.same_as(request)) is not None:
            raise LedgerError(f"evaluation {request.number} is the same as number {same.request.number}")
        self._all[request.number] = Evaluation(request, float(event["at"]))
        self._next_number = request.number + 1

    def _fail(self, event: Mapping[str, Any]) -> None:
        one = self._in(event, EvaluationState.WAITING, EvaluationState.RUNNING)
        # One that never began failed with the evaluator that was to play it.
        tries = one.tries + (one.state is EvaluationState.WAITING)
        reason, at = str(event["reason"]), float(event["at"])
        if event.get("final") or tries >= TRIES:
            self._put(one, state=EvaluationState.FAILED, tries=tries, evaluator=None, reason=reason, ended_at=at)
            self._forget_old()
        else:
            pause = PAUSES_S[tries - 1]
            self._put(
                one,
                state=EvaluationState.WAITING,
                tries=tries,
                evaluator=None,
                reason=reason,
                not_before=at + pause,
            )

    def _finish(self, event: Mapping[str, Any]) -> None:
        one = self._in(event, EvaluationState.RUNNING)
        result = dict(event["result"])
        self._put(
            one,
            state=EvaluationState.DONE,
            evaluator=None,
            reason="",
            result=result,
            verdict=str(event.get("verdict", "")),
            ended_at=float(event["at"]),
        )
        standing = result.get("standing")
        # Of two that end at a time the one that was compared with more policies knows better.
        if standing and standing["compared"] >= self.best.get(result["suite"], {}).get("compared", 0):
            self.best[result["suite"]] = {**standing["best"], "compared": standing["compared"]}
        self._forget_old()

    def _in(self, event: Mapping[str, Any], *states: EvaluationState) -> Evaluation:
        one = self._all.get(event["number"])
        if one is None:
            raise LedgerError(f"evaluation {event['number']} is unknown")
        if one.state not in states:
            raise LedgerError(f"evaluation {event['number']} is {one.state} and cannot be {event['what']}")
        return one

    def _put(self, one: Evaluation, **changes: Any) -> None:
        self._all[one.request.number] = replace(one, **changes)

    def _forget_old(self) -> None:
        ended = [one for one in self._all.values() if not one.state.is_open]
        ended.sort(key=lambda one: (one.ended_at or 0.0, one.request.number))
        for one in ended[:-HISTORY]:
            del self._all[one.request.number]
        for one in ended[-HISTORY:-DETAILED]:
            if any(name in one.result for name in DETAILS):
                self._put(one, result={name: value for name, value in one.result.items() if name not in DETAILS})

    # --- questions ---------------------------------------------------------------------------------------

    @property
    def next_number(self) -> int:
        return self._next_number

    def __getitem__(self, number: int) -> Evaluation:
        return self._all[number]

    def get(self, number: int) -> Evaluation | None:
        """None for one that is unknown or forgotten."""
        return self._all.get(number)

    def all(self) -> list[Evaluation]:
        """In the order in which they were asked for."""
        return [self._all[number] for number in sorted(self._all)]

    def same_as(self, request: EvaluationRequest) -> Evaluation | None:
        """One that is open or done and of the same policy, suite, episodes and seed."""
        for one in self._all.values():
            if one.request.key == request.key and one.state is not EvaluationState.FAILED:
                return one
        return None

    def next(self, now: float) -> Evaluation | None:
        """What is to be played next: what people wait for first, then the oldest. None while nothing may begin."""
        due = [one for one in self.waiting if one.not_before <= now]
        return min(due, key=lambda one: (one.request.asked_by == "interval", one.request.number), default=None)

    def overdue(self, now: float) -> list[Evaluation]:
        """Running ones whose lease is over."""
        return [one for one in self.running if one.until <= now]

    @property
    def waiting(self) -> list[Evaluation]:
        return self._of(EvaluationState.WAITING)

    @property
    def running(self) -> list[Evaluation]:
        return self._of(EvaluationState.RUNNING)

    @property
    def is_idle(self) -> bool:
        """Nothing is waiting or running."""
        return not any(one.state.is_open for one in self._all.values())

    def counts(self) -> dict[str, int]:
        return {state.value: len(self._of(state)) for state in EvaluationState}

    def _of(self, state: EvaluationState) -> list[Evaluation]:
        return [self._all[number] for number in sorted(self._all) if self._all[number].state is state]

    # --- saving ------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return {
            "next_number": self._next_number,
            "best": {suite: dict(best) for suite, best in self.best.items()},
            "evaluations": [{**asdict(one), "state": one.state.value} for one in self.all()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of ``state_dict``. LedgerError for what is none; nothing has changed then."""
        try:
            entries = [_entry(saved) for saved in state["evaluations"]]
            best = {suite: dict(best) for suite, best in state["best"].items()}
            next_number = int(state["next_number"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise LedgerError(f"not a saved queue of evaluations: {error!r}") from error
        self._all = {one.request.number: one for one in entries}
        self.best, self._next_number = best, next_number

    @classmethod
    def of_records(cls, records: Any) -> Self:
        """The queue that the records of a run's journal lead to."""
        queue = cls()
        for record in records:
            if record.get("kind") == "snapshot" and "evaluations" in record["state"]:
                queue.load_state_dict(record["state"]["evaluations"])
            elif record.get("kind") == KIND:
                queue.apply(record)
        return queue


def _entry(saved: Mapping[str, Any]) -> Evaluation:
    request = EvaluationRequest(**saved["request"])
    return Evaluation(**{**saved, "request": request, "state": EvaluationState(saved["state"])})
