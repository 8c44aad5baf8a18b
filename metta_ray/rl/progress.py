"""What a person sees of a training: one understandable line per epoch, and the same numbers in a file."""

from __future__ import annotations

import json
import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metta_ray.common.profiling.stopwatch import Stopwatch
from metta_ray.common.util import fs
from metta_ray.common.util.ranks import is_master
from metta_ray.rl.trackers import Tracker

logger = logging.getLogger(__name__)

PHASES = {"environment": "_rollout.env", "inference": "_rollout.inference", "training": "_train"}
BAR_WIDTH = 20
EPISODES = 50


class MetricsLog:
    """Appends one JSON object per epoch to ``metrics.jsonl`` of a run, and tells the trackers.

    Only rank 0 writes. On resume, ``keep_until_epoch`` drops lines of epochs that were trained but not saved before
    the stop. A tracker that fails is a warning each time it begins to.
    """

    def __init__(
        self, run_dir: str | Path, *, keep_until_epoch: int | None = None, trackers: Sequence[Tracker] = ()
    ) -> None:
        self.path = Path(run_dir) / "metrics.jsonl"
        self._is_master = is_master()
        self._trackers = tuple(trackers)
        self._failing: set[int] = set()
        if not self._is_master:
            return
        if keep_until_epoch is not None and self.path.exists():
            kept = [line for line in self.path.read_text().splitlines() if _epoch_of(line) <= keep_until_epoch]
            fs.atomic_write_text(self.path, "".join(f"{line}\n" for line in kept))

    def write(
        self,
        epoch: int,
        agent_step: int,
        speed: Mapping[str, float | None],
        metrics: Mapping[str, Any],
        *,
        losses: Mapping[str, float],
        hyperparameters: Mapping[str, float],
    ) -> None:
        """One line; only numbers are kept."""
        if not self._is_master:
            return
        values = {"epoch": epoch, "agent_step": agent_step, **speed}
        values |= {f"losses/{name}": value for name, value in losses.items()}
        values |= {f"hyperparameters/{name}": value for name, value in hyperparameters.items()}
        values |= metrics
        line = {name: value for name, value in values.items() if isinstance(value, int | float)}
        with self.path.open("a") as file:
            file.write(json.dumps({name: _finite(value) for name, value in line.items()}) + "\n")
        for number, tracker in enumerate(self._trackers):
            try:
                tracker.log(epoch, agent_step, line)
                self._failing.discard(number)
            except Exception as error:
                if number not in self._failing:
                    logger.warning("%s lacks epoch %d: %s", type(tracker).__name__, epoch, error)
                self._failing.add(number)

    def close(self) -> None:
        for tracker in self._trackers:
            try:
                tracker.close()
            except Exception as error:
                logger.warning("%s was not closed: %s", type(tracker).__name__, error)


def _finite(value: float) -> float | None:
    """JSON knows no NaN and no infinity."""
    return value if math.isfinite(value) else None


class EpochProgress:
    """Times one epoch after another and describes it.

    Shares are of the epoch's wall time; what is not environment, inference or training is ``other``.
    """

    def __init__(self, timer: Stopwatch, total_timesteps: int):
        self._timer = timer
        self._total = total_timesteps
        self._rewards: deque[float] = deque(maxlen=EPISODES)
        self._lap = self._elapsed()

    def lap(self, agent_steps: int) -> dict[str, float]:
        """``agent_steps_per_second`` and the share of each phase since the last call."""
        now = self._elapsed()
        seconds = {name: now[name] - self._lap[name] for name in now}
        self._lap = now
        wall = max(seconds.pop("wall"), 1e-9)
        shares = {f"share/{name}": spent / wall for name, spent in seconds.items()}
        shares["share/other"] = max(0.0, 1.0 - sum(shares.values()))
        return {"agent_steps_per_second": agent_steps / wall, "epoch_seconds": wall, **shares}

    def line(self, epoch: int, agent_step: int, rewards: Sequence[float], lap: dict[str, float]) -> str:
        """The line to print: ``[###····]  31% epoch 12 · 196,608 agent steps · 15,210/s · reward 3.20 · …``.

        rewards: one per episode that ended in this epoch. An epoch may see very few, so the mean of the last
        ``EPISODES`` is shown.
        """
        self._rewards.extend(rewards)
        done = min(1.0, agent_step / self._total)
        bar = "#" * round(done * BAR_WIDTH)
        shares = " ".join(f"{name} {lap[f'share/{name}']:.0%}" for name in PHASES)
        reward = f"{sum(self._rewards) / len(self._rewards):.2f}" if self._rewards else "– (no episode ended yet)"
        return (
            f"[{bar:·<{BAR_WIDTH}}] {done:4.0%} epoch {epoch} · {agent_step:,} agent steps · "
            f"{lap['agent_steps_per_second']:,.0f}/s · reward {reward} · {shares}"
        )

    def state_dict(self) -> dict[str, Any]:
        """Of the running mean; times belong to the stopwatch."""
        return {"returns": list(self._rewards)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._rewards = deque(state["returns"], maxlen=EPISODES)

    def _elapsed(self) -> dict[str, float]:
        phases = {name: self._timer.get_elapsed(timer) for name, timer in PHASES.items()}
        return {**phases, "wall": self._timer.get_elapsed()}


def _epoch_of(line: str) -> float:
    try:
        return int(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # the writer died in the middle of the line
