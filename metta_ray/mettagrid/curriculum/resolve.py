"""Curricula as scripts and configurations name them: a path, a YAML file, a class of the user's, or written down."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from metta_ray.common.errors import ConfigError
from metta_ray.common.util.typed_config import did_you_mean
from metta_ray.mettagrid.curriculum.config import CurriculumConfig, build_curriculum
from metta_ray.mettagrid.curriculum.core import Curriculum
from metta_ray.mettagrid.curriculum.library import ALIASES, LIBRARY

_ROOT = "/env/mettagrid/"
_FILES = (".yaml", ".yml")
_METHODS = ("task_table", "complete_task", "state_dict", "load_state_dict")


def known_curricula() -> tuple[str, ...]:
    """All paths that ``resolve_curriculum`` understands, sorted."""
    return tuple(sorted(_ROOT + name for name in LIBRARY))


def resolve_curriculum(
    what: str | CurriculumConfig | Mapping[str, Any], *, seed: int = 0, **overrides: Any
) -> Curriculum:
    """The curriculum that is meant by

    - a path, e.g. ``/env/mettagrid/curriculum/navigation/bucketed`` or just ``smoke``;
    - a YAML file, or a mapping, as ``config.CurriculumConfig`` describes it;
    - ``module:Class``, called as ``Class(seed=seed, **overrides)``: a subclass of ``core.Curriculum``, or anything
      with its ``task_table``, ``complete_task``, ``state_dict`` and ``load_state_dict``.

    overrides: TaskSpec fields (``num_agents``, ``width``, ``max_steps``, …) applied to every task of it; None
        means "as it is". ConfigError lists the known paths, or names the field that does not fit.
    """
    overrides = {name: value for name, value in overrides.items() if value is not None}
    if not isinstance(what, str):
        return _built(what, "curriculum", seed, overrides)
    if what.endswith(_FILES):
        return _built(_read(Path(what)), Path(what).stem, seed, overrides)
    if ":" in what:
        return _of_class(what, seed, overrides)
    name = what.strip("/").removeprefix(_ROOT.strip("/")).strip("/")
    name = ALIASES.get(name, name)
    if name in LIBRARY:
        is_single = LIBRARY[name]["type"] == "single"
        return _built(LIBRARY[name], _ROOT + name if is_single else name.removeprefix("curriculum/"), seed, overrides)
    known = known_curricula()
    raise ConfigError(
        f"unknown curriculum {what!r}{did_you_mean(_ROOT + name, known)}\nknown curricula: {', '.join(known)}"
    )


def _built(
    written: CurriculumConfig | Mapping[str, Any], name: str, seed: int, overrides: Mapping[str, Any]
) -> Curriculum:
    config = CurriculumConfig.from_mapping(written)
    return build_curriculum(config, name, resolve_curriculum, seed=seed, overrides=overrides)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"curriculum {path} cannot be read: {error}") from None
    if not isinstance(content, Mapping):
        raise ConfigError(f"curriculum {path} is no mapping with a type and its fields")
    return content


def _of_class(what: str, seed: int, overrides: Mapping[str, Any]) -> Curriculum:
    module_name, _, class_name = what.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"curriculum {what!r}: no module named {error.name!r}") from error
    if not hasattr(module, class_name):
        public = [name for name in dir(module) if not name.startswith("_")]
        raise ConfigError(f"curriculum {what!r}: {module_name} has no {class_name!r}{did_you_mean(class_name, public)}")
    try:
        curriculum = getattr(module, class_name)(seed=seed, **overrides)
    except TypeError as error:
        raise ConfigError(f"curriculum {what!r} could not be made with seed and {dict(overrides)}: {error}") from error
    missing = [method for method in _METHODS if not callable(getattr(curriculum, method, None))]
    if missing:
        raise ConfigError(f"curriculum {what!r} lacks {', '.join(missing)}; derive it from core.Curriculum")
    return curriculum  # type: ignore[no-any-return]
