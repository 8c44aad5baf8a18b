"""Choosing among policy records: selectors, one score schema, filters."""

from __future__ import annotations

import logging
import math
import operator
import random
from collections.abc import Callable, Mapping
from typing import Any

from metta_ray.agent import policy_files
from metta_ray.agent.policy_metadata import PolicyMetadata
from metta_ray.agent.policy_record import PolicyRecord
from metta_ray.common.errors import ConfigError

logger = logging.getLogger(__name__)

SELECTORS = ("all", "latest", "rand", "top")

Filter = float | int | str | Callable[[Any], bool]
Condition = Callable[[Any], bool]

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}


def select(records: list[PolicyRecord], selector: str, metric: str, rng: random.Random) -> list[PolicyRecord]:
    """``records`` (oldest first) in the order in which the selector wants them."""
    if selector == "all":
        return records
    if selector == "latest":
        return records[::-1]
    if selector == "rand":
        return rng.sample(records, len(records))
    return _best_or_latest_first(records, metric)


def age(record: PolicyRecord) -> tuple[int, int]:
    """Sorts oldest first: by epoch, then by time of writing."""
    return int(record.metadata.epoch), policy_files.written_at(record.file_path)


def best_first(records: list[PolicyRecord], metric: str) -> list[PolicyRecord]:
    """The records that have the metric, highest first; the later among equals first."""
    scores = [(record.metadata.score_of(metric), record) for record in reversed(records)]
    scored = [(score, record) for score, record in scores if score is not None]
    return [record for _, record in sorted(scored, key=lambda pair: -pair[0])]


def _best_or_latest_first(records: list[PolicyRecord], metric: str) -> list[PolicyRecord]:
    best = best_first(records, metric)
    if best:
        return best
    if len(records) > 1:
        logger.warning("none of %d policies has the metric %r; taking the latest", len(records), metric)
    return records[::-1]


def conditions(filters: Mapping[str, Filter] | None) -> dict[str, Condition]:
    """Filters as functions of one value; ConfigError for one that cannot be read."""
    return {name: _condition(name, wanted) for name, wanted in (filters or {}).items()}


def matches(metadata: PolicyMetadata, wanted: Mapping[str, Condition]) -> bool:
    for name, holds in wanted.items():
        score = metadata.score_of(name)
        value = score if score is not None else metadata.get(name)
        if value is None or not holds(value):
            return False
    return True


def _condition(name: str, wanted: Filter) -> Condition:
    if callable(wanted):
        return wanted
    text = str(wanted).strip()
    symbol = next((symbol for symbol in _COMPARISONS if text.startswith(symbol)), None)
    if symbol is None and text[:1] in "=!~":
        raise ConfigError(
            f"filter {name}={wanted!r} is not a comparison; write one of {' '.join(_COMPARISONS)} and a value"
        )
    compare = _COMPARISONS[symbol or "=="]
    operand = text.removeprefix(symbol or "").strip()
    number = _as_number(operand)
    if number is not None:
        return lambda value: (found := _as_number(value)) is not None and compare(found, number)
    if symbol in ("<", "<=", ">", ">="):
        raise ConfigError(f"filter {name}={wanted!r} compares with {operand!r}, which is not a number")
    return lambda value: compare(str(value), operand)


def _as_number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return None if math.isnan(number) else number
