"""The books of a run: whoever opens the journal knows what its writer knew."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from metta_ray.common.errors import LedgerError
from metta_ray.mettagrid.curriculum.resolve import resolve_curriculum
from metta_ray.service.audit import JOURNAL
from metta_ray.service.books import Books
from tests.fakes import FakeCurriculum, FakeRun


def books_in(run_dir: Path) -> Books:
    return Books(run_dir, FakeCurriculum())  # type: ignore[arg-type]


def reopened(books: Books, run_dir: Path) -> Books:
    books.close()
    return books_in(run_dir)


def deliver(books: Books, ticket: int) -> None:
    books.record({"kind": "issue", "ticket": ticket, "worker": 0, "steps": 64})
    outcomes = [[f"task {ticket}", 0.5]]
    books.record({"kind": "deliver", "ticket": ticket, "version": 0, "counted": 64, "outcomes": outcomes})


def commit(books: Books, version: int, *tickets: int) -> None:
    books.record({"kind": "commit", "version": version, "tickets": list(tickets)}, sync=True)


class FullDisk:
    """No write succeeds while it is ``full``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = True
        write = os.write

        def refuse(descriptor: int, data: Any) -> int:
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(descriptor, data)

        monkeypatch.setattr("os.write", refuse)


def test_new_books_are_new_and_used_ones_are_not(tmp_path: Path):
    books = books_in(tmp_path)
    assert books.is_new

    books.record({"kind": "generation", "number": 1})

    assert not reopened(books, tmp_path).is_new


def test_what_is_read_back_is_what_was_known(tmp_path: Path):
    run = FakeRun(tmp_path, learner__replicas=2).start()
    run.children.fragment_seconds = run.children.update_seconds = 0.1
    while run.workers[0].tickets:
        run.workers[0].deliver()
    run.workers[1].die()
    run.step_until(lambda: run.ledger.version >= 3)
    run.books.record({"kind": "setting", "name": "trainer.optimizer.learning_rate", "value": 1e-4})
    run.books.record({"kind": "workers", "text": "2:4"})

    again = reopened(run.books, tmp_path)

    assert again.state_dict() == run.books.state_dict()
    assert again.ledger.totals() == run.ledger.totals()
    assert again.curriculum_state() == run.books.curriculum_state()
    assert again.workers == "2:4"


def test_a_curriculum_that_learns_is_the_same_after_reading_back(tmp_path: Path):
    def books() -> Books:
        return Books(tmp_path, resolve_curriculum("/env/mettagrid/curriculum/navigation/bucketed"))

    live = books()
    assert live.curriculum is not None
    tasks = [template.task_id for template in live.curriculum.task_table().templates[:3]]
    for ticket in range(6):
        live.record({"kind": "issue", "ticket": ticket, "worker": 0, "steps": 64})
        outcomes = [[tasks[ticket % 3], ticket / 6]]
        live.record({"kind": "deliver", "ticket": ticket, "version": 0, "counted": 64, "outcomes": outcomes})
    live.close()

    again = books()

    assert again.curriculum_state() == live.curriculum_state()


def test_an_event_that_cannot_be_changes_nothing_and_is_not_written(tmp_path: Path):
    books = books_in(tmp_path)
    deliver(books, 0)
    before = books.state_dict()

    with pytest.raises(LedgerError):
        books.record({"kind": "deliver", "ticket": 0, "version": 0, "counted": 64, "outcomes": [["task 0", 1.0]]})

    assert books.state_dict() == before
    assert reopened(books, tmp_path).state_dict() == before


def test_a_full_disk_delays_what_is_written_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    books = books_in(tmp_path)
    deliver(books, 0)
    disk = FullDisk(monkeypatch)
    deliver(books, 1)
    commit(books, 1, 0, 1)
    assert books.unwritten == 3
    assert books.ledger.version == 1

    disk.full = False
    deliver(books, 2)

    assert books.unwritten == 0
    assert reopened(books, tmp_path).state_dict() == books.state_dict()


def test_compacting_keeps_everything_in_one_record(tmp_path: Path):
    books = books_in(tmp_path)
    for ticket in range(50):
        deliver(books, ticket)
    commit(books, 1, *range(40))
    size = (tmp_path / JOURNAL).stat().st_size

    books.compact()
    deliver(books, 50)

    assert (tmp_path / JOURNAL).stat().st_size < size / 2
    assert len((tmp_path / JOURNAL).read_bytes().splitlines()) == 3
    assert reopened(books, tmp_path).state_dict() == books.state_dict()


def test_compacting_takes_up_what_a_full_disk_left_unwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    books = books_in(tmp_path)
    disk = FullDisk(monkeypatch)
    deliver(books, 0)
    assert books.unwritten == 2
    disk.full = False

    books.compact()

    assert books.unwritten == 0
    assert reopened(books, tmp_path).state_dict() == books.state_dict()


def test_a_journal_that_cannot_be_compacted_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    books = books_in(tmp_path)
    deliver(books, 0)
    disk = FullDisk(monkeypatch)
    books.compact()
    disk.full = False

    assert reopened(books, tmp_path).state_dict() == books.state_dict()


def test_a_torn_last_record_is_cut_off(tmp_path: Path):
    books = books_in(tmp_path)
    deliver(books, 0)
    before = books.state_dict()
    deliver(books, 1)
    books.close()
    path = tmp_path / JOURNAL
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-2]) + lines[-2][:5])

    assert books_in(tmp_path).state_dict() == before


def test_going_back_to_a_checkpoint_loses_what_was_trained_since_with_a_reason(tmp_path: Path):
    books = books_in(tmp_path)
    deliver(books, 0)
    commit(books, 1, 0)
    books.returns.append(2.5)
    saved = books.checkpoint_state()
    books.record({"kind": "setting", "name": "trainer.seed", "value": 7})
    books.returns.append(9.0)
    deliver(books, 1)
    deliver(books, 2)
    commit(books, 2, 1)

    books.restore_checkpoint(1, 64, saved)

    assert (books.ledger.version, books.ledger.trained) == (1, 64)
    assert books.ledger.lost == {"rolled_back": 64, "restart": 64}
    assert books.ledger.imbalance() == 0
    assert books.ledger.next_ticket == 3, "numbers are never used again"
    assert books.settings == {}
    assert list(books.returns) == [2.5]
    assert books.curriculum.heard == {"task 0": 1}  # type: ignore[union-attr]
    assert reopened(books, tmp_path).state_dict() == books.state_dict()


def test_a_checkpoint_ahead_of_the_books_is_adopted(tmp_path: Path):
    """A run that the library trained, or whose journal is gone."""
    books = books_in(tmp_path)

    books.restore_checkpoint(5, 640, {"next_number": {"rollout": 9, "learner": 2}})

    assert (books.ledger.version, books.ledger.trained, books.ledger.issued) == (5, 640, 640)
    assert books.ledger.imbalance() == 0
    assert books.take_number("rollout") == 9
    assert reopened(books, tmp_path).state_dict() == books.state_dict()


def test_numbers_are_never_given_twice(tmp_path: Path):
    books = books_in(tmp_path)
    first = [books.take_number("rollout") for _ in range(3)]
    books = reopened(books, tmp_path)
    books.restore_checkpoint(0, 0, {"next_number": {"rollout": 1}})

    assert [*first, books.take_number("rollout")] == [0, 1, 2, 3]
    assert books.take_number("learner") == 0


def test_members_are_those_that_joined_and_did_not_leave(tmp_path: Path):
    books = books_in(tmp_path)
    for number in range(3):
        books.record({"kind": "joined", "role": "rollout", "number": number, "slot": number, "incarnation": "x"})
    books.record({"kind": "left", "role": "rollout", "number": 1})

    again = reopened(books, tmp_path)

    assert list(again.members["rollout"]) == [0, 2]
    assert again.next_number["rollout"] == 3


def test_evaluations_are_known_again_also_after_a_compaction(tmp_path: Path):
    books = books_in(tmp_path)
    asked = {"kind": "evaluation", "what": "asked", "number": 0, "at": 1.0, "policy_uri": "file:///a", "version": 3}
    books.record(asked)
    books.record({"kind": "joined", "role": "evaluator", "number": 0, "incarnation": "life", "generation": 1})
    books.compact()
    books.record({"kind": "evaluation", "what": "started", "number": 0, "evaluator": 0, "until": 9.0})

    again = reopened(books, tmp_path)

    assert again.evaluations.state_dict() == books.evaluations.state_dict()
    assert again.evaluations[0].evaluator == 0
    assert list(again.members["evaluator"]) == [0]


def test_a_journal_from_before_there_were_evaluations_is_read(tmp_path: Path):
    books = books_in(tmp_path)
    state = books.state_dict()
    del state["evaluations"], state["members"]["evaluator"]
    books.record({"kind": "snapshot", "state": state})

    again = reopened(books, tmp_path)

    assert again.evaluations.is_idle
    assert again.members["evaluator"] == {}
