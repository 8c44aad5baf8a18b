"""Episode infos gathered over an epoch, and the numbers that describe the epoch under their usual names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

RawStats = dict[str, list[Any]]


def accumulate_rollout_stats(raw_infos: Iterable[dict[str, Any]] | dict[str, Any], stats: RawStats) -> None:
    """Appends every value of the nested infos to ``stats`` under its path, e.g. ``agent/heart.gained``."""
    if isinstance(raw_infos, dict):
        raw_infos = [raw_infos]
    for info in raw_infos:
        for path, value in _flatten(info):
            stats.setdefault(path, []).append(value)


def process_training_stats(stats: RawStats) -> dict[str, Any]:
    """Means per path. Paths of several parts get the prefix ``env_``; ``overview/reward`` is the mean of all
    ``task_reward/…`` values (absent while no episode has ended)."""
    means = {path: _mean(values) for path, values in stats.items()}
    rewards = [value for path, values in stats.items() if path.startswith("task_reward/") for value in values]
    renamed = {f"env_{path}" if "/" in path else path: value for path, value in means.items()}
    return renamed | ({"overview/reward": float(np.mean(rewards))} if rewards else {})


def _flatten(nested: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in nested.items():
        name = str(key).strip("/")  # task ids may be paths
        path = f"{prefix}/{name}" if prefix else name
        if isinstance(value, dict):
            yield from _flatten(value, path)
        elif getattr(value, "size", None) == 1 or getattr(value, "numel", lambda: 0)() == 1:
            yield path, value.item()
        else:
            yield path, value


def _mean(values: list[Any]) -> Any:
    try:
        return float(np.mean(values))
    except (TypeError, ValueError):
        return values
