"""Asks a run and its cluster from a process of its own: ``remote_control.py RUN DATA_DIR ADDRESS``, then one JSON list
per line. The cluster can be asked after the run has ended, too."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from metta_ray.service.connection import Where, cluster, coordinator_of, find_run
from metta_ray.service.identity import namespace_of


def named_actors() -> list[str]:
    from ray.util import list_named_actors

    return sorted(f"{actor['namespace']}/{actor['name']}" for actor in list_named_actors(all_namespaces=True))


def free_resources() -> dict[str, float]:
    import ray

    return ray.available_resources()


def nodes() -> list[dict[str, Any]]:
    import ray

    return [{"id": node["NodeID"], "alive": node["Alive"], "resources": node["Resources"]} for node in ray.nodes()]


def drain(node_id: str, deadline_ms: int) -> bool:
    import ray

    from tests.ray.ray_compat import drain_node

    return drain_node(ray.get_runtime_context().gcs_address, node_id, deadline_ms)


def object_store_bytes() -> int:
    from tests.ray.ray_compat import object_store_bytes_used

    return object_store_bytes_used()


def spilled_bytes() -> int:
    from tests.ray.ray_compat import spilled_bytes

    return spilled_bytes()


OF_THE_CLUSTER: dict[str, Callable[..., Any]] = {
    "named_actors": named_actors,
    "free_resources": free_resources,
    "nodes": nodes,
    "drain": drain,
    "object_store_bytes": object_store_bytes,
    "spilled_bytes": spilled_bytes,
}


def main(run: str, data_dir: str, address: str) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what Ray prints is no answer

    def say(answer: dict[str, Any]) -> None:
        print(json.dumps(answer, default=str), file=answers)

    address = address or str(find_run(Where.of(data_dir, None, None, {}), run).ray_address)
    with cluster(address, namespace_of(run)):
        say({"ok": True})
        for line in sys.stdin:
            method, *arguments = json.loads(line)
            try:
                ask = OF_THE_CLUSTER.get(method) or getattr(coordinator_of(run), method)
                say({"value": ask(*arguments)})
            except Exception as error:
                say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main(*sys.argv[1:])
