"""Facts about the connected Ray cluster, with types."""

from __future__ import annotations

from typing import Any

import ray

HEAD = "node:__internal_head__"
"""A resource that only the head node has: a share of it pins an actor there."""


def total_resources() -> dict[str, float]:
    return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]


def free_resources() -> dict[str, float]:
    return dict(ray.available_resources())  # type: ignore[no-untyped-call]


def has_process(actor: Any) -> bool:
    """Whether an actor was given a process, in which its constructor may still be running; an ended one had one.
    False where this version of Ray does not say (its public call asks the dashboard, which need not be there)."""
    try:
        from ray._private.state import state

        facts = state.actor_table(actor._actor_id.hex())
    except Exception:
        return False
    return bool(facts.get("Pid")) or facts.get("State") in ("ALIVE", "RESTARTING", "DEAD")


def draining_nodes() -> set[str]:
    """Ids of nodes that were told to leave; none where this version of Ray does not say (it has no public call)."""
    try:
        from ray._private.state import state

        return set(state.get_draining_nodes())
    except Exception:
        return set()


def metrics_url() -> str | None:
    """Where Prometheus finds the metrics of the head, or of some node where none is called that."""
    nodes = [node for node in ray.nodes() if node["Alive"] and node.get("MetricsExportPort")]  # type: ignore[no-untyped-call]
    nodes.sort(key=lambda node: HEAD not in node["Resources"])
    return f"http://{nodes[0]['NodeManagerAddress']}:{nodes[0]['MetricsExportPort']}/metrics" if nodes else None


def own_address() -> str:
    """IP address of this process's node."""
    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
