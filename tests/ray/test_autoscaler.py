"""Ray's autoscaler (v2) adds nodes for workers that find no place, and takes back those that stand idle.

Its nodes are processes on this machine, made by the provider that Ray has for its own tests: everything else, from the
pending worker to the terminated node, is what happens in a cloud.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.ray.harness import Head, Lab, Run, node_address, wait_until

pytestmark = pytest.mark.chaos  # nodes end

HEAD_ID = "f" * 51 + "00000"
WORKER_NODE = {"CPU": 1, "rollout": 1, "object_store_memory": 80_000_000}
RUN = [
    *("--preset", "cartpole", "--env", "slow_parts:CartPole", "--agent.architecture", "slow_parts:Network"),
    *("--evaluate", "false", "--workers", "1:4", "--rollout.num-workers", 1),
    *("--trainer.batch-size", 512, "--trainer.minibatch-size", 256, "--trainer.update-epochs", 1),
    *("--rollout.num-envs", 4, "--rollout.num-cpus", 0.1, "--rollout.resources", '{"rollout": 1}'),
    *("--total-timesteps", 100_000_000),
]


def settings(gcs_address: str) -> dict[str, Any]:
    """As in a file for ``ray up``, for a provider that Ray does not name."""
    return {
        "cluster_name": "autoscaled",
        "max_workers": 4,
        "idle_timeout_minutes": 0.05,
        "upscaling_speed": 1,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": gcs_address,
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "auth": {"ssh_user": "nobody"},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 2}, "node_config": {}, "max_workers": 0},
            "rollout": {"resources": WORKER_NODE, "node_config": {}, "min_workers": 0, "max_workers": 4},
        },
        **{f"{part}_commands": [] for part in ("initialization", "setup", "head_setup", "worker_setup")},
        **{f"{part}_start_ray_commands": [] for part in ("head", "worker")},
        **{part: {} for part in ("head_node", "worker_nodes", "file_mounts")},
        "cluster_synced_files": [],
        "rsync_exclude": [],
        "rsync_filter": [],
    }


@pytest.fixture
def head(lab: Lab) -> Head:
    env = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "RAY_NODE_TYPE_NAME": "ray.head.default",
    }

    def settings_file(port: int) -> Path:
        file = lab.directory / "autoscaling.json"
        file.write_text(json.dumps(settings(f"{node_address()}:{port}")))
        return file

    return lab.head(num_cpus=2, env=env, autoscaling=settings_file)


def rollout_nodes(run: Run) -> set[str]:
    """Ids of living nodes that the autoscaler made."""
    return {node["id"] for node in run.ask("nodes") if node["alive"] and node["resources"].get("rollout")}


def test_nodes_come_while_the_learner_waits_and_go_when_it_no_longer_does(lab: Lab, head: Head) -> None:
    oracle = lab.directory / "oracle"
    oracle.mkdir(exist_ok=True)
    (oracle / "slow-environments").write_text("0.003")
    run = lab.train(*RUN, run="auto", head=head)
    run.wait_for_version(1)
    began = time.monotonic()
    assert len(rollout_nodes(run)) == 1, "the first worker has brought its node"

    status = run.wait_for_status(lambda status: status["workers"]["ready"] >= 3, "three workers", 90.0)
    print(f"{status['workers']['ready']} workers after {time.monotonic() - began:.1f} s: {status['events']}")
    assert any("workers wanted: learner waited" in event for event in status["events"])
    most = len(rollout_nodes(run))
    assert 3 <= most <= 4

    (oracle / "slow-environments").unlink()
    (oracle / "slow-learner").write_text("1")  # so long that the wait for the next batch is nothing beside it
    began = time.monotonic()
    wait_until(lambda: len(rollout_nodes(run)) < most, 90.0, "a node is given back", every_s=0.5)
    print(f"{len(rollout_nodes(run))} nodes after {time.monotonic() - began:.1f} s: {run.status()['events']}")
    version = run.version
    run.wait_for_version(version + 2)
    assert not run.ledger().totals()["lost"], "whoever left had delivered"

    (oracle / "slow-learner").unlink()
    run.finish()
    run.check_books()
