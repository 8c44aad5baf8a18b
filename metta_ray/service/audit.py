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
    """totals: of the ledger. workers: by stream number. Both over the whole run, if snapshots kept the second.

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
    totals = WorkerTotals()
    for number, record in enumerate(records, start=1):
        try:
            if record.get("kind") == SNAPSHOT:
                saved = record["state"]["ledger"]
                ledger.load_state_dict(saved)
                totals = WorkerTotals()
                totals.load_state_dict(record["state"].get("by_worker") or totals.opening(saved["open"]))
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


class WorkerTotals:
    """Agent steps by worker, from the same events as the ledger.

    A journal whose snapshots keep ``state_dict`` (as ``by_worker``) has the totals of the whole run; without it they
    begin at the last snapshot, with the tickets that were open then.
    """

    def __init__(self) -> None:
        self._workers: dict[int, dict[str, int]] = defaultdict(lambda: dict.fromkeys(COLUMNS, 0))
        self._open: dict[int, tuple[int, int, int]] = {}  # ticket → worker, steps, counted

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

    def state_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return {
            "workers": {str(number): dict(worker) for number, worker in self._workers.items()},
            "open": [[ticket, *entry] for ticket, entry in self._open.items()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._workers.clear()
        self._workers.update({int(number): dict(worker) for number, worker in state["workers"].items()})
        self._open = {ticket: (worker, steps, counted) for ticket, worker, steps, counted in state["open"]}

    @classmethod
    def opening(cls, tickets: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """The state that begins with a ledger's open tickets, where nothing older was kept."""
        totals = cls()
        for ticket in tickets:
            totals._issue(ticket["number"], ticket["worker"], ticket["steps"], ticket["counted"])
        return totals.state_dict()

    def _issue(self, ticket: int, worker: int, steps: int, counted: int = 0) -> None:
        self._open[ticket] = (worker, steps, counted)
        self._workers[worker]["issued"] += steps

    def _close(self, ticket: int, column: str) -> None:
        worker, steps, _ = self._open.pop(ticket)
        self._workers[worker][column] += steps
