"""Batch arrays in memory that processes share: one unlinked file, passed on as a descriptor.

The file has no name, so nothing can be left behind: the memory goes when the last process that maps it ends,
however it ends.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import Any

import numpy as np

from metta_ray.envs.env_batch import BatchArrays
from metta_ray.envs.env_spec import EnvSpec

Layout = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]

_ALIGNMENT = 64  # bytes: a cache line, so that fields do not share one
_MEMORY_FILES = "/dev/shm"


def create(spec: EnvSpec, rows: int) -> tuple[int, BatchArrays]:
    """(descriptor to pass to other processes, arrays of zeros). The caller closes the descriptor."""
    size = _size_of(BatchArrays.shapes(spec, rows))
    descriptor = _open_unlinked_file(size)
    return descriptor, attach(descriptor, BatchArrays.shapes(spec, rows))


def attach(descriptor: int, layout: Layout) -> BatchArrays:
    """The arrays behind a descriptor. It may be closed afterwards: the mapping stays."""
    block = mmap.mmap(descriptor, _size_of(layout))
    arrays, offset = {}, 0
    for name, (shape, dtype) in layout.items():
        arrays[name] = np.ndarray(shape, dtype, buffer=block, offset=offset)
        offset += _padded(shape, dtype)
    return BatchArrays(**arrays)


def _open_unlinked_file(size: int) -> int:
    """In memory where there is room (containers often get 64 MiB of it), else in the ordinary place."""
    if os.path.isdir(_MEMORY_FILES):
        try:
            return _reserve(_MEMORY_FILES, size)
        except OSError:
            pass
    return _reserve(None, size)


def _reserve(folder: str | None, size: int) -> int:
    with tempfile.TemporaryFile(dir=folder) as file:
        os.truncate(file.fileno(), size)
        if hasattr(os, "posix_fallocate"):
            # Without a reservation a full file system kills the process that touches the page.
            os.posix_fallocate(file.fileno(), 0, size)
        return os.dup(file.fileno())


def _size_of(layout: Layout) -> int:
    return sum(_padded(shape, dtype) for shape, dtype in layout.values())


def _padded(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    size = int(np.prod(shape)) * dtype.itemsize
    return max(_ALIGNMENT, -(-size // _ALIGNMENT) * _ALIGNMENT)
