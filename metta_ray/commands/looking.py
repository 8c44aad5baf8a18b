"""Commands that show how a run goes or went: status, logs, curriculum, evaluations, audit."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from metta_ray.commands.parts import (
    DONE,
    FAILED,
    add_command_of_run,
    add_json,
    handle_of,
    is_final,
    is_live_run,
    say,
    where_of,
)
from metta_ray.commands.submitted import has_no_coordinator_yet, refreshed_record

if TYPE_CHECKING:
    from metta_ray.commands.parts import Commands

WATCH_INTERVAL_S = 2.0


def add_to(commands: Commands) -> None:
    one = add_command_of_run(commands, "status", status, "how a run goes, its workers, learners and ledger")
    add_json(one)
    one.add_argument("--watch", action="store_true", help=f"again every {WATCH_INTERVAL_S:g} s, until it ends")
    one = add_command_of_run(commands, "logs", logs, "the log of a run")
    one.add_argument("--follow", action="store_true", help="until the run ends")
    text = "how every task stands: probability, attempts, score, learning progress"
    add_json(add_command_of_run(commands, "curriculum", curriculum, text))
    add_json(add_command_of_run(commands, "evaluations", evaluations, "a run's evaluations and its best policy"))
    text = "check from the journal that every agent step is accounted for"
    add_json(add_command_of_run(commands, "audit", audit, text))


def status(options: argparse.Namespace) -> int:
    while True:
        answer = _status(options)
        if options.watch and sys.stdout.isatty():
            print("\x1b[H\x1b[J", end="")
        _print_status(answer, options.json)
        if not options.watch or is_final(answer["state"]):
            return DONE
        time.sleep(WATCH_INTERVAL_S)
        if not options.json and not sys.stdout.isatty():
            print()


def _status(options: argparse.Namespace) -> dict[str, Any]:
    """A live run answers for itself; of one that has ended the record is all there is."""
    from metta_ray.service.connection import record_as_status, recorded

    record = recorded(where_of(options), options.run)
    if record is not None and has_no_coordinator_yet(record):
        record = refreshed_record(options, record)
        return record_as_status(record)
    if record is not None and is_final(record.state):
        return record_as_status(record)
    with handle_of(options) as handle:
        return handle.status()


def _print_status(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(answer), flush=True)
        return
    from metta_ray.metrics.run_tables import print_status

    print_status(answer, sys.stdout)


def logs(options: argparse.Namespace) -> int:
    from metta_ray.service.connection import find_run
    from metta_ray.service.run_log import log_pieces

    record = find_run(where_of(options), options.run)
    if record.job_id and record.dashboard_url:
        from metta_ray.jobs.client import Jobs

        jobs = Jobs.at(record.dashboard_url)
        pieces: Iterable[str] = jobs.follow_logs(record.job_id) if options.follow else [jobs.logs(record.job_id)]
    else:
        has_ended = lambda: is_final(find_run(where_of(options), options.run).state)  # noqa: E731
        pieces = log_pieces(record.run_dir, has_ended if options.follow else None)
    for piece in pieces:
        print(piece, end="", flush=True)
    return DONE


def curriculum(options: argparse.Namespace) -> int:
    from metta_ray.metrics.run_tables import print_curriculum
    from metta_ray.service.connection import find_run
    from metta_ray.service.curriculum_rows import task_table_of_journal

    if is_live_run(options, options.run):
        with handle_of(options) as handle:
            answer = handle.curriculum()
    else:
        record = find_run(where_of(options), options.run)
        answer = task_table_of_journal(record.run_dir, record.config)
    if not answer["ok"]:
        return say(answer)
    if options.json:
        print(json.dumps(answer))
    else:
        print_curriculum(answer, sys.stdout)
    return DONE


def evaluations(options: argparse.Namespace) -> int:
    from metta_ray.metrics.run_tables import print_evaluations

    known = _status(options)
    if options.json:
        print(json.dumps({"best": known.get("best"), **(known.get("evaluations") or {})}))
    else:
        print_evaluations(known, time.time(), sys.stdout)
    return DONE


def audit(options: argparse.Namespace) -> int:
    from metta_ray.metrics.run_tables import print_ledger, print_worker_totals
    from metta_ray.service.audit import audit_run
    from metta_ray.service.connection import find_run

    result = audit_run(find_run(where_of(options), options.run).run_dir)
    if options.json:
        print(json.dumps({**result.totals, "workers": result.workers, "fault": result.fault}))
    else:
        print_ledger(result.totals, sys.stdout)
        print()
        print_worker_totals(result.workers, sys.stdout)
    if not result.is_balanced:
        reason = result.fault or f"{result.totals['imbalance']:,} agent steps are unaccounted for"
        print(f"error: the ledger of run {options.run} does not balance: {reason}", file=sys.stderr)
        return FAILED
    if not options.json:
        print(
            f"\nbalanced: {result.totals['issued']:,} agent steps issued, each accounted for ({result.events:,} events)"
        )
    return DONE
