"""The files of a policy: ``policy.safetensors`` (weights), ``policy.json`` (what they are), a manifest.

    model_0012/
      policy.safetensors   state dict of the unwrapped module
      policy.json          format version, run name, metadata, architecture
      manifest.json        size and SHA-256 of every file, written last
      scores.json          optional: scores found after saving; not in the manifest
      pin.<holder>         optional: protects the directory from deletion; not in the manifest
      …                    a trainer checkpoint is the same directory with more files; they are ignored here

Nothing here unpickles anything.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
from torch import Tensor, nn

from metta_ray.agent.policy_metadata import PolicyMetadata
from metta_ray.agent.policy_record import PolicyRecord
from metta_ray.common.errors import CheckpointError, ConfigError
from metta_ray.common.util import fs
from metta_ray.common.util.state_directory import MANIFEST, read_manifest, verify_manifest

WEIGHTS = "policy.safetensors"
DESCRIPTION = "policy.json"
SCORES = "scores.json"
KIND = "policy"
FORMAT_VERSION = 1


class PolicyDescription(NamedTuple):
    """What ``policy.json`` says, with later scores merged into the metadata."""

    run_name: str
    metadata: PolicyMetadata
    architecture: dict[str, Any]


class PolicyWeights(NamedTuple):
    """All that is needed to build the module any number of times."""

    architecture: dict[str, Any]
    tensors: dict[str, Tensor]


def unwrapped(policy: nn.Module) -> nn.Module:
    """The module itself, out of DistributedDataParallel and torch.compile, which rename its parameters."""
    while True:
        inner = getattr(policy, "module", None) or getattr(policy, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return policy
        policy = inner


def write_policy_files(directory: Path, record: PolicyRecord) -> None:
    """Writes weights and description into ``directory``, which the caller completes: a manifest must follow.

    ConfigError where the record's policy cannot describe its own architecture.
    """
    policy = unwrapped(record.policy)
    describe = getattr(policy, "architecture", None)
    if not callable(describe):
        raise ConfigError(
            f"policy record {record.run_name!r} holds a {type(policy).__name__}, which cannot be saved "
            "without pickle: it has no architecture(); build policies with Agent(...) or register the network"
        )
    description = {
        "format_version": FORMAT_VERSION,
        "run_name": record.run_name,
        "metadata": record.metadata.to_dict(),
        "architecture": describe(),
    }
    # Copies, because safetensors refuses tensors that share memory.
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in policy.state_dict().items()}
    fs.write_file(directory / WEIGHTS, safetensors.torch.save(tensors))
    fs.write_file(directory / DESCRIPTION, (json.dumps(description, indent=1) + "\n").encode())


def is_policy_directory(path: Path) -> bool:
    return (path / DESCRIPTION).is_file()


def read_description(directory: Path) -> PolicyDescription:
    """Reads the small files only. CheckpointError naming what is missing, cut short or of another format."""
    listed = read_manifest(directory)["files"]
    for name in (WEIGHTS, DESCRIPTION):
        path, expected = directory / name, listed.get(name, {}).get("size")
        if not path.is_file() or path.stat().st_size != expected:
            raise CheckpointError(f"{path} is missing or damaged; use another policy")
    description = _read_json(directory / DESCRIPTION)
    if description.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{directory / DESCRIPTION} has format version {description.get('format_version')!r}, this "
            f"package reads version {FORMAT_VERSION}; use the package version that wrote it"
        )
    try:
        metadata = PolicyMetadata.from_dict({**description["metadata"], **_later_scores(directory)})
        return PolicyDescription(description["run_name"], metadata, description["architecture"])
    except (KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{directory / DESCRIPTION} is damaged: {error}; use another policy") from error


def read_weights(directory: Path) -> PolicyWeights:
    """Reads weights after checking all files against the manifest; CheckpointError names a bad one."""
    verify_manifest(directory)
    description = read_description(directory)
    try:
        tensors = safetensors.torch.load((directory / WEIGHTS).read_bytes())
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{directory / WEIGHTS} is damaged: {error}; use another policy") from error
    return PolicyWeights(description.architecture, tensors)


def written_at(directory: Path) -> int:
    """When the directory was completed, in nanoseconds since 1970: the later of two of one epoch is newer."""
    return (directory / MANIFEST).stat().st_mtime_ns


def add_scores(directory: Path, scores: dict[str, Any]) -> None:
    """Remembers scores found after the policy was saved; later ones replace earlier ones of the same name."""
    fs.atomic_write_text(directory / SCORES, json.dumps({**_later_scores(directory), **scores}, indent=1) + "\n")


def _later_scores(directory: Path) -> dict[str, Any]:
    return _read_json(directory / SCORES) if (directory / SCORES).exists() else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; use another policy") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__} instead of an object; use another policy")
    return value
