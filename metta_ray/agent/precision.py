"""What a policy computes in."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """What autocast would compute in on this tensor's device."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32


def in_float32(device: torch.device) -> AbstractContextManager[Any]:
    """Switches autocast off; costs nothing where it is off."""
    return torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()


def is_onednn_used(x: Tensor) -> bool:
    """Whether oneDNN computes with these inputs: on the host, in a precision that it has, outside a compiled graph."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return compute_dtype(x) in _onednn_dtypes()


@cache
def _onednn_dtypes() -> tuple[torch.dtype, ...]:
    # On other processors torch may call another library by this name, which has not all of these kernels.
    is_its_own = platform.machine().lower() in ("x86_64", "amd64")
    if not is_its_own or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return ()
    has_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return (torch.float32, torch.bfloat16) if has_bf16 else (torch.float32,)
