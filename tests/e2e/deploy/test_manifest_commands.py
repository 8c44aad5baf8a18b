"""The commands of the Kubernetes manifests run: Redis, every group of nodes, the probes, the job with its run file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.deploy.operator import ray_start, submission, wait_for_head
from tests.e2e.deploy.place import PASSWORD, TOKEN, Place
from tests.ray.harness import Session
from tests.unit.deploy.manifests import cluster_spec, groups, one, ray_container

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed"),
]

OVERLAY = "laptop"
SPEC = cluster_spec(f"overlays/{OVERLAY}")
AUTH = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
"""What the operator sets for authOptions.mode: token."""
SHORT = "--total-timesteps 8192"


class Pods:
    """The overlay's cluster, each pod a session."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.ports = {name: place.agent_ports() for name in groups(SPEC)}
        self.sessions: dict[str, Session] = {}
        (run_file,) = one(f"overlays/{OVERLAY}", "ConfigMap", "metta-ray-run")["data"].items()
        (place.directory / "run" / run_file[0]).write_text(run_file[1])

    def start_redis(self) -> None:
        config = one(f"overlays/{OVERLAY}", "ConfigMap", "metta-ray-redis")["data"]["redis.conf"]
        directory = self.place.directory / "redis"
        here = f"port {self.place.redis_port}\nbind 127.0.0.1\ndir {directory}"
        (directory / "redis.conf").write_text(config.replace("dir /data", here))
        self.sessions["redis"] = self.place.start(
            self.redis["command"], {"REDIS_PASSWORD": PASSWORD}, name="redis", ports={}
        )
        for probe in ("readinessProbe", "livenessProbe"):
            self.place.wait_for_success(
                self.redis[probe]["exec"]["command"], {"REDIS_PASSWORD": PASSWORD}, ports={}, timeout_s=10
            )

    @property
    def redis(self) -> dict[str, Any]:
        container: dict[str, Any] = one(f"overlays/{OVERLAY}", "StatefulSet", "metta-ray-redis")["spec"]["template"][
            "spec"
        ]["containers"][0]
        return container

    def start(self, name: str) -> None:
        is_head = name == "head"
        line = ray_start(groups(SPEC)[name], is_head=is_head)
        if is_head:
            line += " --redis-password=$REDIS_PASSWORD"  # as the operator adds it
        self.sessions[name] = self.place.start_node(line, self.environment(name), name=name, ports=self.ports[name])

    def environment(self, name: str) -> dict[str, str]:
        """What the manifest and the operator give a container."""
        own = {entry["name"]: entry["value"] for entry in ray_container(groups(SPEC)[name])["env"]}
        if name != "head":
            return own | AUTH | {"RAY_gcs_rpc_server_reconnect_timeout_s": "600", "RAY_ADDRESS": "head:6379"}
        redis = {
            "RAY_REDIS_ADDRESS": SPEC["gcsFaultToleranceOptions"]["redisAddress"],
            "RAY_external_storage_namespace": "6f1d",
            "REDIS_PASSWORD": PASSWORD,
        }
        return own | AUTH | redis | {"RAY_ADDRESS": "127.0.0.1:6379"}

    def probe(self, name: str, probe: str) -> list[str]:
        command: list[str] = ray_container(groups(SPEC)[name])[probe]["exec"]["command"]
        return command


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pods]:
    place = Place(tmp_path_factory.mktemp("pods"))
    try:
        started = Pods(place)
        started.start_redis()
        started.start("head")
        place.wait_for_success(
            ["bash", "-c", wait_for_head("head:6379")], started.environment("rollout"), ports={}, timeout_s=30
        )
        for name in ("rollout", "learner", "evaluator"):
            started.start(name)
        yield started
    finally:
        place.end()


@pytest.mark.parametrize("name", ["head", "rollout", "learner", "evaluator"])
def test_every_probe_succeeds(pods: Pods, name: str) -> None:
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        pods.place.wait_for_success(pods.probe(name, probe), pods.environment(name), ports=pods.ports[name])


def test_the_job_trains_with_the_run_file_on_the_nodes_of_its_roles(pods: Pods) -> None:
    job = one(f"jobs/{OVERLAY}", "RayJob")["spec"]
    line = submission(job, dashboard="http://localhost:8265", submission_id="metta-ray-1")

    answer = pods.place.run(["bash", "-c", f"{line} {SHORT}"], AUTH, ports={}, timeout_s=150)

    assert answer.returncode == 0, answer.stdout[-4000:] + answer.stderr[-2000:]
    assert "evaluation of model_" in answer.stdout
    listing = pods.place.run(["metta-ray", "runs", "--json"], {"DATA_DIR": "/data"}, ports={})
    (run,) = json.loads(listing.stdout)
    assert (run["name"], run["state"]) == ("first", "done")
    assert run["config"]["rollout"]["resources"] == {"rollout": 1.0}
    assert Path(run["run_dir"]).is_relative_to(pods.place.directory / "data")
    audit = pods.place.run(["metta-ray", "audit", "first"], {"DATA_DIR": "/data"}, ports={})
    assert audit.returncode == 0, audit.stdout


def test_without_the_token_nobody_is_let_in(pods: Pods) -> None:
    line = "ray job list --address http://localhost:8265"

    without = pods.place.run(["bash", "-c", line], {"RAY_AUTH_MODE": "disabled"}, ports={})
    wrong = pods.place.run(["bash", "-c", line], {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}, ports={})
    right = pods.place.run(["bash", "-c", line], AUTH, ports={})

    assert without.returncode != 0
    assert wrong.returncode != 0
    assert right.returncode == 0, right.stderr


def test_redis_holds_the_clusters_state_and_its_password_is_in_no_argument_list_of_its_own(pods: Pods) -> None:
    keys = pods.place.run(
        ["sh", "-c", "redis-cli --scan --pattern 'RAY6f1d*' | head -1"], {"REDISCLI_AUTH": PASSWORD}, ports={}
    )

    assert keys.stdout.startswith("RAY6f1d@"), keys.stdout + keys.stderr
    for process in pods.sessions["redis"].members():
        assert PASSWORD not in " ".join(process.cmdline())


def test_the_probes_of_a_node_that_has_ended_fail(pods: Pods) -> None:
    pods.sessions["evaluator"].end()

    answer = pods.place.run(
        pods.probe("evaluator", "livenessProbe"), pods.environment("evaluator"), ports=pods.ports["evaluator"]
    )

    assert answer.returncode != 0
