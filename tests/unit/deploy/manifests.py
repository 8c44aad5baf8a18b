"""The objects of ``deploy/kuberay`` and what is in them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tests.unit.deploy.kustomization import Object, built

KUBERAY = Path(__file__).parents[3] / "deploy" / "kuberay"
OVERLAYS = ("laptop", "small-gpu", "large-spot")
DIRECTORIES = tuple(f"{kind}/{name}" for kind in ("overlays", "jobs") for name in OVERLAYS)


@cache
def _built(directory: str) -> list[Object]:
    return built(KUBERAY / directory)


def objects(directory: str) -> list[Object]:
    """All objects of e.g. ``overlays/laptop``; the caller's own copy."""
    return copy.deepcopy(_built(directory))


def one(directory: str, kind: str, name: str = "metta-ray") -> Object:
    (found,) = [o for o in objects(directory) if o["kind"] == kind and o["metadata"]["name"] == name]
    return found


def cluster_spec(directory: str) -> Object:
    """The specification of the Ray cluster, a standing one or a job's."""
    is_job = directory.startswith("jobs/")
    spec: Object = (
        one(directory, "RayJob")["spec"]["rayClusterSpec"] if is_job else one(directory, "RayCluster")["spec"]
    )
    return spec


def groups(spec: Object) -> dict[str, Object]:
    """Group name → group of nodes; the head's name is ``head``."""
    return {"head": spec["headGroupSpec"]} | {group["groupName"]: group for group in spec["workerGroupSpecs"]}


def pod_templates(directory: str) -> Iterator[tuple[str, Object]]:
    """(name, pod template) of every pod that somebody will make from these objects."""
    for name, group in groups(cluster_spec(directory)).items():
        yield name, group["template"]
    for object_ in objects(directory):
        if object_["kind"] == "StatefulSet":
            yield object_["metadata"]["name"], object_["spec"]["template"]
        if object_["kind"] == "RayJob":
            yield "submitter", object_["spec"]["submitterPodTemplate"]


def ray_container(group: Object) -> Object:
    container: Object = group["template"]["spec"]["containers"][0]
    return container


def bytes_of(quantity: str) -> int:
    """A Kubernetes quantity of memory: ``512Mi``, ``2G``, ``1000``."""
    units = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 10**3, "M": 10**6, "G": 10**9}
    number, unit = quantity.rstrip("KMGTik"), quantity[len(quantity.rstrip("KMGTik")) :]
    return int(number) * (units[unit] if unit else 1)


def cores_of(quantity: str | int) -> float:
    """A Kubernetes quantity of cores: ``500m`` or ``2``."""
    text = str(quantity)
    return float(text.removesuffix("m")) / 1000 if text.endswith("m") else float(text)


def walk(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of everything in a document."""
    yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield from walk(part, f"{path}.{key}" if path else str(key))
