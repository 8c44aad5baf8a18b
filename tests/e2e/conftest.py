"""Real processes that run ``run.py``, one or several under torchrun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 240.0


@dataclass
class Training:
    """A training in a process of its own, and what it left behind."""

    process: subprocess.Popen[str]
    run_dir: Path

    def wait(self, expect: int | None = 0) -> tuple[str, str]:
        """(stdout, stderr) once it has ended; its exit code must be ``expect``."""
        out, err = self.process.communicate(timeout=TIMEOUT_S)
        assert expect in (None, self.process.returncode), f"exit code {self.process.returncode}\n{out}\n{err}"
        return out, err

    def stop_after_line(self, number: int, signal_number: int = signal.SIGTERM) -> None:
        """Sends a signal when ``metrics.jsonl`` has so many lines."""
        deadline = time.monotonic() + TIMEOUT_S
        while len(self.metrics()) < number:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        self.process.send_signal(signal_number)

    def metrics(self) -> list[dict[str, Any]]:
        path = self.run_dir / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.run_dir / "checkpoints").glob("model_*"))


StartTraining = Callable[..., Training]


@pytest.fixture
def start_training(tmp_path: Path) -> Iterator[StartTraining]:
    """``start_training("--preset", …, run="a", ranks=2)``: starts it and returns at once."""
    started: list[Training] = []

    def start(*options: object, run: str = "a", ranks: int = 1, data_dir: Path | None = None) -> Training:
        data_dir = data_dir or tmp_path / "runs"
        launcher = [sys.executable]
        if ranks > 1:
            launcher += ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--rdzv-backend=c10d"]
            launcher += ["--rdzv-endpoint=localhost:0"]
        command = [*launcher, str(ROOT / "run.py"), "--run-name", run, "--data-dir", str(data_dir)]
        process = subprocess.Popen(
            [*command, *map(str, options)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        training = Training(process, data_dir / run)
        started.append(training)
        return training

    yield start
    for training in started:
        if training.process.poll() is None:
            training.process.kill()
        training.process.communicate()
