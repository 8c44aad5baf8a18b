"""Many arrays in one allocation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as some

from metta_ray.common.util.packed_arrays import PackedArrays

DTYPES = st.one_of(
    some.boolean_dtypes(),
    some.integer_dtypes(endianness="="),
    some.unsigned_integer_dtypes(endianness="="),
    some.floating_dtypes(endianness="="),
    some.complex_number_dtypes(endianness="="),
)
ARRAYS = some.arrays(DTYPES, some.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))


@settings(max_examples=40)  # of up to six arrays each
@given(st.dictionaries(st.text(max_size=8), ARRAYS, max_size=6))
def test_what_is_packed_comes_back(arrays: dict[str, Any]):
    unpacked = PackedArrays.pack(arrays).arrays()

    assert list(unpacked) == list(arrays)
    for name, array in arrays.items():
        assert unpacked[name].dtype == array.dtype
        assert unpacked[name].shape == array.shape
        assert unpacked[name].tobytes() == array.tobytes()


@given(ARRAYS)
def test_a_pack_is_a_copy(array: Any):
    packed = PackedArrays.pack({"array": array})
    before = array.tobytes()

    packed.buffer[:] ^= 255

    assert array.tobytes() == before


def test_any_order_of_axes_comes_back_contiguous():
    array = np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1)[::-1]

    unpacked = PackedArrays.pack({"array": array}).arrays()["array"]

    assert np.array_equal(unpacked, array)
    assert unpacked.flags.c_contiguous


def test_arrays_are_views_aligned_for_fast_reading():
    packed = PackedArrays.pack({"odd": np.zeros(3, np.uint8), "wide": np.zeros(5, np.float64)})

    assert all(np.shares_memory(array, packed.buffer) for array in packed.arrays().values())
    assert [place.offset for place in packed.layout] == [0, 64]
    assert packed.size_bytes == 128


def test_a_read_only_buffer_gives_read_only_views():
    packed = PackedArrays.pack({"array": np.arange(3)})
    packed.buffer.flags.writeable = False

    with pytest.raises(ValueError, match="read-only"):
        packed.arrays()["array"][0] = 1


def test_equal_content_has_equal_digests_and_other_content_or_names_have_others():
    array = np.arange(6, dtype=np.float32)
    digests = {
        PackedArrays.pack(arrays).digest()
        for arrays in ({"a": array}, {"a": array.copy()}, {"b": array}, {"a": array + 1}, {"a": array.reshape(2, 3)})
    }

    assert len(digests) == 4
