"""A Ray that a benchmark starts for itself, in a process and session of its own, and ends with everything in it.

in_own_ray("metta_ray.bench.transport_bench:measure", {"megabytes": [6]}, num_cpus=2)
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from metta_ray.common.errors import UsageError

TIMEOUT_S = 600.0


def in_own_ray(function: str, arguments: Mapping[str, Any], *, num_cpus: int, timeout_s: float = TIMEOUT_S) -> Any:
    """What ``module:function(**arguments)`` returns (JSON values) on a fresh Ray. UsageError with what it printed
    where it fails."""
    with tempfile.TemporaryDirectory() as directory:
        task, answer = Path(directory) / "task.json", Path(directory) / "answer.json"
        task.write_text(json.dumps([function, dict(arguments), num_cpus, str(answer)]))
        environment = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"} | dict(os.environ)
        process = subprocess.Popen(
            [sys.executable, "-m", "metta_ray.bench.own_ray", str(task)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise UsageError(f"{function} did not end within {timeout_s:.0f} s") from None
        finally:
            end_session(process.pid)
        if not answer.exists():
            raise UsageError(f"{function} failed:\n{output.decode(errors='replace')[-2000:]}")
        return json.loads(answer.read_text())


def main(task: str) -> None:
    import ray

    function, arguments, num_cpus, answer = json.loads(Path(task).read_text())
    module, _, name = function.partition(":")
    ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False)
    try:
        result = getattr(importlib.import_module(module), name)(**arguments)
    finally:
        ray.shutdown()
    Path(answer).write_text(json.dumps(result))


def end_session(session: int) -> None:
    """Kills every process of a session that a benchmark started."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == session:
                process.send_signal(signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1])
