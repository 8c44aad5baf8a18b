"""Checks a run's ledger from its journal, without the run: replays the events and adds up who did what."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metta_ray.common.errors import LedgerError
from metta_ray.control.ledger import Ledger
from metta_ray.state.journal import SNAPSHOT, read_records

JOURNAL = "journal.log"
EVENTS = {"issue", "deliver", "drop", "lose", "commit", "roll_back", "adopt"}
COLUMNS = ("fragments", "issued", "trained", "dropped", "lost", "open")


@dataclass
class Audit:
    """totals: of the ledger, over the whole run. workers: by stream number, since the last compaction.

    fault: the first event that cannot have happened, or empty.
    """

    totals: dict[str, Any] = field(default_factory=dict)
    workers: dict[int, dict[str, int]] = field(default_factory=dict)
    events: int = 0
    fault: str = ""

    @property
    def is_balanced(self) -> bool:
        return not self.fault and self.totals["imbalance"] == 0


def audit_run(run_dir: str | Path) -> Audit:
    """The audit of a live or an ended run. JournalError if there is no journal or it is damaged."""
    return audit(read_records(Path(run_dir) / JOURNAL))


def audit(records: Iterable[Mapping[str, Any]]) -> Audit:
    """Replays records of a journal; those that are no events of the ledger are passed over."""
    ledger, result = Ledger(), Audit()
    totals = _WorkerTotals()
    for number, record in enumerate(records, start=1):
        try:
            if record.get("kind") == SNAPSHOT:
                saved = record["state"]["ledger"]
                ledger.load_state_dict(saved)
                totals = _WorkerTotals(saved["open"])
            elif record.get("kind") in EVENTS:
                ledger.apply(record)
                totals.add(record)
                result.events += 1
        except (LedgerError, KeyError) as error:
            said = str(error) if isinstance(error, LedgerError) else f"{error} is missing"
            result.fault = f"{said}, in record {number}: {dict(record)}"
            break
    result.totals, result.workers = ledger.totals(), totals.by_worker()
    return result


class _WorkerTotals:
    """Agent steps by worker. Opening balances come from a snapshot's open tickets."""

    def __init__(self, open_tickets: Iterable[Mapping[str, Any]] = ()):
        self._workers: dict[int, dict[str, int]] = defaultdict(lambda: dict.fromkeys(COLUMNS, 0))
        self._open: dict[int, tuple[int, int, int]] = {}  # ticket → worker, steps, counted
        for ticket in open_tickets:
            self._issue(ticket["number"], ticket["worker"], ticket["steps"], ticket["counted"])

    def add(self, event: Mapping[str, Any]) -> None:
        match event["kind"]:
            case "issue":
                self._issue(event["ticket"], event["worker"], event["steps"])
            case "deliver":
                worker, steps, _ = self._open[event["ticket"]]
                self._open[event["ticket"]] = (worker, steps, event["counted"])
                self._workers[worker]["fragments"] += 1
            case "drop":
                self._close(event["ticket"], "dropped")
            case "lose":
                self._close(event["ticket"], "lost")
            case "commit":
                for ticket in event["tickets"]:
                    worker, steps, counted = self._open.pop(ticket)
                    self._workers[worker]["trained"] += counted
                    self._workers[worker]["dropped"] += steps - counted
            case _:
                for ticket in list(self._open):
                    self._close(ticket, "lost")

    def by_worker(self) -> dict[int, dict[str, int]]:
        totals = {number: dict(worker) for number, worker in self._workers.items()}
        for worker, steps, _ in self._open.values():
            totals[worker]["open"] += steps
        return totals

    def _issue(self, ticket: int, worker: int, steps: int, counted: int = 0) -> None:
        self._open[ticket] = (worker, steps, counted)
        self._workers[worker]["issued"] += steps

    def _close(self, ticket: int, column: str) -> None:
        worker, steps, _ = self._open.pop(ticket)
        self._workers[worker][column] += steps
