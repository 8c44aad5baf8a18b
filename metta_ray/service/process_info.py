"""Where a child of the coordinator lives and what is installed there."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Mapping
from dataclasses import dataclass

import psutil
import ray

from metta_ray.common.errors import ConfigError
from metta_ray.rl.run_directories import package_versions

MUST_AGREE = ("python", "ray", "torch", "mettagrid", "metta_ray")


@dataclass(frozen=True)
class ProcessInfo:
    """created: start time of the process, which with the pid names it for good."""

    incarnation: str
    pid: int
    created: float
    host: str
    node_id: str
    versions: dict[str, str]
    rss_bytes: int

    @classmethod
    def of_this_process(cls, incarnation: str) -> ProcessInfo:
        return cls(
            incarnation=incarnation,
            pid=os.getpid(),
            created=psutil.Process().create_time(),
            host=socket.gethostname(),
            node_id=ray.get_runtime_context().get_node_id() if ray.is_initialized() else platform.node(),
            versions=package_versions(),
            rss_bytes=psutil.Process().memory_info().rss,
        )


def require_same_versions(own: Mapping[str, str], who: str, info: ProcessInfo) -> None:
    """ConfigError naming both versions where a child's node has another one installed than the coordinator's."""
    for package in MUST_AGREE:
        if own.get(package) != info.versions.get(package):
            raise ConfigError(
                f"{package} is {own.get(package)} on the coordinator's node and {info.versions.get(package)} on "
                f"{info.host} ({who}); install the same version on all nodes"
            )
