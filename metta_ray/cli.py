"""The command ``metta-ray``: parse, call, tell what went wrong. What the commands do is in ``metta_ray.commands``; what
takes time to load is loaded inside of the command that needs it.

Exit codes: 0 done, 2 bad input, 3 failed with a cause, 130 interrupted (a training: after a clean checkpoint).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from metta_ray.commands import evaluating, looking, pages, starting, steering, stores
from metta_ray.commands.parts import BAD_INPUT, DONE, FAILED, INTERRUPTED, Command, Parser

__all__ = ["BAD_INPUT", "DONE", "FAILED", "INTERRUPTED", "build_parser", "main"]


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
        command = starting.settings_command(words) if starting.has_settings(words) else _parsed_command(words)
        return command()
    except (ConfigError, RunUnknownError, RunDirectoryInUse) as error:
        return _refuse(error, BAD_INPUT)
    except MettaRayError as error:
        return _refuse(error, FAILED)


def _refuse(error: Exception, code: int) -> int:
    print("error: " + "; ".join(str(error).splitlines()), file=sys.stderr)
    return code


def _parsed_command(words: list[str]) -> Callable[[], int]:
    if words and words[0] == "bench":
        return lambda: _bench(words[1:])
    options = build_parser().parse_args(words)
    command: Command = options.command
    return lambda: command(options)


def _bench(words: list[str]) -> int:
    from metta_ray.bench.__main__ import main as run_benchmark

    return run_benchmark(words)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="metta-ray", description="Train policies on Ray, and look after the runs.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for group in (starting, looking, steering, evaluating, pages, stores):
        group.add_to(commands)
    commands.add_parser("bench", help="benchmarks: metta-ray bench --help", add_help=False)
    return parser
