"""Files by path or by URL: a directory of this machine, or an object store where fsspec is installed.

A place is ``/data/runs/nav``, ``file:///data/runs/nav`` or ``s3://bucket/runs/nav``. What is not there is a
FileNotFoundError everywhere; a store that refuses or does not answer is an ObjectStoreError, one that can never be used
from here a ConfigError.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from metta_ray.common.errors import ConfigError, MettaRayError, ObjectStoreError
from metta_ray.common.util import fs

FILE_SCHEME = "file://"


def is_remote(place: str | Path) -> bool:
    return "://" in str(place) and not str(place).startswith(FILE_SCHEME)


def local_path(place: str | Path) -> Path:
    return Path(str(place).removeprefix(FILE_SCHEME)).expanduser()


def inside(place: str, *names: str) -> str:
    """``s3://bucket/runs/nav`` for ``s3://bucket/runs/`` and ``nav``."""
    return "/".join((place.rstrip("/"), *names))


def path_of_url(place: str) -> Path:
    """``s3/bucket/runs/nav``: where, in a directory of copies, that of a URL lies. ConfigError for ``..`` in it."""
    scheme, _, rest = place.partition("://")
    parts = [part for part in rest.split("/") if part]
    if not parts or ".." in parts:
        raise ConfigError(f"{place!r} names no place in an object store; use {scheme}://BUCKET/PATH")
    return Path(scheme, *parts)


def read_bytes(place: str | Path) -> bytes:
    """The content of a file; FileNotFoundError where there is none."""
    if not is_remote(place):
        return local_path(place).read_bytes()
    with opened(str(place)) as (store, path):
        content: bytes = store.cat_file(path)
        return content


def write_bytes(place: str | Path, data: bytes) -> None:
    """Replaces a file, complete or not at all."""
    if not is_remote(place):
        fs.atomic_write_bytes(local_path(place), data)
        return
    with opened(str(place)) as (store, path):
        store.pipe_file(path, data)


def require_writable(place: str) -> None:
    """ConfigError, with the reason, for a store in which nothing can be kept from here. Leaves nothing there."""
    probe = inside(place, f".probe-{os.urandom(6).hex()}")
    try:
        write_bytes(probe, b"")
        with opened(probe) as (store, path):
            store.rm_file(path)
    except OSError as error:
        raise ConfigError(
            f"nothing can be kept in {place}: {error}; does the bucket exist, and may you write?"
        ) from None


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
    with tempfile.TemporaryDirectory() as temporary:
        with opened(str(place)) as (store, root):
            files = listed(store, root)
            if not files:
                raise FileNotFoundError(f"there is no directory {place}")
            for name in files:
                if any(fnmatch(name, pattern) for pattern in patterns):
                    download(store, root, name, Path(temporary) / name)
        yield Path(temporary)


def listed(store: Any, root: str) -> dict[str, int]:
    """All files below ``root``: path in it → size. Empty where there is nothing."""
    store.invalidate_cache()  # others write there too
    try:
        found = store.find(root, detail=True)
    except FileNotFoundError:
        return {}
    names = {path.removeprefix(root).lstrip("/"): int(details["size"] or 0) for path, details in found.items()}
    return {name: size for name, size in names.items() if name and ".." not in name.split("/") and name[-1] != "/"}


def download(store: Any, root: str, name: str, target: Path) -> None:
    """Copies a file; when it was written says when a checkpoint was made, where the store knows."""
    fs.make_directories(target.parent)
    path = f"{root}/{name}"
    store.get_file(path, str(target))
    with suppress(NotImplementedError, OSError):
        written = store.modified(path).timestamp()
        os.utime(target, (written, written))


@contextmanager
def opened(place: str) -> Iterator[tuple[Any, str]]:
    """(fsspec's filesystem, path of the place in it). What goes wrong in the block has one of the errors above."""
    store, path = _store_of(place)
    try:
        yield store, path
    except (FileNotFoundError, MettaRayError):
        raise
    except OSError as error:
        raise ObjectStoreError(f"{place}: {error}") from error
    except Exception as error:  # each store has a tree of errors of its own
        if type(error).__name__ in _HOPELESS:
            raise ConfigError(
                f"{place} cannot be reached: {error}; credentials come from the environment, as the documentation of "
                "its fsspec package says"
            ) from None
        if type(error).__module__.split(".")[0] in _OF_STORES:
            raise ObjectStoreError(f"{place}: {error}") from error
        raise


_HOPELESS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "TokenRetrievalError")
_OF_STORES = ("botocore", "aiobotocore", "s3fs", "aiohttp", "gcsfs", "google", "azure", "adlfs", "fsspec", "requests")


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
    return store, str(path).rstrip("/")
