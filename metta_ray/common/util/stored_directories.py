"""Directories in an object store that are complete or absent, as ``atomic_directory`` makes them on a disk.

A store has no rename, but an object appears whole or not at all. So the manifest, which names every file with size and
SHA-256, is written last and removed first: what has a manifest is complete, and what was damaged later is found out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metta_ray.common.errors import CheckpointError, ObjectStoreError
from metta_ray.common.util import fs
from metta_ray.common.util.places import download, inside, listed, opened
from metta_ray.common.util.state_directory import MANIFEST, read_manifest, verify_manifest


def push(directory: Path, place: str) -> bool:
    """Copies a complete directory to a place; False where the very same is there already.

    Killed at any moment it leaves the new one, or none, at this place; an older one of the same name goes first.
    ObjectStoreError where the store does not take it, CheckpointError where ``directory`` itself is damaged.
    """
    text = (directory / MANIFEST).read_bytes()
    with opened(place) as (store, root):
        there = _manifest_of(store, root)
        if there == text:
            return False
        if there is not None:
            store.rm_file(f"{root}/{MANIFEST}")
        for name, expected in read_manifest(directory)["files"].items():
            file, target = directory / name, f"{root}/{name}"
            if fs.sha256_file(file) != expected["sha256"]:
                raise CheckpointError(f"{file} is damaged (its SHA-256 differs), so it is not uploaded")
            store.put_file(str(file), target)
            # The content is checked by the store on arrival, as far as its protocol has checksums.
            if store.info(target)["size"] != expected["size"]:
                raise ObjectStoreError(f"{inside(place, name)} did not arrive whole")
        store.pipe_file(f"{root}/{MANIFEST}", text)
    return True


def pull(place: str, directory: Path) -> None:
    """Copies what lies at a place to ``directory``, complete and checked, or not at all.

    CheckpointError names the object that is missing or damaged.
    """
    with opened(place) as (store, root), fs.atomic_directory(directory, replace=True) as unfinished:
        for name in listed(store, root):
            download(store, root, name, unfinished / name)
        try:
            verify_manifest(unfinished)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(unfinished), place.rstrip("/"))) from None


def is_same(place: str, directory: Path) -> bool:
    """Whether ``directory`` is a copy of what lies at a place now."""
    path = directory / MANIFEST
    with opened(place) as (store, root):
        return path.is_file() and _manifest_of(store, root) == path.read_bytes()


def remove(place: str) -> None:
    """Deletes all that lies at a place; what it is disappears first."""
    with opened(place) as (store, root):
        for name in sorted(listed(store, root), key=lambda name: name != MANIFEST):
            store.rm_file(f"{root}/{name}")


def complete(names: dict[str, int]) -> list[str]:
    """Of the files of a place, those directories that have a manifest, by name; ``""`` for the place itself."""
    return sorted(name.rpartition("/")[0] for name in names if name.rpartition("/")[2] == MANIFEST)


def _manifest_of(store: Any, root: str) -> bytes | None:
    try:
        content: bytes = store.cat_file(f"{root}/{MANIFEST}")
        return content
    except FileNotFoundError:
        return None
