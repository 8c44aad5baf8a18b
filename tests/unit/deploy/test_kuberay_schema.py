"""Every field of the manifests exists and has the type that the API gives it.

Ray's kinds are checked against a table of the fields that are used, and in full where METTA_RAY_CRD_DIR names a folder
with KubeRay's custom resource definitions; the kinds of Kubernetes itself against its own schemas.
"""

from __future__ import annotations

import os
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.unit.deploy.manifests import DIRECTORIES, KUBERAY, objects, pod_templates

KUBERNETES = "1.32"
CRD_DIR = os.environ.get("METTA_RAY_CRD_DIR")
HANDBOOK = (KUBERAY.parent / "README.md").read_text()

Pod = "a pod template"
GROUP = {
    "rayStartParams": {str: str},
    "template": Pod,
    "resources": {str: str},
}
CLUSTER = {
    "rayVersion": str,
    "authOptions": {"mode": ("token",), "secretName": str},
    "gcsFaultToleranceOptions": {
        "backend": ("redis", "rocksdb"),
        "storage": {"size": str, "accessModes": [str], "deletionPolicy": ("DeleteWithCluster", "Retain")},
        "redisAddress": str,
        "redisPassword": {"valueFrom": {"secretKeyRef": {"name": str, "key": str}}},
    },
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": {
        "version": ("v1", "v2"),
        "upscalingMode": ("Default", "Aggressive", "Conservative"),
        "idleTimeoutSeconds": int,
        "imagePullPolicy": str,
        "resources": {str: {str: str}},
        "securityContext": {
            "allowPrivilegeEscalation": bool,
            "readOnlyRootFilesystem": bool,
            "capabilities": {"drop": [str]},
        },
        "volumeMounts": [{"name": str, "mountPath": str}],
    },
    "headGroupSpec": GROUP,
    "workerGroupSpecs": [
        GROUP
        | {
            "groupName": str,
            "replicas": int,
            "minReplicas": int,
            "maxReplicas": int,
            "idleTimeoutSeconds": int,
        }
    ],
}
FIELDS: dict[str, Any] = {
    "RayCluster": CLUSTER,
    "RayJob": {
        "entrypoint": str,
        "runtimeEnvYAML": str,
        "metadata": {str: str},
        "submissionMode": ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
        "backoffLimit": int,
        "shutdownAfterJobFinishes": bool,
        "ttlSecondsAfterFinished": int,
        "rayClusterSpec": CLUSTER,
        "submitterPodTemplate": Pod,
    },
    "PodMonitor": {
        "selector": {"matchLabels": {str: str}},
        "podTargetLabels": [str],
        "podMetricsEndpoints": [
            {"port": str, "interval": str, "relabelings": [{"sourceLabels": [str], "targetLabel": str}]}
        ],
    },
}


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_every_field_is_in_the_table_of_those_that_are_used(directory: str) -> None:
    for one in objects(directory):
        if one["kind"] in FIELDS:
            assert set(one) == {"apiVersion", "kind", "metadata", "spec"}
            assert faults(one["spec"], FIELDS[one["kind"]], one["kind"]) == []
        if one["apiVersion"] == "ray.io/v1" and CRD_DIR:
            validator(one["kind"]).validate(one)


def test_a_misspelt_field_and_a_wrong_type_are_found() -> None:
    (cluster,) = [one for one in objects("overlays/laptop") if one["kind"] == "RayCluster"]

    cluster["spec"]["autoscalerOptions"]["idleTimoutSeconds"] = 1
    cluster["spec"]["workerGroupSpecs"][0]["minReplicas"] = "1"

    assert len(faults(cluster["spec"], CLUSTER, "RayCluster")) == 2
    if CRD_DIR:
        assert len(list(validator("RayCluster").iter_errors(cluster))) == 2


def test_the_handbooks_other_store_of_the_head_fits() -> None:
    (cluster,) = [one for one in objects("overlays/laptop") if one["kind"] == "RayCluster"]
    (block,) = re.findall(r"^```yaml\n(gcsFault.*?)^```$", HANDBOOK, flags=re.DOTALL | re.MULTILINE)

    cluster["spec"] |= yaml.safe_load(block)

    assert cluster["spec"]["gcsFaultToleranceOptions"]["backend"] == "rocksdb"
    assert faults(cluster["spec"], CLUSTER, "RayCluster") == []
    if CRD_DIR:
        validator("RayCluster").validate(cluster)


def test_the_handbooks_line_makes_the_rules_an_object_of_prometheus_operator() -> None:
    (line,) = re.findall(r"^(\(printf .*)> prometheus-rule.yaml$", HANDBOOK, flags=re.MULTILINE)

    made = subprocess.run(["bash", "-euc", line], cwd=KUBERAY.parents[1], capture_output=True, text=True, check=True)

    rule = yaml.safe_load(made.stdout)
    assert (rule["kind"], rule["metadata"]) == ("PrometheusRule", {"name": "metta-ray"})
    assert rule["spec"] == yaml.safe_load((KUBERAY.parent / "prometheus" / "rules" / "metta_ray.yml").read_text())


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_kinds_of_kubernetes_obey_its_schemas(directory: str) -> None:
    own = [one for one in objects(directory) if one["kind"] not in FIELDS]
    pods = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"] | {"name": name}, "spec": template["spec"]}
        for name, template in pod_templates(directory)
    ]

    for one in own + pods:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)


def faults(value: Any, allowed: Any, path: str) -> list[str]:
    """What in a value the table does not know."""
    match allowed:
        case str():
            return []  # a pod template, which Kubernetes' own schema is for
        case type():
            return [] if type(value) is allowed else [f"{path} is a {type(value).__name__}, not a {allowed.__name__}"]
        case tuple():
            return [] if value in allowed else [f"{path} is {value!r}, not one of {allowed}"]
        case [item]:
            return [fault for n, part in enumerate(value) for fault in faults(part, item, f"{path}[{n}]")]
        case dict():
            any_name = allowed.get(str)
            return [
                fault
                for name, part in value.items()
                for fault in (
                    [f"{path}.{name} is unknown"]
                    if name not in allowed and any_name is None
                    else faults(part, allowed.get(name, any_name), f"{path}.{name}")
                )
            ]
    raise AssertionError(f"{path}: {allowed!r} in the table")


@cache
def validator(kind: str) -> jsonschema.Draft202012Validator:
    """The definition of a kind, as strict as ``kubectl`` about unknown fields."""
    path = Path(str(CRD_DIR)) / f"ray.io_{kind.lower()}s.yaml"
    definition = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = [one for one in definition["spec"]["versions"] if one["name"] == "v1"]
    return jsonschema.Draft202012Validator(_strict(version["schema"]["openAPIV3Schema"], is_root=True))


def _strict(schema: Any, *, is_root: bool = False) -> Any:
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {name: _strict(part) for name, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and "type" in schema:
        if is_root:
            strict["properties"]["metadata"] = {"type": "object"}
        strict.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        strict["type"] = ["integer", "string"]
    return strict
