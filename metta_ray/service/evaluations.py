"""The evaluations of a run: asked for at an interval, at the end or by a person, played beside training, and what
follows from their results.

An evaluation is for one exact policy: that of a checkpoint, which is pinned until its evaluation has ended. The best
policy of the run's own suite stays pinned for good.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future as Answer
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metta_ray.agent import policy_pins
from metta_ray.common.errors import ConfigError, MettaRayError
from metta_ray.control.evaluation_queue import KIND, Evaluation, EvaluationRequest, EvaluationState
from metta_ray.control.failure import GoWithout
from metta_ray.service.announcer import Announcer
from metta_ray.service.books import Books
from metta_ray.service.checkpointer import Checkpointer, Newest
from metta_ray.service.evaluation_pool import EvaluationPool, Lost, Played, Result, TryFailed
from metta_ray.sim.suites import named_suite

logger = logging.getLogger(__name__)

OWN_SUITE = ""
"""The suite that suits the environment of training; the only one that decides which policy is best."""
MAX_WAITING = 4
"""So many of the interval's evaluations wait; the evaluator is too slow for more, and they would only pile up."""
PIN_S = 7 * 86_400.0
"""A run that was stopped goes on within a week, or its waiting evaluations are lost."""
PIN_BEST_S = 10 * 365 * 86_400.0
SHOWN = 20
"""So many evaluations are in the status of a run."""

Reply = dict[str, Any]


@dataclass(frozen=True)
class Wish:
    """An evaluation of a policy whose checkpoint does not exist yet. version: at least this one."""

    version: int
    asked_by: str
    suite: str = OWN_SUITE
    episodes: int | None = None
    seed: int = 0
    answer: Answer[Reply] | None = None


class Evaluations:
    def __init__(
        self,
        books: Books,
        pool: EvaluationPool,
        checkpointer: Checkpointer,
        announcer: Announcer,
        wall: Callable[[], float],
    ) -> None:
        self.pool = pool
        self._books = books
        self._queue = books.evaluations
        self._checkpointer = checkpointer
        self._announcer = announcer
        self._wall = wall
        self._wishes: list[Wish] = []

    # Asking.

    def want(self, wish: Wish) -> None:
        """Of the policy as it is now, as soon as a checkpoint holds it. The interval's wishes are not followed where
        nobody would play them."""
        if wish.asked_by == "interval":
            if self.pool.given_up is not None:
                return
            waiting = sum(one.request.asked_by == "interval" for one in self._queue.waiting)
            if waiting >= MAX_WAITING:
                text = f"epoch {wish.version} is not evaluated: {waiting} evaluations wait already; see evaluator"
                self._announcer.event("evaluation_skipped", text)
                return
        if not self._checkpointer.holds(wish.version):
            self._checkpointer.want()
        self._wishes.append(wish)

    def ask(self, path: str | Path, version: int | None, wish: Wish) -> Evaluation:
        """Of the policy in a directory; the one that was asked for before, where this is the same.

        ConfigError for an unknown suite, PolicyMissingError where there is no policy.
        """
        path = Path(path)
        if wish.suite:
            named_suite(wish.suite)
        request = EvaluationRequest(
            number=self._queue.next_number,
            policy_uri=f"file://{path.absolute()}",
            fingerprint=policy_pins.fingerprint(path),
            version=version,
            suite=wish.suite,
            episodes=wish.episodes,
            seed=wish.seed,
            asked_by=wish.asked_by,
        )
        same = self._queue.same_as(request)
        if same is not None:
            return same
        policy_pins.pin(path, _holder(request.number), PIN_S)
        self._books.record({"kind": KIND, "what": "asked", "at": self._wall(), **request.__dict__}, sync=True)
        return self._queue[request.number]

    def ask_for_the_last(self, newest: Newest) -> int | None:
        """The number of the evaluation with which a run ends."""
        try:
            return self.ask(newest.path, newest.version, Wish(newest.version, "end")).request.number
        except (MettaRayError, OSError) as error:
            self._announcer.event("evaluation_failed", f"{newest.path} is not evaluated: {error}")
            return None

    def ask_by_command(self, wish: Wish, epoch: int | None, answer: Answer[Reply]) -> Reply | None:
        """None: ``answer`` is told when the checkpoint is there."""
        if self.pool.given_up is not None:
            return {"ok": False, "message": _without_evaluators(self.pool.given_up)}
        if wish.suite:
            named_suite(wish.suite)
        if epoch is not None:
            return self._reply(self.ask(check_epoch(self._checkpointer.checkpoint_dir, epoch), epoch, wish))
        newest = self._checkpointer.newest
        if newest is not None and newest.version == self._books.ledger.version:
            return self._reply(self.ask(newest.path, newest.version, wish))
        self.want(replace(wish, answer=answer))
        return None

    def give_up_wishes(self, reason: str) -> None:
        """No further checkpoint will be written."""
        for wish in self._wishes:
            if wish.answer is not None:
                wish.answer.set_result({"ok": False, "message": reason})
        self._wishes.clear()

    def _reply(self, one: Evaluation) -> Reply:
        summary = one.summary()
        told = {EvaluationState.DONE: "was played before", EvaluationState.RUNNING: "is being played"}
        message = f"evaluation {summary['number']} of {summary['policy']} in suite {summary['suite']}"
        return {"ok": True, "message": f"{message} {told.get(one.state, 'is asked for')}", "number": summary["number"]}

    # Looking after them.

    @property
    def is_idle(self) -> bool:
        """Nothing is wished for, waits or is played."""
        return self._queue.is_idle and not self._wishes

    def look_after(self) -> None:
        """Called in every turn of the pipeline's loop; returns at once."""
        self._fulfil_wishes()
        for event in self.pool.poll():
            match event:
                case Played():
                    self._take_in(event.number, event.result)
                case TryFailed():
                    self._tell_failure(event.number, event.reason)
                case Lost():
                    self._tell_loss(event)

    def _fulfil_wishes(self) -> None:
        newest = self._checkpointer.newest
        if newest is None or not self._wishes:
            return
        ready = [wish for wish in self._wishes if newest.version >= wish.version]
        self._wishes = [wish for wish in self._wishes if newest.version < wish.version]
        for wish in ready:
            try:
                reply = self._reply(self.ask(newest.path, newest.version, wish))
            except (MettaRayError, OSError) as error:
                reply = {"ok": False, "message": str(error)}
                self._announcer.event("evaluation_failed", f"{newest.path} is not evaluated: {error}")
            if wish.answer is not None:
                wish.answer.set_result(reply)

    def _take_in(self, number: int, result: Result) -> None:
        """Whatever an evaluator answers, training does not fail of it."""
        try:
            self._finish(number, result)
        except Exception as error:
            logger.exception("the result of evaluation %d cannot be used", number)
            if self._queue[number].state.is_open:
                reason = f"its result cannot be used: {type(error).__name__}: {error}"
                self._books.record(
                    {
                        "kind": KIND,
                        "what": "failed",
                        "number": number,
                        "at": self._wall(),
                        "reason": reason,
                        "final": True,
                    }
                )
                self._tell_failure(number, reason)

    def _tell_failure(self, number: int, reason: str) -> None:
        one = self._queue.get(number)
        if one is None:
            return
        name = f"evaluation {number} of {one.summary()['policy']}"
        if one.state.is_open:
            self._announcer.event("evaluation_retried", f"{name}: {reason}; it is tried again (try {one.tries} failed)")
            return
        self._unpin(one)
        self._announcer.event("evaluation_failed", f"{name} failed after {one.tries} tries: {reason}")

    def _tell_loss(self, lost: Lost) -> None:
        if isinstance(lost.decision, GoWithout):
            text = f"{lost.name} is lost: {lost.reason}; {_without_evaluators(lost.decision.reason)}"
            self._announcer.event("evaluators_given_up", text)
        else:
            self._announcer.event("evaluator_lost", f"{lost.name} is lost: {lost.reason}; {lost.decision.reason}")

    def _finish(self, number: int, result: Result) -> None:
        one, suite = self._queue[number], result["suite"]
        before = self._queue.best.get(suite)
        verdict = _verdict(result)
        event = {"kind": KIND, "what": "done", "number": number, "at": self._wall(), "result": result}
        self._books.record({**event, "verdict": verdict}, sync=True)
        self._unpin(one)
        best = self._queue.best.get(suite)
        name = f"evaluation {number} of {one.summary()['policy']} in suite {suite}"
        self._announcer.event("evaluation", f"{name}: score {interval_text(result)}, {verdict}")
        if best is not None and best["version"] != (before or {}).get("version"):
            self._promote(one.request.suite, suite, best, before)
        if verdict == "regressed":
            drop = result["regression"]
            lost = f"{drop['drop']:.3f} [{drop['drop_low']:.3f}, {drop['drop_high']:.3f}]"
            where = f" (in {', '.join(drop['simulations'])})" if drop["simulations"] else ""
            self._announcer.event(
                "evaluation_regressed", f"{name}: {lost} below epoch {drop['best_version']}, the best so far{where}"
            )

    def _promote(self, asked_suite: str, suite: str, best: dict[str, Any], before: dict[str, Any] | None) -> None:
        instead = f" instead of epoch {before['version']}" if before else ""
        text = f"best policy in suite {suite}: epoch {best['version']}{instead}, score {interval_text(best)}"
        self._announcer.event("best_policy", text)
        if asked_suite != OWN_SUITE:
            return
        try:
            policy_pins.pin(_directory(best["policy"]), "best", PIN_BEST_S)
            if before is not None:
                policy_pins.unpin(_directory(before["policy"]), "best")
        except (MettaRayError, OSError) as error:
            logger.warning("the best policy is not protected from deletion: %s", error)

    def _unpin(self, one: Evaluation) -> None:
        try:
            policy_pins.unpin(_directory(one.request.policy_uri), _holder(one.request.number))
        except OSError as error:
            logger.warning("a pin stays until it expires: %s", error)

    # Telling.

    def facts(self) -> dict[str, Any]:
        """Of a run's status."""
        evaluators = [
            {
                "name": f"evaluator-{member.child.identity.number}",
                "state": member.state,
                "evaluation": member.number,
                "pid": member.info.pid if member.info else None,
                "node": member.info.node_id if member.info else None,
            }
            for member in self.pool.members
        ]
        return {
            "evaluations": {
                **self._queue.counts(),
                "wished": len(self._wishes),
                "evaluators": evaluators,
                "evaluators_lost": self.pool.lost,
                "failures": {cause.value: count for cause, count in self.pool.failures.items()},
                "given_up": self.pool.given_up,
                "list": [one.summary() for one in self._queue.all()[-SHOWN:]],
            },
            "best": self.best(),
        }

    def text_of(self, number: int | None) -> str:
        """For people: what came of an evaluation, and which policy is the best."""
        one = self._queue.get(number) if number is not None else None
        if one is None:
            return ""
        if one.state is not EvaluationState.DONE:
            return f"the evaluation failed: {one.reason or one.state.value}"
        best = self.best()
        lines = [one.result.get("text") or f"evaluation of {one.summary()['policy']}: {interval_text(one.result)}"]
        if best is not None:
            lines.append(f"best:       {best['path']} (score {interval_text(best)})")
        return "\n".join(lines)

    def best(self) -> dict[str, Any] | None:
        """The best policy of the run's own suite, else of the only other one that was played."""
        own = [one.result["suite"] for one in self._queue.all() if one.result and one.request.suite == OWN_SUITE]
        suites = own or list(self._queue.best)
        best = self._queue.best.get(suites[-1]) if suites else None
        return {"suite": suites[-1], "path": str(_directory(best["policy"])), **best} if best else None


def interval_text(result: Mapping[str, Any]) -> str:
    """``0.532 [0.411, 0.660]``"""
    value, low, high = result.get("score"), result.get("low"), result.get("high")
    if value is None:
        return "unknown"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _without_evaluators(reason: str) -> str:
    return (
        f"training goes on without evaluations: {reason}; metta-ray evaluate RUN --here plays one in the foreground "
        "and shows what is wrong"
    )


def _verdict(result: Result) -> str:
    """``promoted``: better than the best before beyond doubt, or the first. ``regressed``: worse beyond doubt."""
    standing = result.get("standing")
    if standing and standing["best"]["version"] == result["version"]:
        return "promoted"
    return "regressed" if result.get("regression") else "kept"


def check_epoch(checkpoint_dir: str | Path, epoch: int) -> Path:
    """The checkpoint of an epoch. ConfigError, with those that there are, where it is not there."""
    directory = Path(checkpoint_dir) / f"model_{epoch:04d}"
    if not directory.is_dir():
        there = ", ".join(path.name for path in sorted(Path(checkpoint_dir).glob("model_*"))) or "none yet"
        raise ConfigError(f"epoch {epoch} has no checkpoint; there are {there}")
    return directory


def _directory(policy_uri: str) -> Path:
    return Path(policy_uri.removeprefix("file://"))


def _holder(number: int) -> str:
    return f"evaluation-{number}"
