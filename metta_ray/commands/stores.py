"""Commands about all runs of a store: runs, state copy."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING

from metta_ray.commands.parts import DONE, FAILED, Plain, add_json, add_places, is_final, where_of

if TYPE_CHECKING:
    from metta_ray.commands.parts import Commands

COPY_HELP = """\
Copies records and events of all runs that have ended; directories of runs stay where they are. Once more is harmless:
what is there already stays, and so does what is newer there. A run that goes on would go on writing to FROM: stop it,
copy, and go on with --state TO."""


def add_to(commands: Commands) -> None:
    listing = commands.add_parser("runs", help="all runs of the store", description="all runs of the store")
    add_json(listing)
    add_places(listing)
    listing.set_defaults(command=runs)

    state = commands.add_parser("state", help="stores of runs: metta-ray state copy FROM TO")
    copying = state.add_subparsers(metavar="COMMAND", required=True).add_parser(
        "copy", help="all records of runs, from one store to another", description=COPY_HELP, formatter_class=Plain
    )
    copying.add_argument("source", metavar="FROM", help="sqlite:///PATH, redis:// or rediss://")
    copying.add_argument("target", metavar="TO", help="the same")
    copying.set_defaults(command=copy_state)


def runs(options: argparse.Namespace) -> int:
    from metta_ray.metrics.run_tables import print_runs
    from metta_ray.service.connection import records

    known = [record.to_json() for record in records(where_of(options))]
    if options.json:
        print(json.dumps(known))
    elif known:
        print_runs(known, time.time(), sys.stdout)
    else:
        print(f"no runs in {where_of(options).store_url}")
    return DONE


def copy_state(options: argparse.Namespace) -> int:
    from metta_ray.service.connection import stores_of_copy
    from metta_ray.state.copying import copy_runs

    is_whole = True
    with stores_of_copy(options.source, options.target) as (source, target):
        for copied in copy_runs(source, target, lambda record: is_final(record.state)):
            is_whole &= not copied.outcome.is_refusal
            print(f"run {copied.run}: {copied.outcome}" + f"; new events: {copied.events}" * bool(copied.events))
    if is_whole:
        return DONE
    print(
        f"error: not all runs were copied; end what goes on (metta-ray stop RUN --state {options.source}, with --force "
        "where its cluster is gone) and copy again; for other runs of the same names use another file, or another "
        "?prefix= of the Redis",
        file=sys.stderr,
    )
    return FAILED
