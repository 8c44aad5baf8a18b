"""Files by path or by URL: a directory of this machine, or an object store where fsspec is installed.

A place is ``/data/runs/nav``, ``file:///data/runs/nav`` or ``s3://bucket/runs/nav``.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from metta_ray.common.errors import ConfigError
from metta_ray.common.util import fs

FILE_SCHEME = "file://"


def is_remote(place: str | Path) -> bool:
    return "://" in str(place) and not str(place).startswith(FILE_SCHEME)


def local_path(place: str | Path) -> Path:
    return Path(str(place).removeprefix(FILE_SCHEME)).expanduser()


def read_bytes(place: str | Path) -> bytes:
    """The content of a file. OSError (FileNotFoundError where there is none), ConfigError for a store that cannot
    be reached from here."""
    if not is_remote(place):
        return local_path(place).read_bytes()
    store, path = _store_of(str(place))
    content: bytes = store.cat_file(path)
    return content


def write_bytes(place: str | Path, data: bytes) -> None:
    """Replaces a file, complete or not at all."""
    if not is_remote(place):
        fs.atomic_write_bytes(local_path(place), data)
        return
    store, path = _store_of(str(place))
    store.pipe_file(path, data)


@contextmanager
def as_directory(place: str | Path, patterns: Sequence[str]) -> Iterator[Path]:
    """The directory at a place; of a store's, a copy of those files whose path matches one of ``patterns``.

    The copy is gone after the block. FileNotFoundError if there is no such directory.
    """
    if not is_remote(place):
        path = local_path(place)
        if not path.is_dir():
            raise FileNotFoundError(f"there is no directory {path}")
        yield path
        return
    store, root = _store_of(str(place))
    if not store.isdir(root):
        raise FileNotFoundError(f"there is no directory {place}")
    with tempfile.TemporaryDirectory() as temporary:
        for file in store.find(root):
            inside = file.removeprefix(root).lstrip("/")
            if any(fnmatch(inside, pattern) for pattern in patterns):
                target = Path(temporary) / inside
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(store.cat_file(file))
                _keep_time(store, file, target)
        yield Path(temporary)


def _keep_time(store: Any, file: str, target: Path) -> None:
    """When a file was written says when a checkpoint was made; not every store knows."""
    with suppress(NotImplementedError, OSError):
        written = store.modified(file).timestamp()
        os.utime(target, (written, written))


def _store_of(place: str) -> tuple[Any, str]:
    """(filesystem, path in it)"""
    try:
        import fsspec
    except ImportError:
        raise ConfigError(
            f"{place} is not on this machine, and fsspec, which reads such places, is not installed; "
            "pip install 'metta_ray[remote]'"
        ) from None
    try:
        store, path = fsspec.core.url_to_fs(place)
    except (ImportError, ValueError) as error:  # the store's own package is missing, or nobody knows the scheme
        raise ConfigError(f"{place} cannot be reached: {error}") from None
    return store, str(path)
