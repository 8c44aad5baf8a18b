"""What ``kubectl kustomize DIR`` prints, for the features that ``deploy/kuberay`` uses and no others.

    objects = built(Path("deploy/kuberay/overlays/laptop"))

Anything else in a kustomization is refused, so that a new feature is added here before it is relied on. Where kubectl
is installed a test compares the two.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]

_CLUSTER_SCOPED = {"Namespace"}
_KNOWN = {
    "apiVersion",
    "kind",
    "namespace",
    "resources",
    "components",
    "configMapGenerator",
    "images",
    "patches",
    "replacements",
}


def built(directory: Path) -> list[Object]:
    """The objects of a kustomization, in no particular order."""
    return _accumulated(directory, [])


def _accumulated(directory: Path, objects: list[Object]) -> list[Object]:
    """``objects`` after this kustomization: a component changes what is there, so that comes in."""
    settings = yaml.safe_load((directory / "kustomization.yaml").read_text())
    unknown = set(settings) - _KNOWN
    assert not unknown, f"{directory}: this reader does not know {sorted(unknown)}"

    for name in settings.get("resources", ()):
        path = directory / name
        objects = objects + (built(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text())))
    objects = objects + [_config_map(directory, entry) for entry in settings.get("configMapGenerator", ())]
    for name in settings.get("components", ()):
        objects = _accumulated(directory / name, objects)

    for patch in settings.get("patches", ()):
        objects = _patched(directory, objects, patch)
    if "namespace" in settings:
        for one in objects:
            if one["kind"] not in _CLUSTER_SCOPED:
                one["metadata"]["namespace"] = settings["namespace"]
    for image in settings.get("images", ()):
        _rename_images(objects, image)
    for replacement in settings.get("replacements", ()):
        _replace(objects, replacement)
    return objects


def _config_map(directory: Path, entry: Object) -> Object:
    assert entry["options"] == {"disableNameSuffixHash": True}, "names with hashes are not known here"
    data = {name: (directory / name).read_text() for name in entry["files"]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": entry["name"]}, "data": data}


def _patched(directory: Path, objects: list[Object], patch: Object) -> list[Object]:
    text = (directory / patch["path"]).read_text() if "path" in patch else patch["patch"]
    content = yaml.safe_load(text)
    targets = [one for one in objects if _selected(one, patch["target"])]
    assert targets, f"{directory}: no object for the patch of {patch['target']}"
    if isinstance(content, dict):
        assert content.pop("$patch") == "delete", "of merge patches only $patch: delete is known here"
        return [one for one in objects if one not in targets]
    for one in targets:
        for operation in content:
            _apply(one, operation)
    return objects


def _apply(document: Any, operation: Object) -> None:
    """One operation of RFC 6902 on a document."""
    *parents, last = operation["path"].lstrip("/").split("/")
    for part in parents:
        document = document[int(part) if isinstance(document, list) else part]
    key: Any = int(last) if isinstance(document, list) else last
    match operation["op"]:
        case "add":
            document[key] = operation["value"]
        case "replace":
            document[key]  # must exist
            document[key] = operation["value"]
        case "remove":
            del document[key]
        case other:
            raise AssertionError(f"operation {other!r} is not known here")


def _rename_images(value: Any, image: Object) -> None:
    if isinstance(value, list):
        for item in value:
            _rename_images(item, image)
    elif isinstance(value, dict):
        for name, part in value.items():
            if name in ("containers", "initContainers"):
                for container in part:
                    if container["image"].rpartition(":")[0] == image["name"]:
                        container["image"] = f"{image['newName']}:{image['newTag']}"
            _rename_images(part, image)


def _replace(objects: list[Object], replacement: Object) -> None:
    source = dict(replacement["source"])
    field = source.pop("fieldPath")
    (found,) = [one for one in objects if _selected(one, source)]
    for target in replacement["targets"]:
        for one in objects:
            if _selected(one, target["select"]):
                for path in target["fieldPaths"]:
                    outer, _, inner = path.partition(".")
                    one[outer][inner] = copy.deepcopy(found[field])


def _selected(one: Object, target: Object) -> bool:
    return one["kind"] == target["kind"] and one["metadata"]["name"] == target["name"]
