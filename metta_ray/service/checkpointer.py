"""Checkpoints of a running training: asked for, written by the leading learner beside its work, looked after here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future as Answer
from dataclasses import dataclass
from typing import Any

from metta_ray.service.announcer import Announcer
from metta_ray.service.books import Books
from metta_ray.service.causes import failure_of
from metta_ray.service.children import Children, Future
from metta_ray.service.learner_group import LearnerGroup
from metta_ray.service.orders import Contents, Saved
from metta_ray.service.rollout_pool import RolloutPool

DEADLINE_S = 120.0
RETRY_AFTER_S = 10.0
ATTEMPTS = 3
"""So many failures in a row, and a run that ends does so without its last checkpoint."""


@dataclass(frozen=True)
class Newest:
    """The newest checkpoint that is known to be whole. at: when it was finished, by the run's clock.

    saved: what writing it took; None where an earlier start of the run did.
    """

    path: str
    version: int
    at: float
    saved: Saved | None = None


class Checkpointer:
    """newest: None until there is one. A failure is told and tried again; training does not wait for any of this.

    failures: in a row. all_failures: since this coordinator began.
    """

    def __init__(
        self,
        books: Books,
        pool: RolloutPool,
        learners: LearnerGroup,
        children: Children,
        announcer: Announcer,
        clock: Callable[[], float],
        checkpoint_dir: str,
        keep_last: int,
    ) -> None:
        self.newest: Newest | None = None
        self.failures = 0
        self.all_failures = 0
        self._books = books
        self._pool = pool
        self._learners = learners
        self._children = children
        self._announcer = announcer
        self._clock = clock
        self.checkpoint_dir = checkpoint_dir
        self._keep_last = keep_last
        self._is_wanted = False
        self._not_before = 0.0
        self._under_way: tuple[Future, int, float] | None = None
        self._answers: list[Answer[dict[str, Any]]] = []

    def want(self, answer: Answer[dict[str, Any]] | None = None) -> None:
        """As soon as possible; ``answer`` is told what came of it."""
        self._is_wanted = True
        if answer is not None:
            self._answers.append(answer)

    def holds(self, version: int) -> bool:
        """Whether the newest checkpoint is of this very version."""
        return self.newest is not None and self.newest.version == version

    @property
    def is_busy(self) -> bool:
        return self._under_way is not None

    @property
    def has_given_up(self) -> bool:
        return self.failures >= ATTEMPTS

    def look_after(self, stats: Mapping[str, Any], *, is_final: bool) -> None:
        """Begins what is wanted, finishes what is done. stats: numbers to keep with the policy."""
        if self._under_way is not None:
            self._finish(*self._under_way)
        if self._is_wanted and self._under_way is None and self.newest and self.holds(self._books.ledger.version):
            # Wanted again while it was being written. Writing it anew would take away what others have pinned.
            self._is_wanted = False
            self._answer({"ok": True, "message": self.newest.path})
        is_possible = self._learners.committed is not None and bool(self._learners.members)
        if self._is_wanted and self._under_way is None and is_possible and self._clock() >= self._not_before:
            self._is_wanted = False
            self._begin(stats, is_final=is_final)

    def _begin(self, stats: Mapping[str, Any], *, is_final: bool) -> None:
        ledger = self._books.ledger
        contents = Contents(ledger.version, ledger.agent_step, stats, self._books.checkpoint_state(), is_final)
        # Workers answer between two fragments: before what they are ordered from now on.
        future = self._learners.save(self.checkpoint_dir, contents, self._pool.snapshots(), self._keep_last)
        self._under_way = (future, ledger.version, self._clock())

    def _finish(self, future: Future, version: int, began: float) -> None:
        is_late = self._clock() - began > DEADLINE_S
        if not is_late and not self._children.wait([future], 0.0):
            return
        self._under_way = None
        try:
            saved: Saved = self._children.result(future, 0.1)
        except Exception as error:
            self._failed(failure_of(error).text, version)
            return
        self.failures = 0
        self.newest = Newest(saved.path, version, self._clock(), saved)
        self._books.compact()
        size = f"{saved.size_bytes / 1e6:.1f} MB, {saved.seconds:.2f} s"
        self._announcer.event("checkpoint", f"checkpoint {saved.path} ({size})")
        self._answer({"ok": True, "message": saved.path})

    def _failed(self, reason: str, version: int) -> None:
        self.failures += 1
        self.all_failures += 1
        self._announcer.event(
            "checkpoint_failed",
            f"checkpoint of epoch {version} was not written: {reason}; training goes on, the one before is untouched",
        )
        self._answer({"ok": False, "message": reason})
        self._is_wanted = True
        self._not_before = self._clock() + RETRY_AFTER_S

    def _answer(self, result: dict[str, Any]) -> None:
        for answer in self._answers:
            answer.set_result(result)
        self._answers.clear()
