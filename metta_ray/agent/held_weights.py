"""A network that acts with weights cast once per version, where autocast would cast them at each step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metta_ray.agent.derived import Derived


class HeldWeights:
    """Of one network. ``torch.func.functional_call`` does the same for any network, and looks through all its modules
    at each call: a twentieth of a step of few agents.

    A module that is put into the network later keeps its own weights, which autocast casts.
    """

    def __init__(self) -> None:
        self._cast = Derived(_cast)
        self._places: list[tuple[dict[str, Any], str]] | None = None

    def call(self, network: nn.Module, inputs: Tensor, dtype: torch.dtype) -> Tensor:
        """``network(inputs)`` without a gradient."""
        if self._places is None:
            self._places = _places_of_weights(network)
        weights = [holder[name] for holder, name in self._places]
        try:
            for (holder, name), cast in zip(self._places, self._cast(*weights, dtype=dtype), strict=True):
                holder[name] = cast
            outputs: Tensor = network(inputs)
        finally:
            for (holder, name), weight in zip(self._places, weights, strict=True):
                holder[name] = weight
        return outputs

    def __reduce__(self) -> tuple[Any, ...]:
        return HeldWeights, ()  # a copy of a policy has another network


def _places_of_weights(network: nn.Module) -> list[tuple[dict[str, Any], str]]:
    holders = [module._parameters for module in network.modules()]
    return [(holder, name) for holder in holders for name, weight in holder.items() if weight is not None]


def _cast(*weights: Tensor, dtype: torch.dtype) -> list[Tensor]:
    return [weight.to(dtype) for weight in weights]
