"""What happened since the last update: gathered from headers and results, told as one record per epoch."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from metta_ray.control.bottleneck import Bottleneck, EpochTimes, verdict
from metta_ray.rl.fragment import FragmentHeader
from metta_ray.rl.stats import process_training_stats
from metta_ray.service.layout import Speed
from metta_ray.service.orders import Staged, UpdateResult

BOTTLENECK_EPOCHS = 5
"""The verdict looks at so many epochs: a single one may hold half a fragment's work."""


class EpochGatherer:
    """Sums between two commits. Its numbers are those of the library's loop under the same names.

    returns: of the last episodes; the books add to it. speed: what the machine could do; None where that is not known.
    """

    def __init__(self, now: float, returns: Sequence[float], speed: Speed | None = None) -> None:
        self._speed = speed
        self._stats: dict[str, list[Any]] = {}
        self._worker_seconds: dict[str, float] = defaultdict(float)
        self._returns = returns
        self._times: deque[EpochTimes] = deque(maxlen=BOTTLENECK_EPOCHS)
        self._learner_seconds: dict[str, float] = defaultdict(float)
        self._last = now
        self._known: set[int] = set()

    def fragment(self, header: FragmentHeader, without_order: float) -> None:
        """without_order: how long nothing was ordered from the worker while it waited; the rest it waited for what
        was on its way, which is transport. What it waited before its first fragment says nothing: the run, or the
        worker, was beginning."""
        for path, values in header.stats.items():
            self._stats.setdefault(path, []).extend(values)
        for name, seconds in header.seconds.items():
            self._worker_seconds[name] += seconds
        waited = header.seconds.get("waiting", 0.0)
        if header.stream in self._known:
            self._worker_seconds["no_ticket"] += min(waited, without_order)
            self._worker_seconds["transport"] += max(0.0, waited - without_order)
        self._known.add(header.stream)

    def staged(self, staged: Sequence[Staged]) -> None:
        for one in staged:
            self._learner_seconds["staging"] += sum(one.seconds.values())

    def restart_clock(self, now: float) -> None:
        """The next epoch is not charged for what was before, nor are workers for having waited."""
        self._last = now
        self._known.clear()

    def finish(
        self,
        now: float,
        results: Sequence[UpdateResult],
        steps: int,
        stalenesses: Sequence[int],
        *,
        num_workers: int,
        useful_workers: int,
        target_staleness: int,
    ) -> dict[str, Any]:
        """The record of the epoch that a commit just ended; gathering begins anew."""
        wall = max(now - self._last, 1e-9)
        leader = results[0]
        training = sum(result.seconds["training"] for result in results)
        # Staging runs beside training; what it delayed shows as the wait for a staged batch.
        staging = min(self._learner_seconds["staging"], sum(result.seconds["waiting"] for result in results))
        self._times.append(
            EpochTimes(
                env_s=self._worker_seconds["environment"],
                inference_s=self._worker_seconds["inference"],
                transport_s=self._worker_seconds["transport"],
                no_ticket_s=self._worker_seconds["no_ticket"],
                training_s=training,
                staging_s=staging,
                no_data_s=max(0.0, wall * len(results) - training - staging),
                num_workers=num_workers,
                useful_workers=useful_workers,
                num_replicas=len(results),
                target_staleness=target_staleness,
            )
        )
        bottleneck = self._with_measured_lever(verdict(_sum_of(self._times)), num_workers, len(results))
        rate = steps / wall
        metrics = process_training_stats(self._stats)
        record = {
            "epoch": leader.version,
            "agent_step": leader.agent_step,
            "epoch_seconds": wall,
            "agent_steps_per_second": rate,
            "efficiency": self._speed.efficiency(rate, num_workers, len(results)) if self._speed else None,
            "reward": sum(self._returns) / len(self._returns) if self._returns else None,
            "staleness": _staleness(stalenesses),
            "bottleneck": bottleneck.text if bottleneck else None,
            "limited_by": bottleneck.name if bottleneck else None,
            "shares": _shares(bottleneck),
            "losses": dict(leader.losses),
            "hyperparameters": dict(leader.hyperparameters),
            "metrics": metrics | dict(leader.metrics),
            "skipped_updates": leader.skipped_updates,
        }
        self._stats, self._last = {}, now
        self._worker_seconds.clear()
        self._learner_seconds.clear()
        return record

    def _with_measured_lever(self, found: Bottleneck | None, workers: int, replicas: int) -> Bottleneck | None:
        """What would gain most is better computed from measured times than read off the shares, where there are any."""
        lever = self._speed.next_lever(workers, replicas) if self._speed else None
        return replace(found, lever=lever) if found and lever else found


def _sum_of(times: Sequence[EpochTimes]) -> EpochTimes:
    newest = times[-1]
    sums = {
        name: sum(getattr(one, name) for one in times)
        for name in ("env_s", "inference_s", "transport_s", "no_ticket_s", "training_s", "staging_s", "no_data_s")
    }
    return EpochTimes(
        **sums,
        num_workers=newest.num_workers,
        useful_workers=newest.useful_workers,
        num_replicas=newest.num_replicas,
        target_staleness=newest.target_staleness,
    )


def _staleness(stalenesses: Sequence[int]) -> dict[str, Any]:
    if not stalenesses:
        return {"mean": 0.0, "max": 0, "histogram": {}}
    histogram = {str(value): count for value, count in sorted(Counter(stalenesses).items())}
    return {"mean": sum(stalenesses) / len(stalenesses), "max": max(stalenesses), "histogram": histogram}


def _shares(bottleneck: Bottleneck | None) -> Mapping[str, float]:
    return dict(bottleneck.shares) if bottleneck else {}
