"""The tables from token bytes to numbers, and the look-up on the host, with numpy.

For the few thousand tokens of a step torch's small operations take three to four times as long as numpy's; the look-up
on a device, and what these are compared with in tests, is in token_encoder.py.

Letters: N rows, W tokens, P cells (height · width), E entries of all rows together, G globals.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metta_ray.agent.vocabulary import TokenLayout

GLOBAL_LOCATION = 0xFE
PADDING = 0xFF


@dataclass(frozen=True)
class TokenTables:
    """By feature · 256 + value, ``(65536,)``: channel (int32, in the box) and channel_value (float32), scalar (int32,
    among the globals) and scalar_value. By location, ``(256,)``: cell (int32, of its first channel's place in the box)
    and is_inside (float32, 0 outside the window)."""

    channel: NDArray[np.int32]
    channel_value: NDArray[np.float32]
    scalar: NDArray[np.int32]
    scalar_value: NDArray[np.float32]
    cell: NDArray[np.int32]
    is_inside: NDArray[np.float32]

    @classmethod
    def of(cls, layout: TokenLayout, height: int, width: int) -> TokenTables:
        cell, is_inside = np.zeros((16, 16), np.int32), np.zeros((16, 16), np.float32)
        cells = np.arange(height * width, dtype=np.int32).reshape(height, width)
        cell[:height, :width], is_inside[:height, :width] = cells * max(1, len(layout.channels)), 1.0
        return cls(
            channel=layout.channel,
            channel_value=layout.channel_value,
            scalar=layout.scalar,
            scalar_value=layout.scalar_value,
            cell=cell.ravel(),
            is_inside=is_inside.ravel(),
        )

    def by_name(self) -> dict[str, NDArray[Any]]:
        return {one.name: getattr(self, one.name) for one in fields(self)}


def entries_of(
    obs: NDArray[np.uint8], tables: TokenTables
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int64], NDArray[np.int32]]:
    """place, value, row, start of a ``SparseBox``, from ``(N, W, 3)``."""
    rows, width, _ = obs.shape
    flat = obs.reshape(-1, 3)
    has_place = flat[:, 0] < GLOBAL_LOCATION
    # The longest list is several times as long as the mean, so padding is left out row by row.
    entry = has_place.nonzero()[0]
    tokens = flat.take(entry, axis=0)
    location, pair = tokens[:, 0].astype(np.intp), _pairs(tokens)
    place, value = tables.cell.take(location), tables.is_inside.take(location)
    place += tables.channel.take(pair)
    value *= tables.channel_value.take(pair)
    start = np.zeros(rows, np.int32)
    has_place.reshape(rows, width).sum(axis=1, dtype=np.int32)[:-1].cumsum(out=start[1:])
    return place, value, entry // width, start


def scalars_of(obs: NDArray[np.uint8], tables: TokenTables, num_scalars: int) -> NDArray[np.float32]:
    """The globals ``(N, G)`` in ``(N, W, 3)``."""
    rows, columns = len(obs), global_columns(obs[:, :, 0])
    if not columns or not num_scalars:
        return np.zeros((rows, num_scalars), np.float32)
    flat = obs[:, :columns].reshape(-1, 3)
    entry = (flat[:, 0] == GLOBAL_LOCATION).nonzero()[0]
    pair = _pairs(flat.take(entry, axis=0))
    place = entry // columns * num_scalars + tables.scalar.take(pair)
    sums = np.bincount(place, tables.scalar_value.take(pair), rows * num_scalars)
    return sums.astype(np.float32).reshape(rows, num_scalars)


def global_columns(locations: Any) -> int:
    """Columns of ``(N, W)`` up to the last one that has a global anywhere; they come first."""
    has_globals = (locations == GLOBAL_LOCATION).any(0).nonzero()
    last = has_globals[0] if isinstance(has_globals, tuple) else has_globals[:, 0]
    return int(last[-1]) + 1 if len(last) else 0


def _pairs(tokens: NDArray[np.uint8]) -> NDArray[np.intp]:
    pair = tokens[:, 1].astype(np.intp)
    pair <<= 8
    pair += tokens[:, 2]
    return pair
