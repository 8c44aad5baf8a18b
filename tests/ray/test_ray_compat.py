"""The names of Ray's that it does not promise exist in the version that is installed; a new one fails here first."""

from __future__ import annotations

import json

from tests.ray import ray_compat


def test_the_private_names_exist() -> None:
    from ray._private.internal_api import get_memory_info_reply
    from ray._private.state import state
    from ray._raylet import GcsClient
    from ray.core.generated import autoscaler_pb2

    assert callable(get_memory_info_reply)
    assert callable(state.get_draining_nodes)
    assert callable(GcsClient)
    assert autoscaler_pb2.DrainNodeReason.Value(ray_compat.DRAIN_REASON)


def test_lossy_calls_are_asked_for_as_json() -> None:
    environment = ray_compat.lossy_calls(25, 10)

    chance = json.loads(environment["RAY_testing_rpc_failure"])[ray_compat.PUSH_TASK]
    assert (chance["req_failure_prob"], chance["resp_failure_prob"]) == (25, 10)
