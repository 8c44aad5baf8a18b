"""Writing into buffers from tensors and arrays, on the host and elsewhere."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

from metta_ray.rl import arrays
from metta_ray.rl.arrays import Buffer, as_tensor, library_of, native


def test_what_is_put_is_in_the_tensor_itself():
    tensor = torch.zeros(4, 2)
    buffer = Buffer(tensor)

    buffer.put((slice(0, 2), 0), torch.tensor([1.0, 2.0], requires_grad=True))
    buffer.put((slice(2, 4), 0), np.array([True, False]))
    buffer.put((slice(None), 1), 7.0)

    assert tensor.tolist() == [[1, 7], [2, 7], [1, 7], [0, 7]]
    assert not tensor.requires_grad


def test_a_tensor_elsewhere_takes_all_too(monkeypatch):
    monkeypatch.setattr(arrays, "native", Tensor.detach)  # as on a device
    tensor = torch.zeros(3)
    buffer = Buffer(tensor)
    buffer.put(slice(0, 1), torch.tensor([1.0], requires_grad=True))
    buffer.put(slice(1, 2), np.array([2.0], np.float32))
    buffer.put(slice(2, 3), 3)
    assert tensor.tolist() == [1, 2, 3]
    assert not tensor.requires_grad


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_writes_into_the_copied_tensor(copied):
    tensor = torch.zeros(2)
    other, buffer = copied((tensor, Buffer(tensor)))
    buffer.put(slice(None), 1.0)
    assert (tensor.tolist(), other.tolist()) == ([0, 0], [1, 1])


@pytest.mark.parametrize("requires_grad", [False, True])
def test_the_way_there_and_back_shares_memory(requires_grad: bool):
    tensor = torch.ones(2, requires_grad=requires_grad)
    array = native(tensor)
    array[0] = 5.0
    assert library_of(array) is np
    assert library_of(tensor) is torch
    assert as_tensor(array).tolist() == tensor.tolist() == [5, 1]
