"""What the commands share: exit codes, options that many have, the run that is meant, and how an answer is told."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from metta_ray.control.run_state import RunState
    from metta_ray.service.connection import Where
    from metta_ray.service.run_handle import RunHandle

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

DONE, BAD_INPUT, FAILED, INTERRUPTED = 0, 2, 3, 130
DATA_DIR_HELP = "where runs are kept, a directory or s3://…; default $DATA_DIR or ./train_dir"
Plain = argparse.RawDescriptionHelpFormatter
Command = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """Refuses in one line, as everything else here does."""

    def error(self, message: str) -> NoReturn:
        from metta_ray.common.errors import ConfigError

        raise ConfigError(f"{message}; see {self.prog} --help")


def add_command_of_run(commands: Commands, name: str, command: Command, text: str) -> argparse.ArgumentParser:
    """A command about one run, ``metta-ray NAME RUN``."""
    added = commands.add_parser(name, help=text, description=text)
    added.add_argument("run", metavar="RUN", help="name of the run")
    add_places(added)
    added.set_defaults(command=command)
    return added


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for programs")


def add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", metavar="DIR", help=DATA_DIR_HELP)
    parser.add_argument(
        "--state",
        "--state-url",
        dest="state_url",
        metavar="URL",
        help="store of runs; default $METTA_RAY_STATE or runs.sqlite in the data directory",
    )
    parser.add_argument("--address", metavar="HOST:PORT", help="cluster to look in; default RAY_ADDRESS")


def where_of(options: argparse.Namespace) -> Where:
    from metta_ray.service.connection import Where

    return Where.of(options.data_dir, options.state_url, options.address, os.environ)


@contextmanager
def handle_of(options: argparse.Namespace) -> Iterator[RunHandle]:
    from metta_ray.service.connection import connected

    with connected(where_of(options), options.run) as handle:
        yield handle


def is_live_run(options: argparse.Namespace, name: str) -> bool:
    from metta_ray.service.connection import recorded

    record = recorded(where_of(options), name)
    return record is not None and not is_final(record.state)


def say(answer: dict[str, Any]) -> int:
    """What a command came to: its message, as an error where it was refused."""
    if answer.get("ok", True):
        print(answer.get("message") or "done")
        return DONE
    print(f"error: {answer.get('message') or 'refused'}", file=sys.stderr)
    return FAILED


def run_state(value: str) -> RunState:
    from metta_ray.control.run_state import RunState

    return RunState(value)


def is_final(state: str) -> bool:
    return run_state(state).is_final
