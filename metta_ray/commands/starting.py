"""Commands that start a run, or compute what one would reach: train, submit, plan. They take any setting as a word."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from metta_ray.commands.parts import DONE, Plain

if TYPE_CHECKING:
    from metta_ray.commands.parts import Commands
    from metta_ray.service.run_config import RunConfig

FLAGS = ("new", "detach", "dry_run")
SETTINGS_HELP = """\
Every setting has a dotted name: --trainer.ppo.clip-coef 0.2, --rollout.num-workers 4, --pacing.target-staleness 0.
FILE is YAML with the same names; it changes a preset (--preset), and words of the command line change it.
Short: --env, --workers 8 or 2:16, --seed, --total-timesteps, --data-dir, --state. --dry-run prints all settings.
Examples: deploy/runs/*.yaml."""


def add_to(commands: Commands) -> None:
    """For --help; what they take otherwise argparse cannot know, see ``settings_command``."""
    for name, text in (("train", "train here, or on the cluster of --address"), ("submit", "train as a Ray job")):
        command = commands.add_parser(name, help=text, epilog=SETTINGS_HELP, formatter_class=Plain)
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
        formatter_class=Plain,
    )
    command.add_argument("file", nargs="?", metavar="FILE", help="run configuration, YAML")
    command.add_argument("--workers", metavar="N", help="rollout workers")
    command.add_argument("--replicas", metavar="M", help="learner replicas")
    command.add_argument("--cores", metavar="C", help="that all of them share; otherwise each has a core of its own")
    command.add_argument("--measured", metavar="FILE", help="service times, JSON; otherwise those of this machine")


def has_settings(words: Sequence[str]) -> bool:
    """Whether these are words of a command that takes settings."""
    return bool(words) and words[0] in ("train", "submit", "plan") and not {"-h", "--help"} & set(words)


def settings_command(words: list[str]) -> Callable[[], int]:
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

    from metta_ray.commands.submitted import record_of_job
    from metta_ray.jobs.client import Jobs
    from metta_ray.service.connection import Where, put_record

    jobs = Jobs.at(str(address))
    job = jobs.submit(plan)
    where = Where.of(config.data_dir, config.state.url, None, {})
    put_record(where, record_of_job(config, job, jobs))
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


def _config(file: str | None, overrides: dict[str, str]) -> RunConfig:
    from metta_ray.service.run_config import load_run_config, located

    return located(load_run_config(file, overrides), os.environ)


def _names_data_dir(file: str | None, overrides: dict[str, str]) -> bool:
    from metta_ray.service.run_config import load_run_config

    return load_run_config(file, overrides).data_dir is not None or "DATA_DIR" in os.environ


def _data_dir_words(config: RunConfig) -> str:
    """Words that the other commands need to find a run that is not kept in the usual place."""
    from metta_ray.service.run_config import data_place

    usual = data_place(None, os.environ)
    return "" if config.data_dir == usual else f" --data-dir {config.data_dir}"
