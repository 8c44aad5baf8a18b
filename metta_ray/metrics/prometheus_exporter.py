"""Metrics of a training without Ray, at http://localhost:PORT/metrics: ``run.py --metrics-port 0``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from metta_ray.common.errors import ConfigError
from metta_ray.metrics import catalog, samples
from metta_ray.metrics.catalog import COMMON_LABELS, Metric
from metta_ray.metrics.sink import Sample, Sink, Tags

ROLE = "trainer"
_ACTIVITIES = {"environment": "environments", "other": catalog.OTHER}


class PrometheusSink(Sink):
    """Keeps the newest of every sample in a registry of its own."""

    def __init__(self, run: str, role: str) -> None:
        super().__init__()
        self.registry = CollectorRegistry()
        self._common = {"run": run, "role": role}
        self._made: dict[str, Any] = {}

    def _set(self, metric: Metric, value: float, tags: Tags) -> None:
        self._child(metric, tags).set(value)

    def _add(self, metric: Metric, value: float, tags: Tags) -> None:
        self._child(metric, tags).inc(value)

    def _observe(self, metric: Metric, value: float, tags: Tags) -> None:
        self._child(metric, tags).observe(value)

    def _child(self, metric: Metric, tags: Tags) -> Any:
        made = self._made.get(metric.name)
        if made is None:
            labels = (*COMMON_LABELS, *metric.labels)
            options: dict[str, Any] = {"registry": self.registry}
            if metric.kind == "histogram":
                made = Histogram(metric.name, metric.meaning, labels, buckets=metric.buckets, **options)
            else:
                made = (Gauge if metric.kind == "gauge" else Counter)(metric.name, metric.meaning, labels, **options)
            self._made[metric.name] = made
        return made.labels(**self._common, **tags)


class PrometheusTracker:
    """A tracker of ``MetricsLog``. port 0: a free one; ``port`` is the one taken, which ``say`` is told.

    ConfigError where the port is taken.
    """

    def __init__(self, run: str, total_timesteps: int, port: int, say: Callable[[str], None] = print) -> None:
        self._sink = PrometheusSink(run, ROLE)
        self._total_timesteps = total_timesteps
        self._agent_step: int | None = None
        self._seen_tasks: set[str] = set()
        self._trained = 0
        self._process = psutil.Process()
        self._sink.declare_counters([catalog.STEPS_TRAINED, catalog.CPU_SECONDS, catalog.METRICS_CPU])
        self._sink.put([Sample(catalog.RUN_START_TIME, time.time()), *_state("starting")])
        try:
            self._server, self._thread = start_http_server(port, "127.0.0.1", self._sink.registry)
        except OSError as error:
            raise ConfigError(f"metrics_port={port}: {error.strerror or error}; 0 takes a free one") from None
        self.port = int(self._server.server_port)
        say(f"metrics: http://127.0.0.1:{self.port}/metrics")

    def log(self, epoch: int, agent_step: int, line: Mapping[str, float]) -> None:
        """One line of ``metrics.jsonl``."""
        self._trained += agent_step - self._agent_step if self._agent_step is not None else 0
        self._agent_step = agent_step
        self._sink.put(self._samples(epoch, agent_step, line))
        self._sink.put_own_cost()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _samples(self, epoch: int, agent_step: int, line: Mapping[str, float]) -> Iterator[Sample]:
        record = {
            "epoch": epoch,
            "agent_steps_per_second": line.get("agent_steps_per_second"),
            "efficiency": line.get("efficiency"),
            "epoch_seconds": line.get("epoch_seconds"),
            "reward": line.get("env_episode/return"),
            "losses": _below("losses/", line),
            "hyperparameters": _below("hyperparameters/", line),
            "metrics": line,
        }
        self._seen_tasks |= samples.tasks_in(record)
        yield from samples.of_epoch(record)
        yield from _state("running")
        yield Sample(catalog.STEPS_TRAINED, self._trained)
        yield Sample(catalog.PROGRESS_STEPS, agent_step)
        yield Sample(catalog.PROGRESS_TARGET, self._total_timesteps)
        for name, share in _below("share/", line).items():
            yield Sample(catalog.TIME_SHARE, share, {"part": ROLE, "activity": _ACTIVITIES.get(name, name)})
        cpu = self._process.cpu_times()
        yield Sample(catalog.CPU_SECONDS, cpu.user + cpu.system)
        yield Sample(catalog.RESIDENT_BYTES, self._process.memory_info().rss, {"of": ROLE})


def _state(state: str) -> Iterator[Sample]:
    for possible in catalog.RUN_STATE.labels["state"]:
        yield Sample(catalog.RUN_STATE, float(possible == state), {"state": possible})


def _below(prefix: str, line: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in line.items() if name.startswith(prefix)}
