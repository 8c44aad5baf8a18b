"""Where a run keeps its files, and the record of how it was configured.

    <data_dir>/<run_name>/            config.yaml, .lock
    <data_dir>/<run_name>/checkpoints, replays, stats

The run name comes from the argument, else METTA_RUN, else the time; the base directory from the argument,
else DATA_DIR, else ./train_dir. Rank 0 holds the directory's lock until its process ends, so no two live runs
ever write to the same place.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from pydantic import BaseModel

from metta_ray.common.errors import ConfigError
from metta_ray.common.util import fs, places
from metta_ray.common.util.ranks import is_master, process_count
from metta_ray.rl.trainer_config import TrainerConfig

_PACKAGES = ("metta_ray", "torch", "numpy", "mettagrid", "gymnasium", "pydantic", "safetensors", "ray")


@dataclass(frozen=True)
class RunDirectories:
    """Paths of one run, as strings."""

    run_dir: str
    checkpoint_dir: str
    replay_dir: str
    stats_dir: str
    run_name: str


def setup_run_directories(
    run_name: str | None = None, data_dir: str | os.PathLike[str] | None = None
) -> RunDirectories:
    """Creates the directories of a run, new or to be continued, and takes its lock on rank 0.

    Raises RunDirectoryInUse if another live process holds the lock, ConfigError for a name that cannot be a
    directory's or a base directory that cannot be written.
    """
    base = _base_directory(data_dir)
    run_dir = run_directory(run_name, data_dir) or base / name_from_time(base)
    name = run_dir.name
    dirs = RunDirectories(
        run_dir=str(run_dir),
        checkpoint_dir=str(run_dir / "checkpoints"),
        replay_dir=str(run_dir / "replays"),
        stats_dir=str(run_dir / "stats"),
        run_name=name,
    )
    try:
        if is_master():
            fs.RunLock.acquire(run_dir)
        for path in (dirs.checkpoint_dir, dirs.replay_dir, dirs.stats_dir):
            fs.make_directories(Path(path))
    except OSError as error:
        raise ConfigError(f"run directory {run_dir} cannot be written ({error}); set data_dir or DATA_DIR") from None
    return dirs


def run_directory(run_name: str | None, data_dir: str | os.PathLike[str] | None = None) -> Path | None:
    """Where the run of this name lies, or will; None without a name, here or in METTA_RUN: that run is a new one.

    Raises ConfigError for a name that cannot be a directory's.
    """
    name = run_name or os.environ.get("METTA_RUN")
    if not name:
        return None
    check_run_name(name)
    return _base_directory(data_dir) / name


def set_run_aside(run_name: str, data_dir: str | os.PathLike[str] | None = None) -> Path | None:
    """Renames an existing run to ``<name>.before_<time>``, so that a fresh one can take its name.

    Returns where it lies now, or None if there was none. RunDirectoryInUse if a live process writes to it.
    """
    base = _base_directory(data_dir)
    check_run_name(run_name)
    if not (base / run_name).exists():
        return None
    lock = fs.RunLock.acquire(base / run_name)
    target = base / _first_free(base, f"{run_name}.before_{time.strftime('%Y%m%d_%H%M%S')}")
    fs.rename(base / run_name, target)
    lock.release()
    return target


def release_run_directories(dirs: RunDirectories) -> None:
    """Gives the lock up before the process ends, so that another process may continue the run."""
    lock = fs.RunLock.held(dirs.run_dir)
    if lock is not None:
        lock.release()


def save_experiment_config(dirs: RunDirectories, device: Any, trainer_config: TrainerConfig, **extra: Any) -> None:
    """Writes ``config.yaml`` in the run directory: resolved settings, versions, git revision, seeds.

    Only rank 0 writes. extra: further sections (models, mappings or scalars), e.g. ``agent=agent_config``.
    """
    if not is_master():
        return
    record: dict[str, Any] = {
        "run": dirs.run_name,
        "run_dir": dirs.run_dir,
        "data_dir": str(Path(dirs.run_dir).parent),
        "device": str(device),
        "trainer": trainer_config.model_dump(mode="json"),
        "seeds": {"trainer": trainer_config.seed},
        "versions": package_versions(),
        "git": git_revision(),
        "world_size": process_count(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    record |= {name: _plain(value) for name, value in extra.items()}
    fs.atomic_write_text(Path(dirs.run_dir) / "config.yaml", yaml.safe_dump(record, sort_keys=False))


def package_versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that decide what a run computes."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_revision() -> dict[str, Any] | None:
    """Commit of the working directory, and whether it has changes; None outside a git repository."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "has_changes": bool(_git("status", "--porcelain", "--untracked-files=no"))}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _base_directory(data_dir: str | os.PathLike[str] | None) -> Path:
    given = data_dir or os.environ.get("DATA_DIR") or "./train_dir"
    if places.is_remote(str(given)):
        raise ConfigError(
            f"data_dir={str(given)!r}: the library keeps runs in directories; name one, or train with metta-ray train, "
            "which keeps them in object stores too"
        )
    return places.local_path(str(given)).absolute()


def name_from_time(base: Path) -> str:
    """A name for a run that was given none, not yet used in ``base``; the same in all processes of torchrun."""
    if process_count() == 1:
        name = _time_name(time.time())
        return _first_free(base, name)
    if process_count() != int(os.environ.get("LOCAL_WORLD_SIZE", process_count())):
        raise ConfigError("a run on several machines needs a name they share; set run_name or METTA_RUN")
    # The ranks of one machine must agree on a name without talking: they have the same parent.
    return _time_name(psutil.Process(os.getppid()).create_time())


def _time_name(seconds: float) -> str:
    return time.strftime("run_%Y%m%d_%H%M%S", time.localtime(seconds))


def _first_free(base: Path, name: str) -> str:
    """Two runs begun in the same second get different names."""
    candidate, number = name, 1
    while (base / candidate).exists():
        number += 1
        candidate = f"{name}_{number}"
    return candidate


def check_run_name(name: str) -> None:
    """ConfigError for a name that cannot be a directory's."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]*", name) or len(name) > 200:
        raise ConfigError(
            f"run_name={name!r} cannot name a directory; use letters, digits and _ . + = - "
            f"(at most 200, not starting with . or -)"
        )


def _plain(value: Any) -> Any:
    """YAML-safe form of a section."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
