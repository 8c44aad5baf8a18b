"""What an evaluation on another core costs training: nothing, if the two share no more than the machine's memory.

The library's loop trains, pinned to one core; the service's evaluator plays a stored policy, pinned to another. Epochs
are timed one by one, in pairs: one of each while the evaluator plays and while it is stopped (SIGSTOP), in changing
order, so that a machine which changes its speed meets both alike. The policies of training and evaluation differ.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import Any, TextIO

import numpy as np
import psutil

from metta_ray.bench.machine import describe_machine
from metta_ray.bench.train_bench import BATCH, NETWORKS, check_name
from metta_ray.common.errors import UsageError

MINIBATCH = 1024
FEWEST_PAIRS = 4
RESAMPLES = 2000
END_S = 20.0


@dataclass(frozen=True)
class Pair:
    """Agent steps per second of two epochs, one after the other. busy: share of its core that the evaluator had."""

    alone: float
    beside: float
    busy: float


def run(seconds: float, network: str = "light") -> dict[str, Any]:
    """UsageError with fewer than two cores, an unknown network, or where one of the two processes ends early."""
    check_name("network", network, NETWORKS)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) < 2:
        raise UsageError(f"this process may use cores {cores}; pinning training and evaluation apart needs two")
    with tempfile.TemporaryDirectory() as directory:
        evaluator = _Child(cores[1], "evaluate", network, directory)
        trainer = _Child(cores[0], "train", network, str(seconds))
        try:
            evaluator.answer()  # its first evaluation is done: everything is loaded
            pairs = _measure(trainer, evaluator)
        finally:
            trainer.end()
            evaluator.end()
    return {"machine": describe_machine(), "network": network, "cores": cores[:2], **summary(pairs)}


def summary(pairs: list[Pair]) -> dict[str, Any]:
    """Medians, and the ratio within pairs with the 95 % interval of its median (bootstrap over pairs)."""
    ratios = np.array([pair.beside / pair.alone for pair in pairs])
    drawn = np.random.default_rng(0).choice(ratios, (RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return {
        "pairs": len(pairs),
        "alone": round(float(np.median([pair.alone for pair in pairs]))),
        "beside": round(float(np.median([pair.beside for pair in pairs]))),
        "ratio": float(np.median(ratios)),
        "low": float(low),
        "high": float(high),
        "evaluator_busy": float(np.mean([pair.busy for pair in pairs])),
    }


def report(result: dict[str, Any]) -> str:
    machine = result["machine"]
    return "\n".join(
        [
            f"{machine['processor']}, {machine['cores']} cores, load {machine['load_average_1m']}; {result['network']} "
            f"network, batch {BATCH:,}, minibatch {MINIBATCH:,}; training on core {result['cores'][0]}, evaluation on "
            f"core {result['cores'][1]}, busy {result['evaluator_busy']:.0%} of the time",
            f"{'alone':<26}{result['alone']:>10,} agent steps/s, median of {result['pairs']} epochs",
            f"{'beside an evaluation':<26}{result['beside']:>10,}",
            f"{'ratio within pairs':<26}{result['ratio']:>10.3f} [{result['low']:.3f}, {result['high']:.3f}]",
        ]
    )


def _measure(trainer: _Child, evaluator: _Child) -> list[Pair]:
    pairs: list[Pair] = []
    rates: dict[bool, float] = {}
    while True:
        is_first_beside = len(pairs) % 2 == 1
        for is_beside in (is_first_beside, not is_first_beside):
            evaluator.process.send_signal(signal.SIGCONT if is_beside else signal.SIGSTOP)
            worked = evaluator.cpu_seconds()
            answer = trainer.ask()
            if answer is None:
                if len(pairs) < FEWEST_PAIRS:
                    raise UsageError(f"{len(pairs)} pairs of epochs are too few to compare; give more --seconds")
                return pairs
            steps, took = answer
            rates[is_beside] = steps / took
            if is_beside:
                busy = (evaluator.cpu_seconds() - worked) / took
        pairs.append(Pair(rates[False], rates[True], busy))


class _Child:
    """A process on one core that answers each line with one."""

    def __init__(self, core: int, *words: str) -> None:
        self._name = words[0]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "metta_ray.bench.evaluation_children", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
        self._process = psutil.Process(self.process.pid)

    def ask(self) -> tuple[float, float] | None:
        """(agent steps, seconds) of the trainer's next epoch; None when its time is over."""
        stdin: TextIO = self.process.stdin  # type: ignore[assignment]
        stdin.write("\n")
        stdin.flush()
        words = self.answer().split()
        return (float(words[0]), float(words[1])) if len(words) == 2 else None

    def answer(self) -> str:
        """UsageError if the process has ended."""
        stdout: TextIO = self.process.stdout  # type: ignore[assignment]
        line = stdout.readline()
        if not line:
            raise UsageError(f"the process that should {self._name} ended with code {self.process.wait()}")
        return line

    def cpu_seconds(self) -> float:
        used = self._process.cpu_times()
        return used.user + used.system

    def end(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=END_S)
