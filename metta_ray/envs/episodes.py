"""What is told about a finished episode: to monitoring (nested numbers) and to checkpoints (plain trees)."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np

from metta_ray.envs.tasks import EpisodeResult


def episode_info(result: EpisodeResult) -> dict[str, Any]:
    """One nested dict of numbers per reported episode, as ``recv`` returns it.

    ``episode``: ``return`` (mean over agents of summed rewards), ``length`` (env steps), ``score``.
    ``task_reward``: the same return under the task's short name (its id after the last slash;
    ids of buckets, which contain ``=``, stay whole).
    ``task_completions``: 1 under the task's full id.
    Beside them the environment's own groups: ``agent``, ``game``, ``attributes`` for MettaGrid, ``info``
    (numbers of the last step's info) for Gymnasium.
    """
    mean_return = float(result.returns.mean())
    short_name = result.task_id if "=" in result.task_id else result.task_id.rsplit("/", 1)[-1]
    return {
        "episode": {"return": mean_return, "length": result.length, "score": result.score},
        "task_reward": {short_name: mean_return},
        "task_completions": {result.task_id: 1},
        **result.stats,
    }


def result_to_state(result: EpisodeResult) -> dict[str, Any]:
    """JSON scalars, lists and numpy arrays only."""
    return {field.name: _plain(getattr(result, field.name)) for field in fields(result)}


def result_from_state(state: dict[str, Any]) -> EpisodeResult:
    values = dict(state)
    values["returns"] = np.asarray(values["returns"], np.float32)
    values["seed"] = tuple(values["seed"])
    return EpisodeResult(**values)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
