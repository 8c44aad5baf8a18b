"""What is known about a policy beside its weights: JSON values whose keys also read as attributes."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from metta_ray.common.errors import ConfigError

REQUIRED: dict[str, int | float] = {"agent_step": 0, "epoch": 0, "generation": 0, "train_time": 0.0}


class PolicyMetadata(MutableMapping[str, Any]):
    """Mapping with attribute access; values are JSON values (numpy scalars and tuples are converted).

    agent_step: agent steps trained on. epoch: batches trained on. generation: 0 for a policy trained from
    scratch, else its initial policy's plus one. train_time: seconds. These four always exist; deleting one
    is a ConfigError.

    Scores have one place each: ``score`` (float, higher is better) and ``eval_scores`` ({metric: float}).
    """

    _values: dict[str, Any]

    def __init__(self, values: Mapping[str, Any] | None = None, **more: Any) -> None:
        merged = {**REQUIRED, **(values or {}), **more}
        object.__setattr__(self, "_values", {key: json_value(value, key) for key, value in merged.items()})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PolicyMetadata:
        """Like the constructor, but nothing is filled in: a missing required key is a ConfigError."""
        missing = [key for key in REQUIRED if key not in values]
        if missing:
            raise ConfigError(f"policy metadata lacks {', '.join(missing)}; required: {', '.join(REQUIRED)}")
        return cls(values)

    def to_dict(self) -> dict[str, Any]:
        return dict(self._values)

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._values[key] = json_value(value, key)

    def __delitem__(self, key: str) -> None:
        if key in REQUIRED:
            raise ConfigError(f"policy metadata {key!r} is required and cannot be deleted; set another value")
        del self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __getattr__(self, key: str) -> Any:
        if key.startswith("_"):  # looked up by copy before the values exist
            raise AttributeError(key)
        if key not in self._values:
            raise AttributeError(f"policy metadata has no {key!r}; it has: {', '.join(self._values)}")
        return self._values[key]

    def __setattr__(self, key: str, value: Any) -> None:
        self[key] = value

    def __delattr__(self, key: str) -> None:
        if key not in self._values:
            raise AttributeError(f"policy metadata has no {key!r}")
        del self[key]

    def __repr__(self) -> str:
        return f"PolicyMetadata({self._values!r})"

    def score_of(self, metric: str) -> float | None:
        """The number behind a metric's name, None where there is none (or it is not a number, or NaN).

        Looked up in ``eval_scores`` first, there also without a trailing ``_score``, then at the top level.
        """
        eval_scores = self._values.get("eval_scores") or {}
        for value in (
            eval_scores.get(metric),
            eval_scores.get(metric.removesuffix("_score")),
            self._values.get(metric),
        ):
            if isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value):
                return float(value)
        return None


def json_value(value: Any, name: str) -> Any:
    """``value`` in JSON's types. ConfigError naming ``name`` where that is impossible."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): json_value(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_value(item, name) for item in value]
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if hasattr(value, "tolist"):  # numpy arrays and tensors
        return json_value(value.tolist(), name)
    if hasattr(value, "model_dump"):
        return json_value(value.model_dump(mode="json"), name)
    raise ConfigError(
        f"policy metadata {name!r} is a {type(value).__name__}, which JSON cannot hold; "
        "store numbers, strings, lists or dicts"
    )
