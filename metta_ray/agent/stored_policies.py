"""Policies in an object store: checked copies on this machine, brought up to date whenever they are asked for.

The copy of ``s3://bucket/runs/nav/checkpoints/model_0012`` lies in ``policies/s3/bucket/runs/nav/…`` of the directory
of ``machine_cache``. Loads no torch.
"""

from __future__ import annotations

import logging
from pathlib import Path

from metta_ray.common.errors import CheckpointError, PolicyMissingError
from metta_ray.common.util import fs, places, stored_directories
from metta_ray.common.util.machine_cache import cache_directory

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
LATER = "scores.json"
"""Changes after a policy was saved; see ``policy_files``."""


def fetched(url: str) -> Path:
    """The copy of one policy, or of all sound ones in a directory or a run; damaged ones are passed over, loudly.

    PolicyMissingError where there is none, CheckpointError where the only one is damaged.
    """
    copy = copy_of(url)
    with places.opened(url) as (store, root):
        names = places.listed(store, root)
    policies = stored_directories.complete(names)
    if "" in policies:
        _bring_up_to_date(url, copy)
        return copy
    wanted = [name for name in policies if name.removeprefix(f"{CHECKPOINTS}/").count("/") == 0]
    if not wanted:
        what = "no complete policy" if names else "nothing"
        raise PolicyMissingError(f"no policy under {url!r}: there is {what}; train and save one first")
    for name in wanted:
        try:
            _bring_up_to_date(places.inside(url, name), copy / name)
        except CheckpointError as error:
            logger.warning("passed over a damaged policy: %s", error)
    for old in [*copy.glob("model_*"), *copy.glob(f"{CHECKPOINTS}/model_*")]:
        if old.relative_to(copy).as_posix() not in wanted:
            fs.remove_tree(old)
    return copy


def copy_of(url: str) -> Path:
    return _copies() / places.path_of_url(url)


def url_of(directory: Path) -> str | None:
    """What a directory is the copy of; None for any other."""
    if not directory.is_relative_to(_copies()):
        return None
    scheme, *parts = directory.relative_to(_copies()).parts
    return f"{scheme}://{'/'.join(parts)}"


def _copies() -> Path:
    return (cache_directory() / "policies").resolve()


def _bring_up_to_date(url: str, copy: Path) -> None:
    if not stored_directories.is_same(url, copy):
        stored_directories.pull(url, copy)
        return
    try:
        fs.atomic_write_bytes(copy / LATER, places.read_bytes(places.inside(url, LATER)))
    except FileNotFoundError:
        (copy / LATER).unlink(missing_ok=True)
