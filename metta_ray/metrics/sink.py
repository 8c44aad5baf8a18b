"""Where samples go. What counts, and how labels stay bounded, is the same for every exporter."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product

from metta_ray.metrics import catalog
from metta_ray.metrics.catalog import MAX_VALUES, METRICS, OTHER, Metric

Tags = Mapping[str, str]
_Key = tuple[str, tuple[str, ...]]


@dataclass(frozen=True)
class Sample:
    """One number. Of a counter, the total so far: what it grew by since the sample before is added."""

    metric: Metric
    value: float
    labels: Tags = field(default_factory=dict)


class Sink(ABC):
    """Takes samples. ``metrics``: those that this process exports, so that counters of nothing yet are seen as 0.

    A counter's first sample is where counting begins, unless ``begin_at_zero`` was called: a coordinator that goes on
    with a run does not count again what its predecessor counted.
    """

    def __init__(self) -> None:
        self._totals: dict[_Key, float] = {}
        self._values: dict[tuple[str, str], set[str]] = {}
        self._cpu_seconds = 0.0

    @abstractmethod
    def _set(self, metric: Metric, value: float, tags: Tags) -> None: ...

    @abstractmethod
    def _add(self, metric: Metric, value: float, tags: Tags) -> None:
        """value 0: the series begins, so that its first event is an increase."""

    @abstractmethod
    def _observe(self, metric: Metric, value: float, tags: Tags) -> None: ...

    def declare_counters(self, metrics: Iterable[Metric]) -> None:
        """Begins their series at 0, for every value that their labels may have."""
        for metric in metrics:
            for values in product(*metric.labels.values()):
                self._add(metric, 0.0, dict(zip(metric.labels, values, strict=True)))

    def put(self, samples: Iterable[Sample]) -> None:
        began = time.thread_time()
        for sample in samples:
            self._put(sample)
        self._cpu_seconds += time.thread_time() - began

    def put_own_cost(self) -> None:
        """How much processor time ``put`` took so far."""
        self._put(Sample(catalog.METRICS_CPU, self._cpu_seconds))

    def _put(self, sample: Sample) -> None:
        metric = sample.metric
        assert METRICS[metric.name] is metric, sample
        assert sample.labels.keys() == metric.labels.keys(), sample
        tags = {name: self._bounded(metric, name, value) for name, value in sample.labels.items()}
        if metric.kind == "gauge":
            self._set(metric, sample.value, tags)
        elif metric.kind == "histogram":
            self._observe(metric, sample.value, tags)
        else:
            key = (metric.name, tuple(sample.labels.values()))
            grown = sample.value - self._totals.get(key, 0.0)
            self._totals[key] = sample.value
            if grown > 0:
                self._add(metric, grown, tags)

    def start_from(self, samples: Iterable[Sample]) -> None:
        """Totals that were reached before this process: only what is beyond them is counted here."""
        for sample in samples:
            if sample.metric.kind == "counter":
                self._totals[sample.metric.name, tuple(sample.labels.values())] = sample.value

    def _bounded(self, metric: Metric, name: str, value: str) -> str:
        declared = metric.labels[name]
        if declared:
            return value if value in declared else OTHER
        seen = self._values.setdefault((metric.name, name), set())
        if value not in seen and len(seen) >= MAX_VALUES:
            return OTHER
        seen.add(value)
        return value
