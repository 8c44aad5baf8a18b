"""The torch process group of learner replicas, made anew whenever their number changes."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore

from metta_ray.common.errors import ConfigError
from metta_ray.service.orders import GroupPlace


class ProcessGroup:
    """This process's membership. timeout_s: a member silent for so long is an error for all the others."""

    def __init__(self, node_ip: str) -> None:
        self._node_ip = node_ip
        self._store: TCPStore | None = None

    def open_store(self, timeout_s: float) -> tuple[str, int]:
        """Rank 0 opens the meeting point on a free port: (host, port)."""
        self._store = TCPStore(
            self._node_ip, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout_s)
        )
        return self._node_ip, self._store.port

    def join(self, place: GroupPlace, device: torch.device, timeout_s: float) -> None:
        """Leaves the old group, if any, and joins the new one; returns when all members are there."""
        self.leave()
        if place.world_size == 1:
            return
        interface = interface_of(self._node_ip)
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ[name] = interface
        timeout = timedelta(seconds=timeout_s)
        store = self._store if place.rank == 0 else None
        if store is None:
            store = TCPStore(place.host, place.port, is_master=False, timeout=timeout)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=PrefixStore(f"group-{place.group}", store),
            rank=place.rank,
            world_size=place.world_size,
            timeout=timeout,
        )
        dist.barrier()

    def set_timeout(self, timeout_s: float) -> None:
        """From now on. Torch has no public call for it; where this one is gone the first timeout stays."""
        if dist.is_initialized():
            with suppress(AttributeError):
                dist.distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_s))

    def leave(self) -> None:
        """Safe where the other members are dead."""
        if dist.is_initialized():
            with suppress(RuntimeError):
                dist.destroy_process_group()


def interface_of(address: str) -> str:
    """Name of the network interface that holds ``address``: without it gloo may choose the loopback one."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.family == socket.AF_INET and entry.address == address for entry in addresses):
            return name
    raise ConfigError(
        f"no network interface of {socket.gethostname()} holds the Ray node's address {address}; start Ray with "
        "--node-ip-address set to an address of this machine"
    )
