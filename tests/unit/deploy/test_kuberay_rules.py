"""What a schema cannot see: the rules by which KubeRay's operator refuses objects, and what we promise of every pod."""

from __future__ import annotations

import re
from typing import Any

import pytest
import ray
import yaml
from packaging.version import Version

from tests.unit.deploy.manifests import (
    DIRECTORIES,
    OVERLAYS,
    bytes_of,
    cluster_spec,
    cores_of,
    groups,
    objects,
    one,
    pod_templates,
    ray_container,
    walk,
)

MAX_CLUSTER_NAME, MAX_JOB_NAME = 53, 47
RESOURCE_PARAMETERS = {"num-cpus", "num-gpus", "memory", "resources"}
ALPHA_OPTIONS = {"networkPolicy", "tlsOptions", "historyServerOptions"}
PART_OF = "app.kubernetes.io/part-of"

in_every_directory = pytest.mark.parametrize("directory", DIRECTORIES)


# The operator's rules (validation.go of KubeRay v1.7).


@in_every_directory
def test_names_are_short_labels(directory: str) -> None:
    for object_ in objects(directory):
        if object_["kind"] in ("RayCluster", "RayJob"):
            limit = MAX_CLUSTER_NAME if object_["kind"] == "RayCluster" else MAX_JOB_NAME
            assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", object_["metadata"]["name"])
            assert len(object_["metadata"]["name"]) <= limit


@in_every_directory
def test_the_ray_version_is_the_installed_one_and_knows_tokens(directory: str) -> None:
    version = cluster_spec(directory)["rayVersion"]

    assert version == ray.__version__
    assert Version(version) >= Version("2.52.0")


@in_every_directory
def test_resources_of_a_group_are_told_in_one_place(directory: str) -> None:
    for name, group in groups(cluster_spec(directory)).items():
        in_parameters = RESOURCE_PARAMETERS & set(group["rayStartParams"])
        assert not (in_parameters and group.get("resources")), name
        assert "labels" not in group["rayStartParams"]


@in_every_directory
def test_bounds_of_a_group_hold_its_number(directory: str) -> None:
    for group in cluster_spec(directory)["workerGroupSpecs"]:
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@in_every_directory
def test_autoscaler_v2_gets_pods_that_are_never_restarted(directory: str) -> None:
    spec = cluster_spec(directory)

    assert spec["enableInTreeAutoscaling"]
    assert spec["autoscalerOptions"]["version"] == "v2"
    for group in groups(spec).values():
        assert group["template"]["spec"].get("restartPolicy", "Never") == "Never"
        assert not group.get("suspend")
        assert "RAY_enable_autoscaler_v2" not in environment(group)


@in_every_directory
def test_redis_is_told_in_one_place(directory: str) -> None:
    head = cluster_spec(directory)["headGroupSpec"]

    assert not {"REDIS_PASSWORD", "REDIS_USERNAME", "RAY_REDIS_ADDRESS"} & set(environment(head))
    assert not {"redis-password", "redis-username"} & set(head["rayStartParams"])


@in_every_directory
def test_nothing_needs_a_feature_gate(directory: str) -> None:
    spec = cluster_spec(directory)

    assert not ALPHA_OPTIONS & set(spec)
    assert spec.get("gcsFaultToleranceOptions", {}).get("backend", "redis") == "redis"


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_job_may_be_tried_again_and_cleans_up(name: str) -> None:
    job = one(f"jobs/{name}", "RayJob")["spec"]

    assert job["backoffLimit"] > 0
    assert job["shutdownAfterJobFinishes"]  # ttlSecondsAfterFinished needs it
    assert job["ttlSecondsAfterFinished"] >= 0
    assert "clusterSelector" not in job  # which excludes backoffLimit
    assert job["submissionMode"] == "K8sJobMode"  # SidecarMode takes no submitterPodTemplate
    assert job["submitterPodTemplate"]["spec"]["restartPolicy"] == "Never"
    assert isinstance(yaml.safe_load(job["runtimeEnvYAML"]), dict)


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_jobs_cluster_is_the_overlays_without_redis(name: str) -> None:
    standing, own = cluster_spec(f"overlays/{name}"), cluster_spec(f"jobs/{name}")

    assert standing.pop("gcsFaultToleranceOptions")
    assert own == standing
    assert {"StatefulSet", "Service", "RayCluster"}.isdisjoint(object_["kind"] for object_ in objects(f"jobs/{name}"))


# What we promise.


@in_every_directory
def test_tokens_are_asked_for_in_so_many_words(directory: str) -> None:
    spec = cluster_spec(directory)

    assert spec["authOptions"] == {"mode": "token", "secretName": "metta-ray-token"}
    for group in groups(spec).values():
        assert not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} & set(environment(group)), "the operator sets them"


@in_every_directory
def test_pods_obey_the_restricted_pod_security_standard(directory: str) -> None:
    for name, template in pod_templates(directory):
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert all({"persistentVolumeClaim", "emptyDir", "configMap"} & set(v) for v in pod["volumes"])
        for container in pod["containers"]:
            assert is_confined(container["securityContext"]), name
    assert is_confined(cluster_spec(directory)["autoscalerOptions"]["securityContext"])


def is_confined(context: dict[str, Any]) -> bool:
    return context == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@in_every_directory
def test_every_container_asks_for_what_it_may_use(directory: str) -> None:
    for name, template in pod_templates(directory):
        for container in template["spec"]["containers"]:
            requests, limits = container["resources"]["requests"], container["resources"]["limits"]
            assert set(requests) == set(limits) >= {"cpu", "memory"}, name
            assert requests["memory"] == limits["memory"]  # memory cannot be taken back
            assert cores_of(requests["cpu"]) <= cores_of(limits["cpu"])


@in_every_directory
def test_every_lasting_container_is_probed(directory: str) -> None:
    for name, template in pod_templates(directory):
        for container in template["spec"]["containers"]:
            if name != "submitter":
                assert {"readinessProbe", "livenessProbe"} <= set(container), name


@in_every_directory
def test_ray_writes_only_where_a_volume_is(directory: str) -> None:
    for name, group in groups(cluster_spec(directory)).items():
        mounts = {mount["mountPath"]: mount["name"] for mount in ray_container(group)["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in group["template"]["spec"]["volumes"]}
        assert {"/data", "/home/ray", "/tmp", "/dev/shm"} <= set(mounts), name
        assert set(mounts.values()) == set(volumes)
        assert environment(group)["DATA_DIR"] == "/data"


@in_every_directory
def test_object_stores_fit_into_shared_memory_and_leave_room(directory: str) -> None:
    for name, group in groups(cluster_spec(directory)).items():
        (shm,) = [volume for volume in group["template"]["spec"]["volumes"] if volume["name"] == "shm"]
        store = int(group["rayStartParams"]["object-store-memory"])
        limit = bytes_of(ray_container(group)["resources"]["limits"]["memory"])
        assert shm["emptyDir"]["medium"] == "Memory"
        assert store <= bytes_of(shm["emptyDir"]["sizeLimit"]), name
        assert store <= 0.5 * limit, f"{name}: shared memory counts as the pod's"


@in_every_directory
def test_nothing_lands_on_the_head_and_learners_keep_their_number(directory: str) -> None:
    spec = cluster_spec(directory)

    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    learner = groups(spec)["learner"]
    assert learner["minReplicas"] == learner["maxReplicas"] >= 1


@in_every_directory
def test_only_who_may_be_lost_tolerates_spot_nodes(directory: str) -> None:
    spot = {"cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority", "spot"}

    for name, group in groups(cluster_spec(directory)).items():
        tolerated = {one_["key"] for one_ in group["template"]["spec"].get("tolerations", ())}
        assert spot <= tolerated if name in ("rollout", "evaluator") else spot.isdisjoint(tolerated), name


@in_every_directory
def test_rollout_nodes_offer_a_worker_for_each_core(directory: str) -> None:
    rollout = groups(cluster_spec(directory))["rollout"]

    assert rollout["resources"]["rollout"] == rollout["resources"]["CPU"]
    assert cores_of(rollout["resources"]["CPU"]) == cores_of(ray_container(rollout)["resources"]["limits"]["cpu"])


@pytest.mark.parametrize("directory", [d for d in DIRECTORIES if not d.endswith("laptop")])
def test_gpu_learners_ask_for_a_gpu_and_use_the_image_that_has_one(directory: str) -> None:
    for name, group in groups(cluster_spec(directory)).items():
        container = ray_container(group)
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (name == "learner")
        assert ("metta-ray-gpu" in container["image"]) == (name == "learner")


@in_every_directory
def test_images_have_a_version(directory: str) -> None:
    images = [value for path, value in walk(objects(directory)) if path.endswith(".image")]

    assert images
    for image in images:
        tag = image.rpartition("/")[2].partition(":")[2]
        assert re.search(r"\d+\.\d+\.\d+", tag), image


@in_every_directory
def test_the_network_policy_covers_every_pod_and_opens_no_ray_port_to_all(directory: str) -> None:
    policy = one(directory, "NetworkPolicy")["spec"]

    assert policy["podSelector"] == {"matchLabels": {PART_OF: "metta-ray"}}
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert all(rule.get("from") for rule in policy["ingress"])
    for name, template in pod_templates(directory):
        assert template["metadata"]["labels"][PART_OF] == "metta-ray", name


@in_every_directory
def test_no_secret_is_written_down(directory: str) -> None:
    assert "Secret" not in {object_["kind"] for object_ in objects(directory)}
    for path, value in walk(objects(directory)):
        if isinstance(value, dict) and re.search("PASSWORD|TOKEN", str(value.get("name", "")).upper()):
            assert "value" not in value, path


def test_the_pod_monitor_reads_the_ports_that_pods_have() -> None:
    monitor = one("overlays/small-gpu", "PodMonitor")["spec"]
    spec = cluster_spec("overlays/small-gpu")

    assert monitor["selector"] == {"matchLabels": {PART_OF: "metta-ray"}}
    head_ports = {port["name"]: port["containerPort"] for port in ray_container(spec["headGroupSpec"])["ports"]}
    assert {endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]} <= set(head_ports)
    assert {head_ports[name] for name in ("metrics", "as-metrics", "dash-metrics")} == {8080, 44217, 44227}


def environment(group: dict[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry.get("value") for entry in ray_container(group)["env"]}
