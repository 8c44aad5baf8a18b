"""A run's metrics through Ray: coordinator and learners export what reached them with headers and results.

Ray's agents take them from there, so that whatever scrapes the nodes of a cluster has them. Nothing of it may end a
run: a failure is logged once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from queue import SimpleQueue
from typing import Any, TypeVar

import psutil
from ray.util import metrics as ray_metrics

from metta_ray.common.util.packed_arrays import PackedArrays
from metta_ray.metrics import catalog, samples
from metta_ray.metrics.catalog import COMMON_LABELS, Metric
from metta_ray.metrics.sink import Sample, Sink, Tags
from metta_ray.service.orders import UpdateResult
from metta_ray.service.run_config import RunConfig

logger = logging.getLogger(__name__)

COUNTED_BY_COORDINATOR = (
    catalog.STEPS_TRAINED,
    catalog.STEPS_ISSUED,
    catalog.STEPS_DROPPED,
    catalog.STEPS_LOST,
    catalog.UPDATES_SKIPPED,
    catalog.UPDATES_REPEATED,
    catalog.WORKERS_STARTED,
    catalog.WORKER_FAILURES,
    catalog.EVALUATOR_FAILURES,
    catalog.RESTARTS,
    catalog.CHECKPOINT_FAILURES,
    catalog.UPLOAD_FAILURES,
    catalog.STORE_ERRORS,
    catalog.CPU_SECONDS,
    catalog.METRICS_CPU,
)
RENEW_S = 1.0
"""A gauge that is not set between two reports of Ray's agent (every 10 s unless told otherwise) has a gap there."""
COUNTED_BY_LEARNER = (catalog.CPU_SECONDS, catalog.METRICS_CPU)

_F = TypeVar("_F", bound=Callable[..., None])


def _never_in_the_way(method: _F) -> _F:
    """Training does not end because nobody can watch it."""

    @wraps(method)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> None:
        if self.has_failed:
            return
        try:
            method(self, *args, **kwargs)
        except Exception:
            self.has_failed = True
            logger.warning("metrics are no longer exported", exc_info=True)

    return guarded  # type: ignore[return-value]


class RaySink(Sink):
    """role: the kind of process that exports.

    Ray forgets a gauge that is not set again and again, however seldom its value changes: ``renew`` does that.
    """

    def __init__(self, run: str, role: str) -> None:
        super().__init__()
        self._common = {"run": run, "role": role}
        self._made: dict[str, Any] = {}
        self._gauges: dict[tuple[str, ...], tuple[float, Metric, float, Tags]] = {}

    def renew(self) -> None:
        """To be called at least every RENEW_S seconds."""
        began = time.thread_time()
        before = time.monotonic() - RENEW_S / 2
        for at, metric, value, tags in list(self._gauges.values()):
            if at < before:
                self._set(metric, value, tags)
        self._cpu_seconds += time.thread_time() - began

    def _set(self, metric: Metric, value: float, tags: Tags) -> None:
        self._of(metric).set(value, tags)
        self._gauges[metric.name, *tags.values()] = (time.monotonic(), metric, value, tags)

    def _add(self, metric: Metric, value: float, tags: Tags) -> None:
        counter = self._of(metric)
        if value > 0:
            counter.inc(value, tags)
        elif hasattr(counter, "_record"):  # inc refuses 0, with which a series has to begin
            counter._record(0.0, tags)

    def _observe(self, metric: Metric, value: float, tags: Tags) -> None:
        self._of(metric).observe(value, tags)

    def _of(self, metric: Metric) -> Any:
        made = self._made.get(metric.name)
        if made is None:
            keys = (*COMMON_LABELS, *metric.labels)
            if metric.kind == "histogram":
                made = ray_metrics.Histogram(metric.name, metric.meaning, list(metric.buckets), keys)
            else:
                kind = ray_metrics.Gauge if metric.kind == "gauge" else ray_metrics.Counter
                made = kind(metric.name, metric.meaning, keys)
            made.set_default_tags(self._common)
            self._made[metric.name] = made
        return made


class CoordinatorMetrics:
    """All that the coordinator exports."""

    def __init__(self, run: str, config: RunConfig, *, was_restarted: bool) -> None:
        self.has_failed = False
        self._sink = RaySink(run, "coordinator")
        self._config = config
        self._was_restarted = was_restarted
        self._seen_tasks: set[str] = set()
        self._store_errors = 0
        self._store_calls: SimpleQueue[tuple[float, bool]] = SimpleQueue()
        self._process = psutil.Process()

    @_never_in_the_way
    def open(self, status: Mapping[str, Any]) -> None:
        """status: as the books were found. What they hold already was counted by others."""
        self._sink.start_from(samples.of_status(status, time.time()))
        self._sink.declare_counters(COUNTED_BY_COORDINATOR)
        self._sink.put(
            [
                Sample(catalog.RUN_START_TIME, time.time()),
                Sample(catalog.RESTARTS, float(self._was_restarted), {"of": "coordinator"}),
                Sample(catalog.STALENESS_BOUND, self._config.pacing.max_staleness),
                Sample(catalog.REPLICAS, max(1, self._config.learner.replicas), {"state": "wanted"}),
            ]
        )
        self.status(status)

    @_never_in_the_way
    def epoch(self, record: Mapping[str, Any], curriculum: Any) -> None:
        self._sink.put(samples.of_epoch(record))
        if curriculum is not None:
            self._seen_tasks |= samples.tasks_in(record)
            probabilities = curriculum.task_table().probabilities.tolist()
            self._sink.put(samples.of_curriculum(probabilities, len(self._seen_tasks)))

    @_never_in_the_way
    def status(self, status: Mapping[str, Any]) -> None:
        """To be called about once per second."""
        self._sink.put(samples.of_status(status, time.time()))
        self._put_store_calls()
        self._sink.put(_of_process(self._process, "coordinator"))
        self._sink.renew()
        self._sink.put_own_cost()

    def store_call(self, seconds: float, is_failed: bool) -> None:
        """From any thread; exported with the next ``status``."""
        self._store_calls.put((seconds, is_failed))

    def _put_store_calls(self) -> None:
        while not self._store_calls.empty():
            seconds, is_failed = self._store_calls.get_nowait()
            self._store_errors += is_failed
            self._sink.put([Sample(catalog.STORE_SECONDS, seconds), Sample(catalog.STORE_ERRORS, self._store_errors)])


class LearnerMetrics:
    """What only a learner knows: its process, its device, and what publishing costs."""

    def __init__(self, run: str, device: str) -> None:
        self.has_failed = False
        self._sink = RaySink(run, "learner")
        self._device = device
        self._process = psutil.Process()
        self._sink.declare_counters(COUNTED_BY_LEARNER)
        threading.Thread(target=self._keep, name="metrics", daemon=True).start()

    @_never_in_the_way
    def update(self, result: UpdateResult, weights: PackedArrays | None) -> None:
        """weights: as published; None from replicas that publish nothing."""
        self._sink.put(_of_process(self._process, "learner"))
        if weights is not None:
            seconds = Sample(catalog.PUBLISH_SECONDS, result.seconds["publishing"])
            self._sink.put([seconds, Sample(catalog.PUBLISH_BYTES, weights.size_bytes)])
        if self._device != "cpu":
            self._sink.put(_of_device(self._device))
        self._sink.put_own_cost()

    def _keep(self) -> None:
        """An update may take minutes."""
        while not self.has_failed:
            time.sleep(RENEW_S)
            self._renew()

    @_never_in_the_way
    def _renew(self) -> None:
        self._sink.renew()


def _of_process(process: psutil.Process, of: str) -> Iterable[Sample]:
    with process.oneshot():
        cpu = process.cpu_times()
        yield Sample(catalog.RESIDENT_BYTES, process.memory_info().rss, {"of": of})
    yield Sample(catalog.CPU_SECONDS, cpu.user + cpu.system)


def _of_device(device: str) -> Iterable[Sample]:
    import torch

    yield Sample(catalog.DEVICE_BYTES, torch.cuda.memory_allocated(device), {"state": "allocated"})
    yield Sample(catalog.DEVICE_BYTES, torch.cuda.memory_reserved(device), {"state": "reserved"})
    try:
        yield Sample(catalog.DEVICE_UTILISATION, torch.cuda.utilization(device) / 100.0)
    except (ModuleNotFoundError, RuntimeError):  # without the vendor's library nobody knows
        return
