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
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

_GLOBAL_HOOKS = (_global_optimizer_pre_hooks, _global_optimizer_post_hooks)


class _Eager(torch.optim.Optimizer):
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)


def _without_gradients(step: Callable[..., Any]) -> Callable[..., Any]:
    plain: Callable[..., Any] = torch.no_grad()(inspect.unwrap(step))
    return plain


class Adam(_Eager, torch.optim.Adam):
    """torch.optim.Adam. A fused step goes straight to the one operation that counts: what torch does around it takes
    several times as long for a small network."""

    _any_step = torch.optim.Optimizer.profile_hook_step(_without_gradients(torch.optim.Adam.step))

    def step(self, closure: Any = None) -> Any:
        return self._fused_step() if closure is None and self._is_plain() else self._any_step(closure)

    step.hooked = True  # type: ignore[attr-defined]  # torch need not wrap it

    def _is_plain(self) -> bool:
        """Fused, all parameters of one type and device, and nobody watches."""
        watches = (self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks, *_GLOBAL_HOOKS)
        if any(watches) or torch.autograd._profiler_enabled():  # type: ignore[attr-defined]
            return False
        kinds = {(one.device, one.dtype) for group in self.param_groups for one in group["params"]}
        return len(kinds) == 1 and all(group["fused"] for group in self.param_groups)

    @torch.no_grad()
    def _fused_step(self) -> None:
        for group in self.param_groups:
            tensors = self._tensors_of(group)
            *_, step_counts = tensors
            if not step_counts:
                continue
            beta1, beta2 = group["betas"]
            torch._foreach_add_(step_counts, 1)
            function = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
            function(
                *tensors,
                lr=group["lr"],
                beta1=beta1,
                beta2=beta2,
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=group["amsgrad"],
                maximize=group["maximize"],
            )

    def _tensors_of(self, group: dict[str, Any]) -> list[list[torch.Tensor]]:
        """Parameters with a gradient, their gradients, means, means of squares, largest of these, and step counts."""
        with_gradient = [one for one in group["params"] if one.grad is not None]
        states = [self.state[one] for one in with_gradient]
        if not all(states) or group["amsgrad"]:
            tensors: list[list[torch.Tensor]] = [[] for _ in range(6)]
            self._init_group(group, *tensors)  # type: ignore[no-untyped-call]
            return tensors
        kept = [[state[name] for state in states] for name in ("exp_avg", "exp_avg_sq")]
        return [with_gradient, [one.grad for one in with_gradient], *kept, [], [state["step"] for state in states]]


class Muon(_Eager, torch.optim.Muon):
    """torch.optim.Muon."""

    step = _without_gradients(torch.optim.Muon.step)
