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
        self._holders: list[dict[str, Any]] | None = None

    def call(self, network: nn.Module, inputs: Tensor, dtype: torch.dtype) -> Tensor:
        """``network(inputs)`` without a gradient."""
        if self._holders is None:
            self._holders = [module._parameters for module in network.modules()]
        own = [(holder, *item) for holder in self._holders for item in holder.items() if item[1] is not None]
        held = self._cast(*[weight for _, _, weight in own], dtype=dtype)
        try:
            for (holder, name, _), cast in zip(own, held, strict=True):
                holder[name] = cast
            outputs: Tensor = network(inputs)
        finally:
            for holder, name, weight in own:
                holder[name] = weight
        return outputs

    def __reduce__(self) -> tuple[Any, ...]:
        return HeldWeights, ()  # a copy of a policy has another network


def _cast(*weights: Tensor, dtype: torch.dtype) -> list[Tensor]:
    return [weight.to(dtype) for weight in weights]
