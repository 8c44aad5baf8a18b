"""A convolution over a sparse box as a table: what a 1 at each place adds to every output."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


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


def conv_table(weight: Tensor, geometry: ConvGeometry, dtype: torch.dtype) -> Tensor:
    """From a kernel ``(O, C, k, k)`` to ``(height · width · C, rows · columns · O)``."""
    table: Tensor = _ConvTable.apply(weight, geometry, dtype)  # type: ignore[no-untyped-call]
    return table


class _ConvTable(torch.autograd.Function):
    """Written by hand because autograd would copy the whole table once for each output position."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, geometry: ConvGeometry, dtype: torch.dtype) -> Tensor:
        ctx.geometry, ctx.weight_dtype = geometry, weight.dtype
        outputs, channels = weight.shape[:2]
        shape = (geometry.height, geometry.width, channels, geometry.rows, geometry.columns, outputs)
        ctx.table_shape = shape
        table = torch.zeros(shape, dtype=dtype, device=weight.device)
        kernel = weight.permute(2, 3, 1, 0).to(dtype, memory_format=torch.contiguous_format)
        for row, column, cells, part in geometry.windows():
            table[(*cells, slice(None), row, column)] = kernel[part]
        return table.view(geometry.height * geometry.width * channels, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        geometry: ConvGeometry = ctx.geometry
        table = gradient.view(ctx.table_shape)
        channels, outputs = ctx.table_shape[2], ctx.table_shape[5]
        kernel_shape = (geometry.kernel, geometry.kernel, channels, outputs)
        kernel = torch.zeros(kernel_shape, dtype=ctx.weight_dtype, device=gradient.device)
        for row, column, cells, part in geometry.windows():
            kernel[part] += table[(*cells, slice(None), row, column)]
        return kernel.permute(3, 2, 0, 1), None, None
