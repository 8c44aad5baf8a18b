"""Which policies may go: pins that other processes respect, and the deletion of old ones."""

from __future__ import annotations

import json
import math
import os
import re
import socket
import time
from collections.abc import Iterable
from pathlib import Path

from metta_ray.agent import policy_files
from metta_ray.agent.policy_record import PolicyRecord
from metta_ray.agent.policy_selection import best_first
from metta_ray.common.errors import ConfigError, PolicyMissingError
from metta_ray.common.util import fs

TRAINER_STATE = "trainer.json"
PIN_PREFIX = "pin."
_MODEL_NAME = re.compile(r"model_\d{4,}")


def pin(directory: Path, holder: str | None, seconds: float) -> str:
    """Writes the holder's pin file; returns the holder's name."""
    name = holder or _this_process()
    file = _pin_file(directory, name)
    fs.atomic_write_text(file, json.dumps({"expires_at": time.time() + seconds}))
    if not policy_files.is_policy_directory(directory):
        fs.remove_tree(directory)  # the writing of the pin has made it anew
        raise PolicyMissingError(f"{directory} was deleted before it could be pinned; choose another policy")
    return name


def unpin(directory: Path, holder: str | None) -> None:
    _pin_file(directory, holder or _this_process()).unlink(missing_ok=True)


def delete_old(
    records: list[PolicyRecord], keep_last_n: int, keep_best: int, metric: str, protected: Iterable[Path]
) -> list[Path]:
    """Deletes what nothing refers to from ``records`` (oldest first, of one directory); returns the paths."""
    for name, value in (("keep_last_n", keep_last_n), ("keep_best", keep_best)):
        if value < 0:
            raise ConfigError(f"{name}={value} makes no sense; choose 0 or more")
    paths = [record.file_path for record in reversed(records)]
    kept = set(protected)
    kept |= set(paths[:keep_last_n])
    kept |= {record.file_path for record in best_first(records, metric)[:keep_best]}
    kept |= set([path for path in paths if (path / TRAINER_STATE).is_file()][:1])
    removable = [path for path in reversed(paths) if path not in kept and _MODEL_NAME.fullmatch(path.name)]
    return [path for path in removable if _delete_unless_pinned(path)]


def _delete_unless_pinned(directory: Path) -> bool:
    """True if it is gone. Hidden by a rename first, so that nobody can pin it between the look and the
    deletion: who comes later finds no policy there; who was quicker is seen, and the policy is put back."""
    if _is_pinned(directory):
        return False
    # Named like an unfinished write, so that a crash leaves nothing that later writers do not clean up.
    hidden = directory.with_name(f".{directory.name}.tmp-deleting-{os.getpid()}")
    try:
        fs.rename(directory, hidden)
    except FileNotFoundError:
        return False  # another process deletes it
    if _is_pinned(hidden):
        fs.rename(hidden, directory)
        return False
    fs.remove_tree(hidden)
    return True


def _is_pinned(directory: Path) -> bool:
    return any(_expires_at(file) > time.time() for file in directory.glob(f"{PIN_PREFIX}*"))


def _expires_at(pin_file: Path) -> float:
    try:
        return float(json.loads(pin_file.read_text())["expires_at"])
    except FileNotFoundError:
        return 0.0
    except (ValueError, KeyError, TypeError):
        return math.inf  # unreadable: keep what somebody may still need


def _pin_file(directory: Path, holder: str) -> Path:
    return directory / (PIN_PREFIX + re.sub(r"[^\w.-]", "_", holder))


def _this_process() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"
