"""The command ``metta-ray``: parse, call, print. What takes time to load is loaded inside of the command that needs it.

Exit codes: 0 done, 2 bad input, 3 failed with a cause, 130 interrupted (a training: after a clean checkpoint).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from metta_ray.control.run_state import RunState
    from metta_ray.jobs.client import Jobs
    from metta_ray.service.connection import Where
    from metta_ray.service.run_config import RunConfig
    from metta_ray.service.run_handle import RunHandle
    from metta_ray.state.records import RunRecord

DONE, BAD_INPUT, FAILED, INTERRUPTED = 0, 2, 3, 130
FLAGS = ("new", "detach", "dry_run")
WATCH_INTERVAL_S = 2.0
EVALUATE_HELP = """A run that is going on plays it itself, on its evaluators, and remembers the result. Stored policies
are played in this process."""
SETTINGS_HELP = """\
Every setting has a dotted name: --trainer.ppo.clip-coef 0.2, --rollout.num-workers 4, --pacing.target-staleness 0.
FILE is YAML with the same names; it changes a preset (--preset), and words of the command line change it.
Short: --env, --workers 8 or 2:16, --seed, --total-timesteps, --data-dir, --state. --dry-run prints all settings.
Examples: deploy/runs/*.yaml."""

DATA_DIR_HELP = "where runs are kept, a directory or s3://…; default $DATA_DIR or ./train_dir"
REPORT_HELP = """\
Writes one self-contained HTML page: learning curves, evaluations, curriculum, where the time went, staleness, workers
and events, ledger, checkpoints, configuration. RUN is a run's name, its directory, or a URL such as s3://…"""
REPLAY_HELP = """\
Writes one self-contained HTML page with a player in it: play, scrub, follow an agent, see what it observes, holds,
gains and expects. FILE is a replay of metta_ray or MettaGrid (versions 3 and 4), a path or a URL such as s3://…"""

COPY_HELP = """\
Copies records and events of all runs that have ended; directories of runs stay where they are. Once more is harmless:
what is there already stays, and so does what is newer there. A run that goes on would go on writing to FROM: stop it,
copy, and go on with --state TO."""


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `metta-ray runs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def _run(words: list[str]) -> int:
    from metta_ray.common.errors import ConfigError, MettaRayError, RunDirectoryInUse, RunUnknownError

    try:
        command = _settings_command(words) if _has_settings(words) else _parsed_command(words)
        return command()
    except (ConfigError, RunUnknownError, RunDirectoryInUse) as error:
        return _refuse(error, BAD_INPUT)
    except MettaRayError as error:
        return _refuse(error, FAILED)


def _refuse(error: Exception, code: int) -> int:
    print("error: " + "; ".join(str(error).splitlines()), file=sys.stderr)
    return code


# --- words -------------------------------------------------------------------------------------------------


def _has_settings(words: Sequence[str]) -> bool:
    """train, submit and plan take any setting, which argparse cannot know."""
    return bool(words) and words[0] in ("train", "submit", "plan") and not {"-h", "--help"} & set(words)


def _settings_command(words: list[str]) -> Callable[[], int]:
    from metta_ray.common.errors import ConfigError
    from metta_ray.common.util.option_words import split_words
    from metta_ray.service.run_config import SHORT_OPTIONS

    files, overrides = split_words(words[1:], SHORT_OPTIONS, FLAGS)
    if len(files) > 1:
        raise ConfigError(f"{files[1]!r} is one file too many; options look like --trainer.ppo.clip-coef 0.2")
    file = files[0] if files else None
    if words[0] == "plan":
        return lambda: plan(file, overrides)
    if "state" in overrides:
        overrides["state.url"] = overrides.pop("state")
    is_dry = overrides.pop("dry_run", "false") == "true"
    command = train if words[0] == "train" else submit
    return lambda: command(file, overrides, is_dry=is_dry)


def _parsed_command(words: list[str]) -> Callable[[], int]:
    if words and words[0] == "bench":
        return lambda: bench(words[1:])
    options = build_parser().parse_args(words)
    command: Callable[[argparse.Namespace], int] = options.command
    return lambda: command(options)


_Plain = argparse.RawDescriptionHelpFormatter


class _Parser(argparse.ArgumentParser):
    """Refuses in one line, as everything else here does."""

    def error(self, message: str) -> NoReturn:
        from metta_ray.common.errors import ConfigError

        raise ConfigError(f"{message}; see {self.prog} --help")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="metta-ray", description="Train policies on Ray, and look after the runs.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    for name, text in (("train", "train here, or on the cluster of --address"), ("submit", "train as a Ray job")):
        command = commands.add_parser(
            name, help=text, epilog=SETTINGS_HELP, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.add_argument("file", nargs="?", metavar="FILE", help="run configuration, YAML")
        command.add_argument("--run", metavar="NAME", help="name of the run; an existing one is continued")
        command.add_argument("--new", action="store_true", help="set an existing run of that name aside")
        command.add_argument("--detach", action="store_true", help="the run goes on when this process ends")
        command.add_argument(
            "--address", metavar="A", help="cluster; otherwise RAY_ADDRESS, otherwise a Ray of its own"
        )
        command.add_argument("--state", metavar="URL", help="store of runs: sqlite:///PATH, redis:// or rediss://")
        command.add_argument("--dry-run", action="store_true", help="print all settings and end")

    command = commands.add_parser(
        "plan",
        help="how fast a run would be with other numbers of workers and replicas",
        epilog=SETTINGS_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("file", nargs="?", metavar="FILE", help="run configuration, YAML")
    command.add_argument("--workers", metavar="N", help="rollout workers")
    command.add_argument("--replicas", metavar="M", help="learner replicas")
    command.add_argument("--cores", metavar="C", help="that all of them share; otherwise each has a core of its own")
    command.add_argument("--measured", metavar="FILE", help="service times, JSON; otherwise those of this machine")

    def of_run(name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("run", metavar="RUN", help="name of the run")
        _add_places(added)
        added.set_defaults(command=command)
        return added

    one = of_run("status", status, "how a run goes, its workers, learners and ledger")
    one.add_argument("--json", action="store_true", help="for programs")
    one.add_argument("--watch", action="store_true", help=f"again every {WATCH_INTERVAL_S:g} s, until it ends")
    of_run("attach", attach, "watch a run until it ends; Ctrl-C leaves it running")
    one = of_run("logs", logs, "the log of a run")
    one.add_argument("--follow", action="store_true", help="until the run ends")
    one = of_run("scale", scale, "change the number of rollout workers")
    one.add_argument("--workers", required=True, metavar="N|MIN:MAX", help="8, or 2:16 for an automatic number")
    of_run("pause", _simple("pause"), "collect no more until unpause")
    of_run("unpause", _simple("unpause"), "go on after pause")
    of_run("checkpoint", _simple("checkpoint"), "save everything that is needed to resume, now")
    one = of_run("set", set_value, "change a setting of a live run; it is kept when the run is resumed")
    one.add_argument("name", metavar="KEY", help="e.g. trainer.optimizer.learning_rate")
    one.add_argument("value", metavar="VALUE")
    one = of_run("stop", stop, "drain, save and end a run")
    one.add_argument("--force", action="store_true", help="kill what is left of a run whose coordinator is gone")
    one = of_run("audit", audit, "check from the journal that every agent step is accounted for")
    one.add_argument("--json", action="store_true", help="for programs")

    one = of_run("curriculum", curriculum, "how every task stands: probability, attempts, score, learning progress")
    one.add_argument("--json", action="store_true", help="for programs")
    one = of_run("evaluations", evaluations, "a run's evaluations and its best policy")
    one.add_argument("--json", action="store_true", help="for programs")

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
    _add_places(playing)
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

    watching = commands.add_parser(
        "replay", help="look at an episode in a browser, or as text", description=REPLAY_HELP, formatter_class=_Plain
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
        "report", help="runs as one web page, side by side", description=REPORT_HELP, formatter_class=_Plain
    )
    reporting.add_argument("runs", nargs="+", metavar="RUN", help="name, directory or URL of a run")
    reporting.add_argument("--out", metavar="FILE", help="the page, a path or URL; default RUN.report.html")
    _add_places(reporting)
    reporting.set_defaults(command=report)

    listing = commands.add_parser("runs", help="all runs of the store", description="all runs of the store")
    listing.add_argument("--json", action="store_true", help="for programs")
    _add_places(listing)
    listing.set_defaults(command=runs)

    state = commands.add_parser("state", help="stores of runs: metta-ray state copy FROM TO")
    copying = state.add_subparsers(metavar="COMMAND", required=True).add_parser(
        "copy", help="all records of runs, from one store to another", description=COPY_HELP, formatter_class=_Plain
    )
    copying.add_argument("source", metavar="FROM", help="sqlite:///PATH, redis:// or rediss://")
    copying.add_argument("target", metavar="TO", help="the same")
    copying.set_defaults(command=copy_state)
    commands.add_parser("bench", help="benchmarks: metta-ray bench --help", add_help=False)
    return parser


def _add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", metavar="DIR", help=DATA_DIR_HELP)
    parser.add_argument(
        "--state",
        "--state-url",
        dest="state_url",
        metavar="URL",
        help="store of runs; default $METTA_RAY_STATE or runs.sqlite in the data directory",
    )
    parser.add_argument("--address", metavar="HOST:PORT", help="cluster to look in; default RAY_ADDRESS")


# --- commands that start a run -----------------------------------------------------------------------------


def train(file: str | None, overrides: dict[str, str], *, is_dry: bool) -> int:
    config = _config(file, overrides)
    if is_dry:
        print(config.to_yaml(), end="")
        return DONE

    from metta_ray.metrics.console import training_display
    from metta_ray.service.main import run_training

    with training_display(sys.stdout) as display:
        code: int = run_training(config, display=display)
    return code


def submit(file: str | None, overrides: dict[str, str], *, is_dry: bool) -> int:
    from metta_ray.jobs.client import job_address, plan_job, travelling_data_dir
    from metta_ray.rl.run_directories import name_from_time

    address = overrides.pop("cluster.address", None)
    config = _config(file, overrides)
    address = address or config.cluster.address
    if not is_dry:
        address = job_address(address, os.environ)
    usual = str(config.data_dir)
    config = config.model_copy(update={"run": config.run or name_from_time(Path(usual))})
    data_dir = travelling_data_dir(usual, is_given=_names_data_dir(file, overrides), address=address)
    from_here = {"data_dir": data_dir, "state.url": config.state.url}  # a job does not know this shell's variables
    plan = plan_job(file, overrides | {name: value for name, value in from_here.items() if value}, config)
    if is_dry:
        print(config.to_yaml(), end="")
        print(f"# job {plan.submission_id}\n# entry command: {plan.entrypoint}")
        return DONE

    from metta_ray.jobs.client import Jobs
    from metta_ray.service.connection import Where, put_record

    jobs = Jobs.at(str(address))
    job = jobs.submit(plan)
    where = Where.of(config.data_dir, config.state.url, None, {})
    put_record(where, _record_of_job(config, job, jobs))
    print(f"job {job} trains run {config.run} on {jobs.address}")
    print(f"follow: metta-ray logs {config.run} --follow{_data_dir_words(config)}")
    print(f"status: metta-ray status {config.run}{_data_dir_words(config)}")
    print(f"stop:   metta-ray stop {config.run}{_data_dir_words(config)}")
    return DONE


def plan(file: str | None, overrides: dict[str, str]) -> int:
    measured, cores = overrides.pop("measured", None), overrides.pop("cores", None)
    if "replicas" in overrides:
        overrides["learner.replicas"] = overrides.pop("replicas")
    config = _config(file, overrides)

    from metta_ray.control.plan import Resources
    from metta_ray.rl.vecenv import training_factory
    from metta_ray.service.measuring import measured_here
    from metta_ray.service.what_if import read_times, table, what_if

    times = read_times(measured) if measured else measured_here(config).times
    resources = Resources(cores=_cores(cores))
    agents_per_env = training_factory(config.trainer).spec().agents_per_env
    print(table(what_if(config, times, agents_per_env, resources), times, config, resources))
    return DONE


def _cores(text: str | None) -> float | None:
    from metta_ray.common.errors import ConfigError

    if text is None:
        return None
    try:
        cores = float(text)
    except ValueError:
        cores = 0.0
    if not 0 < cores < float("inf"):
        raise ConfigError(f"cores={text!r} is not a number of cores; use 16, or leave it out for one each")
    return cores


def bench(words: list[str]) -> int:
    from metta_ray.bench.__main__ import main as run_benchmark

    return run_benchmark(words)


def _config(file: str | None, overrides: dict[str, str]) -> RunConfig:
    from metta_ray.service.run_config import load_run_config, located

    return located(load_run_config(file, overrides), os.environ)


# --- commands about a run ----------------------------------------------------------------------------------


def status(options: argparse.Namespace) -> int:
    while True:
        answer = _status(options)
        if options.watch and sys.stdout.isatty():
            print("\x1b[H\x1b[J", end="")
        _print_status(answer, options.json)
        if not options.watch or _is_final(answer["state"]):
            return DONE
        time.sleep(WATCH_INTERVAL_S)
        if not options.json and not sys.stdout.isatty():
            print()


def attach(options: argparse.Namespace) -> int:
    from metta_ray.common.errors import RunUnreachableError
    from metta_ray.metrics.console import training_display
    from metta_ray.service.connection import recorded
    from metta_ray.service.following import EXIT_CODES, follow

    where = _where(options)
    try:
        with _handle(options) as handle, training_display(sys.stdout) as display:
            return follow(handle, display)
    except KeyboardInterrupt:
        print(f"run {options.run} goes on; to end it: metta-ray stop {options.run}", file=sys.stderr)
        return INTERRUPTED
    except RunUnreachableError:
        record = recorded(where, options.run)
        if record is None or not _is_final(record.state):
            raise
        print(f"run {record.name}: {record.state}" + (f", {record.message}" if record.message else ""))
        return EXIT_CODES[_run_state(record.state)]


def logs(options: argparse.Namespace) -> int:
    from metta_ray.service.connection import find_run
    from metta_ray.service.run_log import log_pieces

    record = find_run(_where(options), options.run)
    if record.job_id and record.dashboard_url:
        from metta_ray.jobs.client import Jobs

        jobs = Jobs.at(record.dashboard_url)
        pieces: Iterable[str] = jobs.follow_logs(record.job_id) if options.follow else [jobs.logs(record.job_id)]
    else:
        has_ended = lambda: _is_final(find_run(_where(options), options.run).state)  # noqa: E731
        pieces = log_pieces(record.run_dir, has_ended if options.follow else None)
    for piece in pieces:
        print(piece, end="", flush=True)
    return DONE


def scale(options: argparse.Namespace) -> int:
    from metta_ray.service.run_config import parse_workers

    parse_workers(options.workers)  # refused here before a connection is made
    with _handle(options) as handle:
        return _say(handle.scale(options.workers))


def set_value(options: argparse.Namespace) -> int:
    name = options.name.lstrip("-").replace("-", "_")
    with _handle(options) as handle:
        return _say(handle.set(name, options.value))


def stop(options: argparse.Namespace) -> int:
    from metta_ray.service.connection import recorded
    from metta_ray.service.stopping import force_stop, stop_run

    record = recorded(_where(options), options.run)
    if record is not None and _has_no_coordinator_yet(record):
        _stop_job(options)
        return _say({"message": f"job {record.job_id} of run {record.name} is asked to stop"})
    if not options.force:
        return _say(stop_run(_where(options), options.run))
    answer = force_stop(_where(options), options.run)
    _stop_job(options)
    return _say(answer)


def runs(options: argparse.Namespace) -> int:
    from metta_ray.metrics.run_tables import print_runs
    from metta_ray.service.connection import records

    known = [record.to_json() for record in records(_where(options))]
    if options.json:
        print(json.dumps(known))
    elif known:
        print_runs(known, time.time(), sys.stdout)
    else:
        print(f"no runs in {_where(options).store_url}")
    return DONE


def copy_state(options: argparse.Namespace) -> int:
    from metta_ray.service.connection import stores_of_copy
    from metta_ray.state.copying import copy_runs

    is_whole = True
    with stores_of_copy(options.source, options.target) as (source, target):
        for copied in copy_runs(source, target, lambda record: _is_final(record.state)):
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


def audit(options: argparse.Namespace) -> int:
    from metta_ray.metrics.run_tables import print_ledger, print_worker_totals
    from metta_ray.service.audit import audit_run
    from metta_ray.service.connection import find_run

    result = audit_run(find_run(_where(options), options.run).run_dir)
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


def evaluate(options: argparse.Namespace) -> int:
    only_here = (options.against, options.npc, options.stats_db, options.replay_dir, options.json, options.time_limit)
    is_for_here = options.here or len(options.policies) > 1 or any(value is not None for value in only_here)
    if not is_for_here and _is_live_run(options, options.policies[0]):
        return _evaluate_run(options)
    return _evaluate_here(options)


def _is_live_run(options: argparse.Namespace, name: str) -> bool:
    from metta_ray.service.connection import recorded

    record = recorded(_where(options), name)
    return record is not None and not _is_final(record.state)


def _evaluate_run(options: argparse.Namespace) -> int:
    options.run = options.policies[0]
    with _handle(options) as handle:
        answer = handle.evaluate(options.suite or "", options.epoch, options.episodes, options.seed)
        if not answer.get("ok") or not options.wait:
            return _say(answer)
        print(answer["message"], file=sys.stderr)
        ended = handle.await_evaluation(answer["number"])
    if ended.get("state") != "done":
        return _say({"ok": False, "message": ended.get("reason") or ended.get("message")})
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


def evaluations(options: argparse.Namespace) -> int:
    from metta_ray.metrics.run_tables import print_evaluations

    known = _status(options)
    if options.json:
        print(json.dumps({"best": known.get("best"), **(known.get("evaluations") or {})}))
    else:
        print_evaluations(known, time.time(), sys.stdout)
    return DONE


def curriculum(options: argparse.Namespace) -> int:
    from metta_ray.metrics.run_tables import print_curriculum
    from metta_ray.service.connection import find_run
    from metta_ray.service.curriculum_rows import task_table_of_journal

    if _is_live_run(options, options.run):
        with _handle(options) as handle:
            answer = handle.curriculum()
    else:
        record = find_run(_where(options), options.run)
        answer = task_table_of_journal(record.run_dir, record.config)
    if not answer["ok"]:
        return _say(answer)
    if options.json:
        print(json.dumps(answer))
    else:
        print_curriculum(answer, sys.stdout)
    return DONE


def report(options: argparse.Namespace) -> int:
    from metta_ray.report.commands import show_report
    from metta_ray.report.find_run import find_run
    from metta_ray.service.run_config import data_place

    data_dir = data_place(options.data_dir, os.environ)
    print(show_report([find_run(run, data_dir, _where(options)) for run in options.runs], out=options.out))
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


def _simple(method: str) -> Callable[[argparse.Namespace], int]:
    """A command that is one call without arguments."""

    def command(options: argparse.Namespace) -> int:
        with _handle(options) as handle:
            return _say(getattr(handle, method)())

    return command


# --- parts -------------------------------------------------------------------------------------------------


def _where(options: argparse.Namespace) -> Where:
    from metta_ray.service.connection import Where

    return Where.of(options.data_dir, options.state_url, options.address, os.environ)


@contextmanager
def _handle(options: argparse.Namespace) -> Iterator[RunHandle]:
    from metta_ray.service.connection import connected

    with connected(_where(options), options.run) as handle:
        yield handle


def _status(options: argparse.Namespace) -> dict[str, Any]:
    """A live run answers for itself; of one that has ended the record is all there is."""
    from metta_ray.service.connection import record_as_status, recorded

    record = recorded(_where(options), options.run)
    if record is not None and _has_no_coordinator_yet(record):
        record = _refreshed(options, record)
        return record_as_status(record)
    if record is not None and _is_final(record.state):
        return record_as_status(record)
    with _handle(options) as handle:
        return handle.status()


def _print_status(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(answer), flush=True)
        return
    from metta_ray.metrics.run_tables import print_status

    print_status(answer, sys.stdout)


def _say(answer: dict[str, Any]) -> int:
    """What a command came to: its message, as an error where it was refused."""
    if answer.get("ok", True):
        print(answer.get("message") or "done")
        return DONE
    print(f"error: {answer.get('message') or 'refused'}", file=sys.stderr)
    return FAILED


def _has_no_coordinator_yet(record: RunRecord) -> bool:
    """Submitted, and not yet heard of: only the job can be asked."""
    return bool(record.job_id and record.dashboard_url and not record.ray_address) and not _is_final(record.state)


def _refreshed(options: argparse.Namespace, record: RunRecord) -> RunRecord:
    from metta_ray.jobs.client import Jobs, refreshed
    from metta_ray.service.connection import put_record

    newer = refreshed(record, Jobs.at(str(record.dashboard_url)), now=time.time())
    put_record(_where(options), newer)
    return newer


def _stop_job(options: argparse.Namespace) -> None:
    """A job whose coordinator was killed would start it again."""
    from metta_ray.common.errors import RunUnreachableError
    from metta_ray.jobs.client import Jobs
    from metta_ray.service.connection import recorded

    record = recorded(_where(options), options.run)
    if record is None or not record.job_id or not record.dashboard_url:
        return
    try:
        Jobs.at(record.dashboard_url).stop(record.job_id)
    except RunUnreachableError as error:
        print(f"warning: job {record.job_id} could not be stopped: {error}", file=sys.stderr)


def _run_state(value: str) -> RunState:
    from metta_ray.control.run_state import RunState

    return RunState(value)


def _is_final(state: str) -> bool:
    return _run_state(state).is_final


def _names_data_dir(file: str | None, overrides: dict[str, str]) -> bool:
    from metta_ray.service.run_config import load_run_config

    return load_run_config(file, overrides).data_dir is not None or "DATA_DIR" in os.environ


def _data_dir_words(config: RunConfig) -> str:
    """Words that the other commands need to find a run that is not kept in the usual place."""
    from metta_ray.service.run_config import data_place

    usual = data_place(None, os.environ)
    return "" if config.data_dir == usual else f" --data-dir {config.data_dir}"


def _record_of_job(config: RunConfig, job: str, jobs: Jobs) -> RunRecord:
    from metta_ray.service.identity import namespace_of
    from metta_ray.state.records import RunRecord

    assert config.run is not None
    now = time.time()
    return RunRecord(
        name=config.run,
        run_dir=f"{config.data_dir}/{config.run}",
        state="starting",
        generation=0,
        started=now,
        updated=now,
        ray_address=None if "://" in jobs.address else jobs.address,
        dashboard_url=jobs.dashboard_url,
        namespace=namespace_of(config.run),
        job_id=job,
        total_timesteps=config.trainer.total_timesteps,
        message="submitted",
        config=config.record(),
    )
