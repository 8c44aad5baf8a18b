"""Numpy on the host, torch on a device: the same few operations per agent and step, in whichever is faster there.

For the small arrays of a rollout step or a minibatch an operation of torch takes two to four microseconds on the host,
one of numpy a fifth of that. Both have the same names for what is used of them here, so a formula is written once,
over ``library_of`` its arguments.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = Any
"""A numpy array on the host, a tensor on a device."""
Numbers = Tensor | np.ndarray[Any, Any]


def native(tensor: Tensor) -> Array:
    """The tensor's own memory as an array; on a device the tensor, without its history."""
    return tensor.numpy(force=True) if tensor.is_cpu else tensor.detach()


def library_of(array: Array) -> Any:
    return np if isinstance(array, np.ndarray) else torch


def as_tensor(array: Array) -> Tensor:
    """The inverse of ``native``."""
    return torch.from_numpy(array) if isinstance(array, np.ndarray) else array


def quietly() -> AbstractContextManager[Any]:
    """Numbers that are not finite come up without a warning, as in torch; they are met where they matter."""
    return np.errstate(over="ignore", invalid="ignore", divide="ignore")


class Buffer:
    """A tensor as it is written to; a copy of it and of the tensor belong together again."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._native = tensor, native(tensor)

    def put(self, index: Any, values: Numbers | float) -> None:
        """``tensor[index] = values``; no gradient is kept."""
        if isinstance(self._native, np.ndarray):
            self._native[index] = values.numpy(force=True) if isinstance(values, Tensor) else values
        elif isinstance(values, float | int):
            self._native[index] = values
        else:
            self._native[index] = torch.as_tensor(values, device=self._tensor.device).detach()

    def __reduce__(self) -> tuple[Any, ...]:
        return Buffer, (self._tensor,)


def on_host(numbers: Numbers) -> np.ndarray[Any, Any]:
    return numbers.numpy(force=True) if isinstance(numbers, Tensor) else numbers
