"""Values that follow from weights, computed once per version of the weights while a policy acts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Derived(Generic[T]):
    """The last result of ``compute(*weights)``, until a weight is written to or replaced, or a gradient asked for.

    Only without gradients: a result that was kept has no history. torch counts writes to a tensor, but not those of
    fused optimizers (ours tells it, see ``Optimizer``) or through ``.data``; that whoever trains asks for gradients
    first covers the former anyway.
    """

    def __init__(self, compute: Callable[..., T]) -> None:
        self._compute = compute
        self._key: tuple[Any, ...] = ()
        self._weights: tuple[Tensor, ...] = ()
        self._value: T | None = None

    def __call__(self, *weights: Tensor, dtype: torch.dtype) -> T:
        """``compute(*weights, dtype=dtype)``"""
        if torch.compiler.is_compiling():
            return self._compute(*weights, dtype=dtype)
        if torch.is_grad_enabled():
            self._value = None
            return self._compute(*weights, dtype=dtype)
        key = (dtype, *[(weight._version, weight.data_ptr()) for weight in weights])
        if self._value is None or key != self._key:
            # A tensor made in inference mode could not itself be weights that something else follows from.
            with torch.inference_mode(False), torch.no_grad():
                self._key, self._value = key, self._compute(*weights, dtype=dtype)
            self._weights = weights  # while they are kept, no others can come to lie at their addresses
        return self._value

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of a policy has other weights; and what was kept may be a view, which torch would refuse to copy.
        return Derived, (self._compute,)
