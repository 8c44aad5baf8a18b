"""Which policies may go: the deletion of old ones, as long as nobody has pinned them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from metta_ray.agent.policy_pins import is_pinned
from metta_ray.agent.policy_record import PolicyRecord
from metta_ray.agent.policy_selection import best_first
from metta_ray.common.errors import ConfigError
from metta_ray.common.util import fs

TRAINER_STATE = "trainer.json"
_MODEL_NAME = re.compile(r"model_\d{4,}")


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
    if is_pinned(directory):
        return False
    # Named like an unfinished write, so that a crash leaves nothing that later writers do not clean up.
    hidden = directory.with_name(f".{directory.name}.tmp-deleting-{os.getpid()}")
    try:
        fs.rename(directory, hidden)
    except FileNotFoundError:
        return False  # another process deletes it
    if is_pinned(hidden):
        fs.rename(hidden, directory)
        return False
    fs.remove_tree(hidden)
    return True
