"""What the processor or card does at best: products of matrices, and copies. Plain torch."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
MIN_S = 0.1


def matrix_rates(device: torch.device) -> dict[str, float]:
    """GFLOP/s by precision with the threads that torch has now.

    Small matrices on the processor: without instructions for bfloat16 it can be a hundred times slower.
    """
    size = 256 if device.type == "cpu" else 8192
    return {name: _matrix_rate(size, dtype, device) for name, dtype in PRECISIONS.items()}


def bf16_pays(rates: dict[str, float]) -> bool:
    return rates["bf16"] > rates["fp32"]


def copy_rate(device: torch.device) -> float:
    """GB/s, bytes read and written counted."""
    source = torch.empty(2**28 if device.type != "cpu" else 2**25, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return round(2 * source.numel() / _seconds(lambda: target.copy_(source), device) / 1e9, 1)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _matrix_rate(size: int, dtype: torch.dtype, device: torch.device) -> float:
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    return round(2 * size**3 / _seconds(lambda: a @ b, device) / 1e9, 1)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of one call, over at least a tenth of a second."""
    work()
    synchronize(device)
    began, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - began < MIN_S:
        work()
        calls += 1
        if calls % 8 == 0 or device.type == "cpu":
            synchronize(device)
    synchronize(device)
    return (time.perf_counter() - began) / calls
