"""Writing into buffers from tensors and arrays, on the host and elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metta_ray.rl.arrays import as_tensor, library_of, native, put


def test_what_is_put_is_in_the_buffer_itself():
    buffer = torch.zeros(4, 2)
    rows = native(buffer)

    put(rows, (slice(0, 2), 0), torch.tensor([1.0, 2.0], requires_grad=True))
    put(rows, (slice(2, 4), 0), np.array([True, False]))
    put(rows, (slice(None), 1), 7.0)

    assert buffer.tolist() == [[1, 7], [2, 7], [1, 7], [0, 7]]
    assert not buffer.requires_grad


def test_a_tensor_elsewhere_takes_both_too():
    buffer = torch.zeros(3)
    put(buffer, slice(0, 1), torch.tensor([1.0], requires_grad=True))
    put(buffer, slice(1, 2), np.array([2.0], np.float32))
    put(buffer, slice(2, 3), 3)
    assert buffer.tolist() == [1, 2, 3]
    assert not buffer.requires_grad


@pytest.mark.parametrize("requires_grad", [False, True])
def test_the_way_there_and_back_shares_memory(requires_grad: bool):
    tensor = torch.ones(2, requires_grad=requires_grad)
    array = native(tensor)
    array[0] = 5.0
    assert library_of(array) is np
    assert library_of(tensor) is torch
    assert as_tensor(array).tolist() == tensor.tolist() == [5, 1]
