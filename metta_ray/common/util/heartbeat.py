"""A sign of life in a file, and a watcher that ends a process group without one.

record_heartbeat(path)                                                         # in the training loop
python -m metta_ray.common.util.heartbeat PATH --pid PID --timeout-s 600      # beside it, on every node
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)


def record_heartbeat(path: Path | str | None) -> None:
    """Writes the present time; None writes nothing. A full or missing disk is a warning, not an end."""
    if path is None:
        return
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(str(time.time()))
    except OSError as error:
        logger.warning("heartbeat %s cannot be written: %s", path, error)


class HeartbeatWatch:
    """Ends the process group of ``pid`` when ``path`` has not been written for ``timeout_s``.

    on_stale: called first with the age in seconds, e.g. to raise an alarm.
    """

    def __init__(
        self,
        path: Path | str,
        pid: int,
        timeout_s: float = 600.0,
        check_every_s: float = 60.0,
        grace_s: float = 10.0,
        on_stale: Callable[[float], None] | None = None,
    ) -> None:
        self.path = Path(path)
        self.pid = pid
        self.timeout_s = timeout_s
        self.check_every_s = check_every_s
        self.grace_s = grace_s
        self.on_stale = on_stale
        self._watching_since_s = time.time()

    def run(self) -> bool:
        """Watches until the process is gone. True if it had to be ended."""
        while _is_running(self.pid):
            age = self.age_s()
            if age > self.timeout_s:
                logger.error("no heartbeat in %s for %.0f s: ending process %d", self.path, age, self.pid)
                if self.on_stale is not None:
                    self.on_stale(age)
                self._end_process_group()
                return True
            time.sleep(self.check_every_s)
        return False

    def age_s(self) -> float:
        """Seconds since the last sign of life; before the first one, since watching began."""
        try:
            last = self.path.stat().st_mtime
        except FileNotFoundError:
            last = self._watching_since_s
        return time.time() - max(last, self._watching_since_s)

    def _end_process_group(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(os.getpgid(self.pid), number)
            except ProcessLookupError:
                return
            deadline = time.monotonic() + self.grace_s
            while time.monotonic() < deadline and _is_running(self.pid):
                time.sleep(0.05)


def _is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description="end a process group whose heartbeat stops")
    parser.add_argument("path", help="file that record_heartbeat writes")
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument("--timeout-s", type=float, default=600.0)
    parser.add_argument("--check-every-s", type=float, default=60.0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    watch = HeartbeatWatch(arguments.path, arguments.pid, arguments.timeout_s, arguments.check_every_s)
    raise SystemExit(1 if watch.run() else 0)


if __name__ == "__main__":
    main()
