"""Facts about the connected Ray cluster, with types."""

from __future__ import annotations

import ray

HEAD = "node:__internal_head__"
"""A resource that only the head node has: a share of it pins an actor there."""


def total_resources() -> dict[str, float]:
    return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]


def free_resources() -> dict[str, float]:
    return dict(ray.available_resources())  # type: ignore[no-untyped-call]


def draining_nodes() -> set[str]:
    """Ids of nodes that were told to leave; none where this version of Ray does not say (it has no public call)."""
    try:
        from ray._private.state import state

        return set(state.get_draining_nodes())
    except Exception:
        return set()


def own_address() -> str:
    """IP address of this process's node."""
    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
