"""Policy weights on their way from the learner to the workers: one flat buffer, passed by reference.

Buffers of numpy, never dicts of torch tensors, which take eight times as long through the object store.
"""

from __future__ import annotations

import torch
from torch import nn

from metta_ray.agent.weights import copy_weights
from metta_ray.common.util.packed_arrays import PackedArrays


@torch.no_grad()
def weights_of(policy: nn.Module) -> PackedArrays:
    """A copy of the state dict."""
    return PackedArrays.pack({name: tensor.cpu().numpy() for name, tensor in policy.state_dict().items()})


def load_weights(policy: nn.Module, weights: PackedArrays, source: str) -> None:
    """Copies the weights into the policy; PolicyMismatchError, naming ``source``, if they are another's."""
    # Tensors over read-only memory are undefined behaviour in torch, so each is copied first.
    copy_weights(policy, {name: array.copy() for name, array in weights.arrays().items()}, source)
