"""The ledger of a run, checked from its journal alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from metta_ray.common.errors import JournalError
from metta_ray.control.ledger import Ledger
from metta_ray.service.audit import WorkerTotals, audit, audit_run
from metta_ray.state.journal import Journal

EVENTS: list[dict[str, Any]] = [
    {"kind": "generation", "number": 1},
    {"kind": "issue", "ticket": 0, "worker": 0, "steps": 64},
    {"kind": "issue", "ticket": 1, "worker": 1, "steps": 64},
    {"kind": "issue", "ticket": 2, "worker": 1, "steps": 64},
    {"kind": "issue", "ticket": 3, "worker": 0, "steps": 64},
    {"kind": "deliver", "ticket": 0, "version": 0, "counted": 60},
    {"kind": "deliver", "ticket": 1, "version": 0, "counted": 64},
    {"kind": "drop", "ticket": 1, "reason": "stale"},
    {"kind": "lose", "ticket": 2, "reason": "crash"},
    {"kind": "commit", "version": 1, "tickets": [0]},
]


def test_who_collected_what_adds_up_to_the_ledger():
    result = audit(EVENTS)

    assert result.is_balanced
    assert result.totals["trained"] == 60
    assert result.workers == {
        0: {"fragments": 1, "issued": 128, "trained": 60, "dropped": 4, "lost": 0, "open": 64},
        1: {"fragments": 1, "issued": 128, "trained": 0, "dropped": 64, "lost": 64, "open": 0},
    }
    for column in ("issued", "trained"):
        assert sum(worker[column] for worker in result.workers.values()) == result.totals[column]


def test_after_a_compaction_the_totals_are_those_of_the_whole_run():
    ledger = Ledger()
    for event in EVENTS[1:]:
        ledger.apply(event)
    snapshot = {"kind": "snapshot", "state": {"ledger": ledger.state_dict()}}

    result = audit([snapshot, {"kind": "deliver", "ticket": 3, "version": 1, "counted": 64}])

    assert result.is_balanced
    assert result.totals["issued"] == 256
    assert result.workers == {0: {"fragments": 1, "issued": 64, "trained": 0, "dropped": 0, "lost": 0, "open": 64}}


def test_a_snapshot_that_keeps_the_workers_loses_nothing():
    ledger, totals = Ledger(), WorkerTotals()
    for event in EVENTS[1:]:
        ledger.apply(event)
        totals.add(event)
    snapshot = {"kind": "snapshot", "state": {"ledger": ledger.state_dict(), "by_worker": totals.state_dict()}}

    assert audit([snapshot]).workers == audit(EVENTS).workers
    assert audit([json.loads(json.dumps(snapshot))]).workers == audit(EVENTS).workers


def test_going_back_to_a_checkpoint_loses_what_was_open():
    result = audit([*EVENTS, {"kind": "roll_back", "version": 0, "trained": 0}])

    assert result.is_balanced
    assert result.workers[0]["lost"] == 64


def test_a_ticket_that_is_trained_twice_is_found_and_named():
    result = audit([*EVENTS, {"kind": "commit", "version": 2, "tickets": [0]}])

    assert not result.is_balanced
    assert "ticket 0 is closed" in result.fault
    assert "record 11" in result.fault


def test_a_record_without_its_values_is_found():
    assert "'state' is missing, in record 1" in audit([{"kind": "snapshot"}]).fault


def test_a_live_run_can_be_audited(tmp_path: Path):
    journal, _ = Journal.open(tmp_path / "journal.log")
    for event in EVENTS:
        journal.append(event)
    with (tmp_path / "journal.log").open("ab") as file:
        file.write(b"12345678 {half a li")

    assert audit_run(tmp_path).totals["issued"] == 256


def test_a_run_without_a_journal_is_an_error(tmp_path: Path):
    with pytest.raises(JournalError, match=r"journal\.log cannot be read"):
        audit_run(tmp_path)
