"""Training in several processes under ``torchrun``: one rank per process, torch DDP between them."""

from __future__ import annotations

import os
import warnings
from collections import deque
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from metta_ray.agent.metta_agent import MettaAgent
from metta_ray.common.errors import ConfigError


def setup_device_and_distributed(base_device: str = "cuda") -> torch.device:
    """The device of this process; joins the process group if ``torchrun`` started it (``LOCAL_RANK`` is set).

    NCCL for CUDA, gloo otherwise. CUDA asked for but absent: a warning, and the CPU. ConfigError for a name that is
    no device.
    """
    device = _known_device(base_device)
    if device.type == "cuda" and not torch.cuda.is_available():
        warnings.warn(f"device {base_device!r} asked for but CUDA is not available: using the CPU", stacklevel=2)
        device = torch.device("cpu")
    local_rank = os.environ.get("LOCAL_RANK")
    if local_rank is None:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(local_rank))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def _known_device(name: str) -> torch.device:
    try:
        return torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device={name!r} is not a device; use 'cpu', 'cuda' or 'cuda:0'") from None


def setup_distributed_vars() -> tuple[bool, int, int]:
    """``(is_master, world_size, rank)``; ``(True, 1, 0)`` without a process group."""
    if not dist.is_initialized():
        return True, 1, 0
    rank = dist.get_rank()
    return rank == 0, dist.get_world_size(), rank


def cleanup_distributed() -> None:
    """Leaves the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


class DistributedMettaAgent(DistributedDataParallel):
    """DDP that answers for the policy's own attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.module, name)


def wrap_agent_distributed(agent: MettaAgent, device: torch.device | str) -> MettaAgent | DistributedMettaAgent:
    """The agent itself, or its DDP wrapper where a process group exists (rank 0's weights go to all)."""
    if not dist.is_initialized():
        return agent
    device = torch.device(device)
    wrapped = DistributedMettaAgent(agent, device_ids=[device] if device.type == "cuda" else None)
    # From here on buffers are the same everywhere: look-up tables of about 1 MB, which DDP would send again at every
    # forward pass, and what follows from the weights.
    wrapped.broadcast_buffers = False
    return wrapped


def unwrap_agent(policy: nn.Module) -> MettaAgent:
    """The policy inside a DDP wrapper, or the policy itself."""
    module = policy.module if isinstance(policy, DistributedDataParallel) else policy
    assert isinstance(module, MettaAgent)
    return module


# Tensors of the latest collectives. gloo's thread lets go of a tensor a moment after the collective has returned; were
# that the last reference, it would need the interpreter, which may be ending (the process then aborts) or be waiting
# for that very thread (it then hangs).
_latest: deque[Tensor] = deque(maxlen=4)


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over all ranks; every rank must call it. The tensor itself without a process group."""
    if not dist.is_initialized():
        return tensor
    total = tensor.to(_group_device())
    _latest.append(total)
    dist.all_reduce(total)
    return total.to(tensor.device)


def sum_over_ranks(count: int) -> int:
    """A number of all ranks together, e.g. agent steps; every rank must call it."""
    return int(all_reduce_sum(torch.tensor(count)))


def barrier() -> None:
    """Waits for all ranks."""
    if dist.is_initialized():
        dist.barrier()


def broadcast_bytes(payload: bytes, source: int = 0) -> bytes:
    """The ``payload`` of rank ``source`` on every rank. Bytes, not objects: nothing is unpickled."""
    if not dist.is_initialized():
        return payload
    device = _group_device()
    is_source = dist.get_rank() == source
    length = torch.tensor([len(payload)], dtype=torch.int64, device=device)
    _latest.append(length)
    dist.broadcast(length, src=source)
    if is_source:
        buffer = torch.from_numpy(np.frombuffer(payload, np.uint8).copy()).to(device)
    else:
        buffer = torch.empty(int(length), dtype=torch.uint8, device=device)
    _latest.append(buffer)
    dist.broadcast(buffer, src=source)
    return payload if is_source else buffer.cpu().numpy().tobytes()


def gather_bytes(payload: bytes) -> list[bytes]:
    """Every rank's ``payload`` in rank order, on every rank."""
    _, world_size, _ = setup_distributed_vars()
    return [broadcast_bytes(payload, source) for source in range(world_size)]


def _group_device() -> str:
    """Where collectives of this process group want their tensors."""
    return "cpu" if dist.get_backend() == "gloo" else "cuda"
