"""Torch's optimizers without the way into torch.compile.

Torch wraps the methods of its optimizers for the case that they are compiled, and the first call of a wrapper imports
the compiler: 1.5 to 5 s and 100 MB in every process that trains. Nothing here compiles an optimizer, so these classes
run the wrapped functions themselves: the same arithmetic, and hooks and profiling as ever.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch


class _Eager(torch.optim.Optimizer):
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)


def _without_gradients(step: Callable[..., Any]) -> Callable[..., Any]:
    plain: Callable[..., Any] = torch.no_grad()(inspect.unwrap(step))
    return plain


class Adam(_Eager, torch.optim.Adam):
    """torch.optim.Adam."""

    step = _without_gradients(torch.optim.Adam.step)


class Muon(_Eager, torch.optim.Muon):
    """torch.optim.Muon."""

    step = _without_gradients(torch.optim.Muon.step)
