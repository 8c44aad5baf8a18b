"""Commands that a live run obeys: attach, scale, pause, unpause, checkpoint, set, stop."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from metta_ray.commands.parts import (
    INTERRUPTED,
    Command,
    add_command_of_run,
    handle_of,
    is_final,
    run_state,
    say,
    where_of,
)
from metta_ray.commands.submitted import has_no_coordinator_yet, stop_job

if TYPE_CHECKING:
    from metta_ray.commands.parts import Commands


def add_to(commands: Commands) -> None:
    add_command_of_run(commands, "attach", attach, "watch a run until it ends; Ctrl-C leaves it running")
    one = add_command_of_run(commands, "scale", scale, "change the number of rollout workers")
    one.add_argument("--workers", required=True, metavar="N|MIN:MAX", help="8, or 2:16 for an automatic number")
    add_command_of_run(commands, "pause", _simple("pause"), "collect no more until unpause")
    add_command_of_run(commands, "unpause", _simple("unpause"), "go on after pause")
    text = "save everything that is needed to resume, now"
    add_command_of_run(commands, "checkpoint", _simple("checkpoint"), text)
    text = "change a setting of a live run; it is kept when the run is resumed"
    one = add_command_of_run(commands, "set", set_value, text)
    one.add_argument("name", metavar="KEY", help="e.g. trainer.optimizer.learning_rate")
    one.add_argument("value", metavar="VALUE")
    one = add_command_of_run(commands, "stop", stop, "drain, save and end a run")
    one.add_argument("--force", action="store_true", help="kill what is left of a run whose coordinator is gone")


def attach(options: argparse.Namespace) -> int:
    from metta_ray.common.errors import RunUnreachableError
    from metta_ray.metrics.console import training_display
    from metta_ray.service.connection import recorded
    from metta_ray.service.following import EXIT_CODES, follow

    where = where_of(options)
    try:
        with handle_of(options) as handle, training_display(sys.stdout) as display:
            return follow(handle, display)
    except KeyboardInterrupt:
        print(f"run {options.run} goes on; to end it: metta-ray stop {options.run}", file=sys.stderr)
        return INTERRUPTED
    except RunUnreachableError:
        record = recorded(where, options.run)
        if record is None or not is_final(record.state):
            raise
        print(f"run {record.name}: {record.state}" + (f", {record.message}" if record.message else ""))
        return EXIT_CODES[run_state(record.state)]


def scale(options: argparse.Namespace) -> int:
    from metta_ray.service.run_config import parse_workers

    parse_workers(options.workers)  # refused here before a connection is made
    with handle_of(options) as handle:
        return say(handle.scale(options.workers))


def set_value(options: argparse.Namespace) -> int:
    name = options.name.lstrip("-").replace("-", "_")
    with handle_of(options) as handle:
        return say(handle.set(name, options.value))


def stop(options: argparse.Namespace) -> int:
    from metta_ray.service.connection import recorded
    from metta_ray.service.stopping import force_stop, stop_run

    record = recorded(where_of(options), options.run)
    if record is not None and has_no_coordinator_yet(record):
        stop_job(options)
        return say({"message": f"job {record.job_id} of run {record.name} is asked to stop"})
    if not options.force:
        return say(stop_run(where_of(options), options.run))
    answer = force_stop(where_of(options), options.run)
    stop_job(options)
    return say(answer)


def _simple(method: str) -> Command:
    """A command that is one call without arguments."""

    def command(options: argparse.Namespace) -> int:
        with handle_of(options) as handle:
            return say(getattr(handle, method)())

    return command
