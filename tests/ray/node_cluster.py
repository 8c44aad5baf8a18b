"""A ``ray.cluster_utils.Cluster`` in a process of its own. Obeys one JSON list per line, answers with lines "> …".

["add", 2]     adds a node with two cores → its number
["remove", 1]  → true, when its processes have ended
"""

from __future__ import annotations

import json
import sys
from typing import Any

from ray.cluster_utils import Cluster


def main(head_cpus: int) -> None:
    head = {"num_cpus": head_cpus, "object_store_memory": 200_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes: list[Any] = []
    say(cluster.address)
    for line in sys.stdin:
        command, number = json.loads(line)
        if command == "add":
            nodes.append(cluster.add_node(num_cpus=number, object_store_memory=100_000_000))
            say(len(nodes) - 1)
        else:
            cluster.remove_node(nodes[number])
            say(True)


def say(answer: Any) -> None:
    print(f"\n> {json.dumps(answer)}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
