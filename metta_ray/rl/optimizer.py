"""One gradient step: backward, accumulation, clipping, the update, and a guard against numbers that are none."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from metta_ray.common.errors import ConfigError, TrainingDiverged
from metta_ray.rl.distributed import unwrap_agent
from metta_ray.rl.eager_optimizers import Adam, Muon

OPTIMIZER_TYPES = ("adam", "muon")
_WAYS = ("foreach", "fused")


class Optimizer:
    """Adam, or Muon for matrices with Adam for everything else (biases, convolutions, recurrent weights).

    max_nonfinite_updates: after that many skipped updates in a row ``step`` raises TrainingDiverged.
    """

    def __init__(
        self,
        optimizer_type: str = "adam",
        policy: nn.Module | None = None,
        learning_rate: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float = 0.5,
        *,
        max_nonfinite_updates: int = 3,
    ):
        if policy is None:
            raise ConfigError("Optimizer needs policy=…, the agent whose parameters it updates")
        if optimizer_type not in OPTIMIZER_TYPES:
            raise ConfigError(
                f"optimizer_type={optimizer_type!r} is unknown; known: {', '.join(map(repr, OPTIMIZER_TYPES))}"
            )
        self.policy = policy
        self.max_grad_norm = max_grad_norm
        self.max_nonfinite_updates = max_nonfinite_updates
        self.last_grad_norm = math.nan
        self.skipped_updates = 0
        self._skipped_in_a_row = 0
        self._accumulated = 0

        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in policy.named_parameters():
            is_matrix = optimizer_type == "muon" and _is_hidden_matrix(name, parameter)
            (matrices if is_matrix else others).append(parameter)
        self.optimizers: list[torch.optim.Optimizer] = [
            # One pass over all parameters instead of a dozen operations for each of them.
            Adam(others, lr=learning_rate, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)
        ]
        if matrices:
            # Scaled so that one learning rate serves both halves (Liu et al. 2025, "Muon is scalable").
            muon = Muon(matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
            self.optimizers.append(muon)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The torch optimizer (the Adam half for ``muon``)."""
        return self.optimizers[0]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self, loss: Tensor, epoch: int, accumulate_steps: int = 1) -> bool:
        """Takes one minibatch's loss; every ``accumulate_steps``-th call updates the parameters.

        Gradients of a group are averaged, so k minibatches of m steps give the gradient of one of k·m. Returns
        True if the parameters were updated. A loss or gradient that is not finite skips the update; under
        several ranks all see it, because the averaged gradient is the same everywhere. ``epoch`` is not used:
        groups are counted in minibatches.

        Raises TrainingDiverged after ``max_nonfinite_updates`` skipped updates in a row.
        """
        del epoch
        if self._accumulated == 0:
            self.zero_grad()
        # A loss that is not finite may still have a finite gradient: poison it, so that every rank notices.
        scale = 1.0 / accumulate_steps if math.isfinite(loss.item()) else math.nan
        (loss if scale == 1.0 else loss * scale).backward()  # type: ignore[no-untyped-call]
        self._accumulated += 1
        if self._accumulated < accumulate_steps:
            return False
        self._accumulated = 0
        return self._update()

    def zero_grad(self) -> None:
        """Forgets gradients, also those of an unfinished group."""
        self._accumulated = 0
        for parameter in self._parameters():
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizers": [o.state_dict() for o in self.optimizers],
            "skipped_updates": self.skipped_updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError if the state belongs to other parameters or another type of optimizer."""
        states = state["optimizers"]
        if len(states) != len(self.optimizers):
            raise ValueError(f"state of {len(states)} optimizers for {len(self.optimizers)}: another optimizer type")
        for optimizer, one in zip(self.optimizers, states, strict=True):
            _require_fit(optimizer, one)
            # How it is computed is no part of the state: a checkpoint of an older version says otherwise.
            ways = [{name: group[name] for name in _WAYS if name in group} for group in optimizer.param_groups]
            optimizer.load_state_dict(one)
            for group, way in zip(optimizer.param_groups, ways, strict=True):
                group.update(way)
        self.skipped_updates = int(state["skipped_updates"])

    def _update(self) -> bool:
        gradients = [parameter.grad for parameter in self._parameters() if parameter.grad is not None]
        grad_norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        self.last_grad_norm = grad_norm.item()
        if not math.isfinite(self.last_grad_norm):
            self._skip()
            return False
        if self.last_grad_norm > self.max_grad_norm:
            torch._foreach_mul_(gradients, self.max_grad_norm / (self.last_grad_norm + 1e-6))  # as clip_grad_norm_ does
        self._skipped_in_a_row = 0
        for optimizer in self.optimizers:
            optimizer.step()
        torch.autograd.graph.increment_version(self._parameters())  # fused optimizers do not count what they write
        unwrap_agent(self.policy).clip_weights()
        return True

    def _skip(self) -> None:
        self.zero_grad()
        self.skipped_updates += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= self.max_nonfinite_updates:
            raise TrainingDiverged(
                f"{self._skipped_in_a_row} updates in a row had a loss or gradient that is not finite; the weights "
                "are still those of the last good update. Lower optimizer.learning_rate or ppo.max_grad_norm, or "
                "look for rewards or observations that are not finite, then resume from the last checkpoint"
            )

    def _parameters(self) -> Iterator[nn.Parameter]:
        for group in self.param_groups:
            yield from group["params"]


def _is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Muon orthogonalises updates of matrices between hidden layers; recurrent gates are stacked, not one matrix."""
    is_output = name.split(".")[0] in ("actor", "critic")
    return parameter.ndim == 2 and not is_output and "lstm" not in name and "embed" not in name


def _require_fit(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Torch compares how many parameters there are, not their shapes."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    indices = [index for group in state["param_groups"] for index in group["params"]]
    if len(parameters) != len(indices):
        raise ValueError(f"state of {len(indices)} parameters for {len(parameters)}")
    for parameter, index in zip(parameters, indices, strict=True):
        for name, value in state["state"].get(index, {}).items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                raise ValueError(f"{name} of shape {tuple(value.shape)} for a parameter of {tuple(parameter.shape)}")
