"""What is done to a policy's weights: clipping, L2 towards a reference, statistics, copying."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metta_ray.common.errors import PolicyMismatchError


def weight_matrices(module: nn.Module) -> dict[str, nn.Parameter]:
    """Name → parameter of everything with at least two axes (biases and log-stds are not weights)."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.dim() >= 2}


class ReferenceWeights(nn.Module):
    """Buffers, one per weight matrix: they move with the module, and are saved and loaded with it.

    Empty until ``copy_from``; loading a state dict that has them creates them.
    """

    def copy_from(self, weights: dict[str, nn.Parameter], blend: float = 1.0) -> None:
        """First call: a copy. Later: ``reference ← (1 - blend) · reference + blend · weight``."""
        for name, weight in weights.items():
            key = _buffer_name(name)
            if key in self._buffers:
                self.get_buffer(key).lerp_(weight.detach(), blend)
            else:
                self.register_buffer(key, weight.detach().clone())

    @property
    def is_empty(self) -> bool:
        return not self._buffers

    def squared_distance(self, weights: dict[str, nn.Parameter]) -> Tensor:
        """Σ ‖W − W_ref‖², with gradient to the weights."""
        distances = [(weight - self.get_buffer(_buffer_name(name))).square().sum() for name, weight in weights.items()]
        return torch.stack(distances).sum()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        for key, value in state_dict.items():
            name = key.removeprefix(prefix)
            if key.startswith(prefix) and name not in self._buffers:
                self.register_buffer(name, torch.empty_like(value))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _buffer_name(parameter_name: str) -> str:
    return parameter_name.replace(".", "/")


def largest_weights(weights: dict[str, nn.Parameter]) -> dict[str, float]:
    return {name: float(weight.detach().abs().max()) for name, weight in weights.items()}


@torch.no_grad()
def weight_metrics(weights: dict[str, nn.Parameter]) -> dict[str, dict[str, float]]:
    """Name → statistics of the matrix (further axes flattened into the second).

    norm: Frobenius. largest_sv, mean_sv: singular values. effective_rank: exp of the entropy of the
    singular values as a distribution (Roy and Vetterli 2007). collapsed_share: share of singular values
    below 1 % of the largest.
    """
    metrics = {}
    for name, weight in weights.items():
        singular = torch.linalg.svdvals(weight.detach().flatten(1).float())
        share = singular / singular.sum().clamp_min(1e-12)
        metrics[name] = {
            "norm": float(singular.square().sum().sqrt()),
            "largest_sv": float(singular[0]),
            "mean_sv": float(singular.mean()),
            "effective_rank": float(torch.special.entr(share).sum().exp()),
            "collapsed_share": float((singular < 0.01 * singular[0]).float().mean()),
        }
    return metrics


def copy_weights(module: nn.Module, weights: dict[str, np.ndarray[Any, Any]], source: str) -> None:
    """Loads a state dict of arrays; PolicyMismatchError, naming ``source``, if it is of another
    architecture.
    """
    own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    saved = {name: array.shape for name, array in weights.items()}
    different = sorted(
        name
        for name in own.keys() | saved.keys()
        # Reference weights exist from their first use on; a module that has none yet takes them over.
        if own.get(name) != saved.get(name) and not (name.startswith("reference_weights.") and name not in own)
    )
    if different:
        name = different[0]
        raise PolicyMismatchError(
            f"the policy in {source} has another architecture than this agent: {len(different)} of its "
            f"parameters differ, e.g. {name}: saved {saved.get(name)}, here {own.get(name)}. Use the agent "
            "config it was trained with (config.yaml of its run), or another run name"
        )
    module.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
