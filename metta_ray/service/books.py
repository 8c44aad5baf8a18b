"""What a run must never forget: ledger, curriculum, evaluations, membership and live settings, written down as they
change.

Everything is an event. ``record`` applies it and appends it to the journal; a coordinator that starts again opens
the journal and has the same books. A commit is on the disk before anyone hears of it.
"""

from __future__ import annotations

import base64
import logging
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from metta_ray.common.errors import JournalError
from metta_ray.common.util.state_directory import tree_from_bytes, tree_to_bytes
from metta_ray.control import evaluation_queue
from metta_ray.control.evaluation_queue import EvaluationQueue
from metta_ray.control.ledger import Ledger
from metta_ray.envs.tasks import Curriculum
from metta_ray.service.audit import EVENTS, JOURNAL, WorkerTotals
from metta_ray.state.journal import Journal

logger = logging.getLogger(__name__)

EPISODES = 100
"""The reward that is shown is the mean return of so many episodes: an epoch may see very few."""


class Books:
    """ledger, curriculum, evaluations: see there. generation: number of coordinator starts so far.

    next_number: of the next child (no two share one). members: number → what was recorded of a living child.
    settings: dotted name → value of settings changed while the run goes on. workers: what ``scale`` asked for last.
    returns: of the last episodes, for the mean that is shown.
    """

    def __init__(self, run_dir: Path | None, curriculum: Curriculum | None) -> None:
        """run_dir: where the journal lies; None: read from elsewhere, and not written (see ``of_records``)."""
        self.ledger = Ledger()
        self.curriculum = curriculum
        self.evaluations = EvaluationQueue()
        self.generation = 0
        self.next_number = {"rollout": 0, "learner": 0, "evaluator": 0}
        self.members: dict[str, dict[int, dict[str, Any]]] = {"rollout": {}, "learner": {}, "evaluator": {}}
        self.settings: dict[str, Any] = {}
        self.workers: str | None = None
        self.returns: deque[float] = deque(maxlen=EPISODES)
        self._by_worker = WorkerTotals()
        self._unwritten: list[dict[str, Any]] = []
        self._fresh_curriculum = self.curriculum_state()
        self.is_new = True
        if run_dir is not None:
            self._journal, records = Journal.open(run_dir / JOURNAL)
            self._replay(records)

    @classmethod
    def of_records(cls, records: Iterable[Mapping[str, Any]], curriculum: Curriculum | None) -> Self:
        """The books that the records of a journal lead to, to be looked at only."""
        books = cls(None, curriculum)
        books._replay(records)
        return books

    def _replay(self, records: Iterable[Mapping[str, Any]]) -> None:
        for record in records:
            self._apply(record)
            self.is_new = False

    def record(self, event: Mapping[str, Any], *, sync: bool = False) -> None:
        """Makes an event part of the books. LedgerError for one that cannot be; nothing has changed then.

        Where the disk refuses, the run goes on and the event is written as soon as the disk takes it.
        """
        self._apply(event)
        self._unwritten.append(dict(event))
        try:
            while self._unwritten:
                self._journal.append(self._unwritten[0], sync=sync and len(self._unwritten) == 1)
                self._unwritten.pop(0)
        except JournalError as error:
            if len(self._unwritten) % 100 == 1:
                logger.warning("%d events wait to be written: %s", len(self._unwritten), error)

    def take_number(self, role: str) -> int:
        """A number that no child of this role had, and none will get again."""
        number = self.next_number[role]
        self.record({"kind": "numbers", "role": role, "next": number + 1})
        return number

    @property
    def unwritten(self) -> int:
        """Events that the disk did not take yet."""
        return len(self._unwritten)

    def compact(self) -> None:
        """Replaces the journal by the present state, so that reading it back takes no longer than a moment."""
        try:
            self._journal.compact({"state": self.state_dict()})
            self._unwritten.clear()
        except (JournalError, OSError) as error:
            logger.warning("the journal stays as long as it is: %s", error)

    def state_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return {
            "ledger": self.ledger.state_dict(),
            "by_worker": self._by_worker.state_dict(),
            "curriculum": self.curriculum_state(),
            "evaluations": self.evaluations.state_dict(),
            "generation": self.generation,
            "next_number": dict(self.next_number),
            "members": {
                role: {str(number): member for number, member in members.items()}
                for role, members in self.members.items()
            },
            "settings": dict(self.settings),
            "workers": self.workers,
            "returns": list(self.returns),
        }

    def restore_checkpoint(self, version: int, agent_step: int, saved: Mapping[str, Any]) -> None:
        """Goes back (or, with a lost journal, forward) to a checkpoint: what was trained after it is lost."""
        ahead = version > self.ledger.version or agent_step > self.ledger.trained
        kind = "adopt" if ahead else "roll_back"
        self.record({"kind": kind, "version": version, "trained": agent_step}, sync=True)
        restored = {
            "curriculum": saved.get("curriculum", self._fresh_curriculum),
            "settings": saved.get("settings", self.settings),
            "returns": saved.get("returns", ()),  # older checkpoints have none
        }
        self.record({"kind": "restore", **restored})
        for role, number in saved.get("next_number", {}).items():
            if number > self.next_number[role]:
                self.record({"kind": "numbers", "role": role, "next": number})

    def checkpoint_state(self) -> dict[str, Any]:
        """What ``restore_checkpoint`` gets back."""
        return {
            "curriculum": self.curriculum_state(),
            "settings": dict(self.settings),
            "next_number": dict(self.next_number),
            "ledger": self.ledger.totals(),
            "returns": list(self.returns),
        }

    def curriculum_state(self) -> str | None:
        return _as_text(self.curriculum.state_dict()) if self.curriculum is not None else None

    def close(self) -> None:
        self._journal.close()

    def _apply(self, event: Mapping[str, Any]) -> None:
        kind = event["kind"]
        if kind in EVENTS:
            self.ledger.apply(event)
            self._by_worker.add(event)
            self.returns.extend(event.get("returns", ()))
            if kind == "deliver" and self.curriculum is not None:
                for task_id, score in event.get("outcomes", ()):
                    self.curriculum.complete_task(task_id, score)
        elif kind == evaluation_queue.KIND:
            self.evaluations.apply(event)
        elif kind == "snapshot":
            self._load_state_dict(event["state"])
        elif kind == "generation":
            self.generation = event["number"]
        elif kind == "joined":
            self.members[event["role"]][event["number"]] = dict(event)
            self.next_number[event["role"]] = max(self.next_number[event["role"]], event["number"] + 1)
        elif kind == "left":
            self.members[event["role"]].pop(event["number"], None)
        elif kind == "numbers":
            self.next_number[event["role"]] = event["next"]
        elif kind == "setting":
            self.settings[event["name"]] = event["value"]
        elif kind == "workers":
            self.workers = event["text"]
        elif kind == "restore":
            if self.curriculum is not None and event["curriculum"] is not None:
                self.curriculum.load_state_dict(_from_text(event["curriculum"]))
            self.settings = dict(event["settings"])
            self._replace_returns(event.get("returns", ()))

    def _load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.ledger.load_state_dict(state["ledger"])
        self._by_worker.load_state_dict(state["by_worker"])
        if self.curriculum is not None and state["curriculum"] is not None:
            self.curriculum.load_state_dict(_from_text(state["curriculum"]))
        if "evaluations" in state:  # older journals have none
            self.evaluations.load_state_dict(state["evaluations"])
        self.generation = state["generation"]
        self.next_number = dict(state["next_number"])
        self.members |= {
            role: {int(number): member for number, member in members.items()}
            for role, members in state["members"].items()
        }
        self.settings = dict(state["settings"])
        self.workers = state["workers"]
        self._replace_returns(state.get("returns", ()))  # older journals have none

    def _replace_returns(self, returns: Iterable[float]) -> None:
        self.returns.clear()
        self.returns.extend(returns)


def _as_text(tree: Any) -> str:
    return base64.b64encode(tree_to_bytes(tree)).decode()


def _from_text(text: str) -> Any:
    return tree_from_bytes(base64.b64decode(text))
