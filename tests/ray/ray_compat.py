"""Every name of Ray's that Ray does not promise to keep, in one place. Imported where Ray is imported anyway."""

from __future__ import annotations

import json
from typing import Any

DRAIN_REASON = "DRAIN_NODE_REASON_PREEMPTION"
PUSH_TASK = "CoreWorkerService.grpc_client.PushTask"


def drain_node(address: str, node_id: str, deadline_ms: int, message: str = "taken away") -> bool:
    """Announces that a node will go away, as a cloud does. node_id in hex: a binary one is accepted and ignored."""
    from ray._raylet import GcsClient
    from ray.core.generated import autoscaler_pb2

    reason = autoscaler_pb2.DrainNodeReason.Value(DRAIN_REASON)
    accepted, _ = GcsClient(address=address).drain_node(node_id, reason, message, deadline_ms)
    return bool(accepted)


def draining_nodes() -> dict[str, int]:
    """Node id → deadline, of the connected cluster."""
    from ray._private.state import state

    nodes: dict[str, int] = state.get_draining_nodes()
    return nodes


def object_store_bytes_used() -> int:
    """Of all nodes of the connected cluster."""
    return int(_store_stats().object_store_bytes_used)


def spilled_bytes() -> int:
    """Written to disk by all nodes of the connected cluster, ever, for want of room in their object stores."""
    return int(_store_stats().spilled_bytes_total)


def _store_stats() -> Any:
    from ray._private.internal_api import get_memory_info_reply
    from ray._private.state import state

    return get_memory_info_reply(state).store_stats


def lossy_calls(request_percent: int, response_percent: int, method: str = PUSH_TASK) -> dict[str, str]:
    """Environment in which Ray, when it starts, loses calls of one method."""
    chance: dict[str, Any] = {
        "num_failures": -1,
        "req_failure_prob": request_percent,
        "resp_failure_prob": response_percent,
        "in_flight_failure_prob": 0,
    }
    return {
        "RAY_testing_rpc_failure": json.dumps({method: chance}),
        "RAY_testing_rpc_failure_avoid_intra_node_failures": "0",
    }


def slow_calls(seconds: float, method: str = "CoreWorkerService.grpc_server.PushTask") -> dict[str, str]:
    """Environment in which every process of a Ray lets each call of one method lie for a while before it obeys."""
    microseconds = int(seconds * 1e6)
    return {"RAY_testing_asio_delay_us": f"{method}={microseconds}:{microseconds}"}
