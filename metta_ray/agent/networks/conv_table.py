"""A convolution over a sparse box as a table: what a 1 at each place adds to every output."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from metta_ray.agent.token_encoder import SparseBox, bag, gradient_of_table


class ConvGeometry(NamedTuple):
    """height, width of the box in cells; top, left: zeros before it; rows, columns of the output."""

    height: int
    width: int
    top: int
    left: int
    rows: int
    columns: int
    kernel: int
    stride: int

    def windows(self) -> Iterator[tuple[int, int, tuple[slice, slice], tuple[slice, slice]]]:
        """(output row, output column, cells of the box under the kernel, part of the kernel over the box)."""
        for row in range(self.rows):
            y, y_kernel = _overlap(row * self.stride - self.top, self.kernel, self.height)
            for column in range(self.columns):
                x, x_kernel = _overlap(column * self.stride - self.left, self.kernel, self.width)
                yield row, column, (y, x), (y_kernel, x_kernel)


def _overlap(start: int, kernel: int, size: int) -> tuple[slice, slice]:
    """Cells ``[start, start + kernel)`` that lie in ``[0, size)``, and the same counted from ``start``."""
    first, last = max(start, 0), min(start + kernel, size)
    return slice(first, last), slice(first - start, last - start)


class ConvTable:
    """From a kernel ``(O, C, k, k)`` to the table ``(height · width · C, rows · columns · O)``.

    Most of the table is 0 and stays 0, so it is written into memory that is kept.
    """

    def __init__(self, geometry: ConvGeometry) -> None:
        self.geometry = geometry
        self._memory: Tensor | None = None

    def __call__(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """The same memory each time: valid until the next call."""
        table = self._zeros(weight, dtype)
        kernel = weight.detach().permute(2, 3, 1, 0).to(dtype, memory_format=torch.contiguous_format)
        for row, column, cells, part in self.geometry.windows():
            table[(*cells, slice(None), row, column)] = kernel[part]
        return table.flatten(3).flatten(0, 2)

    def convolved(self, weight: Tensor, box: SparseBox, dtype: torch.dtype) -> Tensor:
        """The convolution of a sparse box, ``(N, rows · columns · O)``, with its gradient."""
        output: Tensor = _Convolved.apply(weight, box, self, dtype)  # type: ignore[no-untyped-call]
        return output

    def gradient_of_weight(self, gradient: Tensor, weight: Tensor) -> Tensor:
        """From that of the table."""
        table = gradient.view(self._shape(weight))
        outputs, channels, size, _ = weight.shape
        kernel = torch.zeros((size, size, channels, outputs), dtype=weight.dtype, device=weight.device)
        for row, column, cells, part in self.geometry.windows():
            kernel[part] += table[(*cells, slice(None), row, column)]
        return kernel.permute(3, 2, 0, 1)

    def _zeros(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        memory, shape = self._memory, self._shape(weight)
        if memory is None or memory.dtype != dtype or memory.device != weight.device:
            memory = self._memory = torch.zeros(shape, dtype=dtype, device=weight.device)
        return memory

    def _shape(self, weight: Tensor) -> tuple[int, ...]:
        at = self.geometry
        return (at.height, at.width, weight.shape[1], at.rows, at.columns, weight.shape[0])


class _Convolved(torch.autograd.Function):
    """Written by hand because autograd would copy the whole table once for each output position."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, box: SparseBox, table: ConvTable, dtype: torch.dtype) -> Tensor:
        rows = table(weight, dtype)
        ctx.save_for_backward(weight, *box)
        ctx.table, ctx.places = table, len(rows)
        return bag(rows, box)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        weight, *box = ctx.saved_tensors
        of_table = gradient_of_table(gradient, SparseBox(*box), ctx.places)
        return ctx.table.gradient_of_weight(of_table, weight), None, None, None
