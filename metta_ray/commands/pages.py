"""Commands that write pages for a browser: report, replay."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from metta_ray.commands.parts import DATA_DIR_HELP, DONE, Plain, add_places, where_of

if TYPE_CHECKING:
    from metta_ray.commands.parts import Commands

REPORT_HELP = """\
Writes one self-contained HTML page: learning curves, evaluations, curriculum, where the time went, staleness, workers
and events, ledger, checkpoints, configuration. RUN is a run's name, its directory, or a URL such as s3://…"""
REPLAY_HELP = """\
Writes one self-contained HTML page with a player in it: play, scrub, follow an agent, see what it observes, holds,
gains and expects. FILE is a replay of metta_ray or MettaGrid (versions 3 and 4), a path or a URL such as s3://…"""


def add_to(commands: Commands) -> None:
    watching = commands.add_parser(
        "replay", help="look at an episode in a browser, or as text", description=REPLAY_HELP, formatter_class=Plain
    )
    watching.add_argument("what", metavar="POLICY_URI|FILE", help="a policy, which plays an episode, or a replay file")
    watching.add_argument("--out", metavar="FILE", help="the page, a path or URL; default NAME.replay.html")
    watching.add_argument("--env", metavar="ENV", help="where a policy plays; default what it was trained on")
    watching.add_argument("--seed", type=int, default=0, help="of the episode that a policy plays; default 0")
    watching.add_argument("--text", action="store_true", help="characters in the terminal, or a pipe, instead")
    watching.add_argument("--agent", type=int, default=0, metavar="N", help="whom --text follows; default 0")
    watching.add_argument("--every", type=int, default=1, metavar="N", help="--text shows each N-th step; default 1")
    watching.add_argument("--data-dir", metavar="DIR", help=DATA_DIR_HELP)
    watching.set_defaults(command=replay)

    reporting = commands.add_parser(
        "report", help="runs as one web page, side by side", description=REPORT_HELP, formatter_class=Plain
    )
    reporting.add_argument("runs", nargs="+", metavar="RUN", help="name, directory or URL of a run")
    reporting.add_argument("--out", metavar="FILE", help="the page, a path or URL; default RUN.report.html")
    add_places(reporting)
    reporting.set_defaults(command=report)


def report(options: argparse.Namespace) -> int:
    from metta_ray.report.commands import show_report
    from metta_ray.report.find_run import find_run
    from metta_ray.service.run_config import data_place

    data_dir = data_place(options.data_dir, os.environ)
    print(show_report([find_run(run, data_dir, where_of(options)) for run in options.runs], out=options.out))
    return DONE


def replay(options: argparse.Namespace) -> int:
    from metta_ray.report.commands import show_replay
    from metta_ray.service.run_config import data_directory

    page = show_replay(
        options.what,
        out=options.out,
        text_to=sys.stdout if options.text else None,
        env=options.env,
        seed=options.seed,
        agent=options.agent,
        every=options.every,
        data_dir=data_directory(options.data_dir, os.environ),
    )
    if page is not None:
        print(page)
    return DONE
