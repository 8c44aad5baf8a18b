"""A closer look at some epochs: a torch profile, statistics of the gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from metta_ray.rl.distributed import setup_distributed_vars
from metta_ray.rl.trainer_config import TorchProfilerConfig
from metta_ray.rl.update import should_run_on_interval


@contextmanager
def profiled_epoch(config: TorchProfilerConfig, epoch: int) -> Iterator[Path | None]:
    """Profiles the block on rank 0 when a multiple of ``interval_epochs`` is reached (never at epoch 0).

    Yields where the gzipped Chrome trace will lie, or None. Open it at chrome://tracing or ui.perfetto.dev.
    """
    is_master, _, _ = setup_distributed_vars()
    if not is_master or epoch == 0 or not should_run_on_interval(epoch, config.interval_epochs):
        yield None
        return
    directory = Path(config.profile_dir)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"epoch_{epoch:04d}.json.gz"
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, record_shapes=True, profile_memory=True) as profiler:
        yield path
    profiler.export_chrome_trace(str(path))


@torch.no_grad()
def gradient_stats(policy: nn.Module) -> dict[str, float]:
    """``grad/mean``, ``grad/variance``, ``grad/norm`` over all gradients of the last minibatch (after clipping)."""
    gradients = [p.grad.flatten().float() for p in policy.parameters() if p.grad is not None]
    if not gradients:
        return {}
    values = torch.cat(gradients)
    return {
        "grad/mean": values.mean().item(),
        "grad/variance": values.var(correction=0).item(),
        "grad/norm": values.norm().item(),
    }
