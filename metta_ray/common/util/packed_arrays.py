"""Many arrays in one allocation, so that they travel as one object and are read without a copy.

packed = PackedArrays.pack({"weight": w, "bias": b})
packed.arrays()["bias"]       # a view into packed.buffer
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_ALIGNMENT = 64


class ArrayPlace(NamedTuple):
    """Where an array lies in the buffer; ``offset`` in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class PackedArrays:
    """buffer: uint8 ``(bytes,)``; layout: the arrays in it, in the order they were given."""

    layout: tuple[ArrayPlace, ...]
    buffer: NDArray[np.uint8]

    @classmethod
    def pack(cls, arrays: Mapping[str, NDArray[Any]]) -> PackedArrays:
        """A copy of all arrays (any order of axes; they come back C-contiguous)."""
        layout, end = [], 0
        for name, array in arrays.items():
            layout.append(ArrayPlace(name, array.dtype.str, array.shape, end))
            end = -(-(end + array.nbytes) // _ALIGNMENT) * _ALIGNMENT
        packed = cls(tuple(layout), np.zeros(end, np.uint8))
        for name, view in packed.arrays().items():
            view[...] = arrays[name]
        return packed

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Views by name; read-only where the buffer is (one that came out of an object store)."""
        return {place.name: self._view(place) for place in self.layout}

    @property
    def size_bytes(self) -> int:
        return int(self.buffer.nbytes)

    def digest(self) -> str:
        """Hex digest of the content; equal for equal arrays under equal names."""
        hasher = hashlib.blake2b(repr(self.layout).encode(), digest_size=16)
        hasher.update(self.buffer.data)
        return hasher.hexdigest()

    def _view(self, place: ArrayPlace) -> NDArray[Any]:
        dtype = np.dtype(place.dtype)
        count = int(np.prod(place.shape, dtype=np.int64))
        return self.buffer[place.offset : place.offset + count * dtype.itemsize].view(dtype).reshape(place.shape)
