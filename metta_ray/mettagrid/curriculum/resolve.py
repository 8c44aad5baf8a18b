"""Curricula by path, as scripts and configurations name them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metta_ray.common.errors import ConfigError
from metta_ray.common.util.typed_config import did_you_mean
from metta_ray.mettagrid.curriculum.core import Curriculum, SingleTaskCurriculum, with_fields
from metta_ray.mettagrid.curriculum.navigation import NavigationBucketedCurriculum
from metta_ray.mettagrid.task_spec import TaskSpec

_ROOT = "/env/mettagrid/"

_SINGLE_TASKS = {
    "navigation": TaskSpec(kind="navigation"),
    "arena": TaskSpec(kind="arena", num_agents=24),
    # The window is too small to see the cue from the arms; -0.5 for the wrong one makes guessing pay.
    "memory/tmaze": TaskSpec(kind="tmaze", num_agents=1, max_steps=60, window=5),
    "navigation_sequence": TaskSpec(kind="sequence", terrain="varied_terrain/sparse_small"),
    "smoke": TaskSpec(kind="smoke", num_agents=1, max_steps=32, window=5),
    "curriculum/simple": TaskSpec(kind="navigation"),
}

_CURRICULA: dict[str, Callable[..., Curriculum]] = {
    "curriculum/navigation/bucketed": NavigationBucketedCurriculum,
}

_ALIASES = {"memory": "memory/tmaze", "tmaze": "memory/tmaze", "sequence": "navigation_sequence"}


def known_curricula() -> tuple[str, ...]:
    """All paths that ``resolve_curriculum`` understands, sorted."""
    return tuple(sorted(_ROOT + name for name in (*_SINGLE_TASKS, *_CURRICULA)))


def resolve_curriculum(path: str, *, seed: int = 0, **overrides: Any) -> Curriculum:
    """The curriculum at ``path``, e.g. ``/env/mettagrid/curriculum/navigation/bucketed`` or just ``smoke``.

    overrides: TaskSpec fields (``num_agents``, ``width``, ``max_steps``, …) applied to every task of it; None
        means "as it is". ConfigError lists the known paths, or names the field that does not fit.
    """
    overrides = {name: value for name, value in overrides.items() if value is not None}
    name = path.strip("/").removeprefix(_ROOT.strip("/")).strip("/")
    name = _ALIASES.get(name, name)
    if name in _CURRICULA:
        return _CURRICULA[name](seed=seed, **overrides)
    if name in _SINGLE_TASKS:
        return SingleTaskCurriculum(_ROOT + name, with_fields(_SINGLE_TASKS[name], overrides))
    known = known_curricula()
    raise ConfigError(
        f"unknown curriculum {path!r}{did_you_mean(_ROOT + name, known)}\nknown curricula: {', '.join(known)}"
    )
