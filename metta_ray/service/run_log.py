"""The log of a run: ``run.log`` in its directory, which the coordinator writes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from metta_ray.common.errors import RunUnknownError

LOG_FILE = "run.log"
INTERVAL_S = 0.5


def keep_log(run_dir: str | Path) -> logging.Handler:
    """From now on this process's log lines go to the run's log too; whoever takes over appends. Close it when done."""
    handler = logging.FileHandler(Path(run_dir) / LOG_FILE, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger("metta_ray").addHandler(handler)
    return handler


def log_pieces(
    run_dir: str | Path, has_ended: Callable[[], bool] | None = None, *, sleep: Callable[[float], None] = time.sleep
) -> Iterator[str]:
    """The log as it is; with ``has_ended`` also what is added to it until that is true.

    RunUnknownError if there is none, as on a machine that does not have the run's directory.
    """
    path = Path(run_dir) / LOG_FILE
    try:
        file = path.open(errors="replace")
    except OSError as error:
        raise RunUnknownError(
            f"the log {path} cannot be read: {error.strerror}; it lies where the coordinator runs, and the Ray "
            "dashboard shows it too"
        ) from None
    with file:
        while True:
            is_last = has_ended is None or has_ended()
            yield file.read()
            if is_last:
                return
            sleep(INTERVAL_S)
