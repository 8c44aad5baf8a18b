"""The Cartesian product of parameter buckets: one task per combination, chosen by learning progress."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from metta_ray.common.errors import ConfigError
from metta_ray.mettagrid.curriculum.core import Range, SampledTask
from metta_ray.mettagrid.curriculum.learning_progress import (
    LearningProgressConfig,
    LearningProgressCurriculum,
)
from metta_ray.mettagrid.task_spec import TaskSpec


class BucketedCurriculum(LearningProgressCurriculum):
    """Task ids read ``terrain=varied_terrain/maze_small;altar=[2,6)``.

    buckets: TaskSpec field → list of values, or ``{"range": (low, high), "bins": n}`` for n equal half-open
        sub-ranges, within which every episode draws anew. Integer ends draw integers.
    labels: TaskSpec field → name in the ids, where it differs.
    """

    def __init__(
        self,
        base: TaskSpec,
        buckets: Mapping[str, Any],
        config: LearningProgressConfig | None = None,
        labels: Mapping[str, str] | None = None,
        seed: int = 0,
    ) -> None:
        names = [(labels or {}).get(field, field) for field in buckets]
        values = [_bucket_values(field, bucket) for field, bucket in buckets.items()]
        templates = []
        for combination in itertools.product(*values):
            task_id = ";".join(f"{name}={_text(value)}" for name, value in zip(names, combination, strict=True))
            templates.append(SampledTask(task_id, base, dict(zip(buckets, combination, strict=True))))
        for template in templates:
            template.draw(np.random.default_rng(0))  # refuses unknown fields and impossible values now
        super().__init__(templates, config, seed)


def _bucket_values(field: str, bucket: Any) -> list[Any]:
    if isinstance(bucket, Mapping) and "values" in bucket:
        bucket = bucket["values"]
    if isinstance(bucket, Mapping):
        if set(bucket) - {"range", "bins"} or "range" not in bucket:
            raise ConfigError(f"bucket {field}={dict(bucket)!r} is not like {{range: [low, high], bins: 4}}")
        low, high = bucket["range"]
        return list(_bins(field, low, high, bucket.get("bins", 1)))
    if not isinstance(bucket, list | tuple) or not bucket:
        raise ConfigError(f"bucket {field}={bucket!r} is neither a list of values nor {{range, bins}}")
    return list(bucket)


def _bins(field: str, low: float, high: float, bins: int) -> list[Range]:
    if bins < 1:
        raise ConfigError(f"bucket {field} has bins={bins}; at least 1 is needed")
    want_int = isinstance(low, int) and isinstance(high, int)
    width = (high - low) / bins
    if want_int and width < 1:
        raise ConfigError(f"bucket {field} has bins={bins} for {high - low} integers; nearest: {max(high - low, 1)}")
    return [Range(low + i * width, low + (i + 1) * width, want_int) for i in range(bins)]


def _text(value: Any) -> str:
    if isinstance(value, Range):
        return f"[{_text(value.low)},{_text(value.high)})"
    if isinstance(value, float):
        return f"{round(value, 3):g}"
    return str(value)
