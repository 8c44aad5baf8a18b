"""The command evaluate: a live run plays its own policy, stored ones are played in this process."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING

from metta_ray.commands.parts import DONE, add_places, handle_of, is_live_run, say

if TYPE_CHECKING:
    from metta_ray.commands.parts import Commands

EVALUATE_HELP = """A run that is going on plays it itself, on its evaluators, and remembers the result. Stored policies
are played in this process."""


def add_to(commands: Commands) -> None:
    playing = commands.add_parser(
        "evaluate", help="play a suite with a run's policy or with stored ones", description=EVALUATE_HELP
    )
    playing.add_argument(
        "policies", nargs="+", metavar="RUN|POLICY_URI", help="policy or run directory; random, scripted"
    )
    playing.add_argument(
        "--suite",
        metavar="NAME",
        help="a wrong one lists all; default: for a run what suits its environment, else navigation",
    )
    playing.add_argument("--epoch", type=int, metavar="N", help="of a run: that checkpoint instead of the policy now")
    playing.add_argument("--wait", action="store_true", help="for a run: until it has been played, with its result")
    playing.add_argument("--here", action="store_true", help="play in this process, also if it names a run")
    add_places(playing)
    playing.add_argument("--episodes", type=int, metavar="N", help="of each simulation; default: the suite's")
    playing.add_argument("--against", metavar="A,B", help="more players, default random,scripted; also policies")
    playing.add_argument("--npc", metavar="POLICY_URI", help="drives the other agents of every environment")
    playing.add_argument(
        "--policy-share", type=float, default=0.5, metavar="X", help="of agents, with --npc; default 0.5"
    )
    playing.add_argument("--selector", default="latest", help="which policy of several: latest, top, rand")
    playing.add_argument("--seed", type=int, default=0, help="of engine and drawn actions; default 0")
    playing.add_argument(
        "--time-limit", type=float, metavar="S", help="seconds for each player; what is there is shown"
    )
    playing.add_argument("--stats-db", metavar="FILE", help="SQLite file that results are added to")
    playing.add_argument("--replay-dir", metavar="DIR", help="where replays go, a path or URL; default none")
    playing.add_argument("--threads", type=int, default=1, help="torch threads; default 1")
    playing.add_argument("--json", metavar="FILE", help="also as JSON; - prints JSON instead of the table")
    playing.set_defaults(command=evaluate)


def evaluate(options: argparse.Namespace) -> int:
    only_here = (options.against, options.npc, options.stats_db, options.replay_dir, options.json, options.time_limit)
    is_for_here = options.here or len(options.policies) > 1 or any(value is not None for value in only_here)
    if not is_for_here and is_live_run(options, options.policies[0]):
        return _evaluate_run(options)
    return _evaluate_here(options)


def _evaluate_run(options: argparse.Namespace) -> int:
    options.run = options.policies[0]
    with handle_of(options) as handle:
        answer = handle.evaluate(options.suite or "", options.epoch, options.episodes, options.seed)
        if not answer.get("ok") or not options.wait:
            return say(answer)
        print(answer["message"], file=sys.stderr)
        ended = handle.await_evaluation(answer["number"])
    if ended.get("state") != "done":
        return say({"ok": False, "message": ended.get("reason") or ended.get("message")})
    print(ended["text"] or ended)
    return DONE


def _evaluate_here(options: argparse.Namespace) -> int:
    import contextlib

    import torch

    from metta_ray.agent.policy_store import PolicyStore
    from metta_ray.common.errors import ConfigError
    from metta_ray.common.util import places
    from metta_ray.eval.eval_stats_db import EvalStatsDB
    from metta_ray.eval.evaluate_policies import evaluate_policies
    from metta_ray.service.run_config import data_directory

    for name, value in (
        ("episodes", options.episodes),
        ("time-limit", options.time_limit),
        ("threads", options.threads),
    ):
        if value is not None and value <= 0:
            raise ConfigError(f"--{name} {value}: use a number above 0")
    if not 0 < options.policy_share <= 1:
        raise ConfigError(f"--policy-share {options.policy_share}: use a number above 0, at most 1")
    if options.stats_db and places.is_remote(options.stats_db):
        raise ConfigError(f"--stats-db {options.stats_db}: SQLite needs a file of this machine")
    if options.replay_dir and places.is_remote(options.replay_dir):
        places.require_writable(options.replay_dir)
    torch.set_num_threads(options.threads)
    with contextlib.ExitStack() as stack:
        stats_db = stack.enter_context(EvalStatsDB(options.stats_db)) if options.stats_db else None
        table = evaluate_policies(
            options.policies,
            options.suite or "navigation",
            against=None if options.against is None else [name for name in options.against.split(",") if name],
            episodes=options.episodes,
            seed=options.seed,
            time_limit_s=options.time_limit,
            npc=options.npc,
            policy_agents_pct=options.policy_share,
            stats_db=stats_db,
            replay_dir=options.replay_dir,
            policy_store=PolicyStore(data_dir=data_directory(options.data_dir, os.environ)),
            selector=options.selector,
            on_played=lambda label, seconds: print(f"{label}: {seconds:.0f} s", file=sys.stderr),
        )
    if options.json == "-":
        print(json.dumps(table.to_json()))
        return DONE
    print(table.text())
    if options.json:
        places.write_bytes(options.json, (json.dumps(table.to_json(), indent=1) + "\n").encode())
    return DONE
