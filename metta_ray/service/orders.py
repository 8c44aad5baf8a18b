"""What travels between the coordinator and its children: small values and references. Loads no torch.

A reference is kept inside a value or a list, so that Ray passes it on instead of fetching it on the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from metta_ray.common.errors import UsageError
from metta_ray.common.util.packed_arrays import PackedArrays
from metta_ray.envs.tasks import TaskWeights

# Rollout.


@dataclass(frozen=True)
class PublishedWeights:
    """version: number of updates behind these weights. content: PackedArrays, or the reference to them."""

    version: int
    content: Any


@dataclass(frozen=True)
class Ticket:
    """The coordinator's numbered order for one fragment.

    number: unique in the run, never reused. generation: of the coordinator that wrote it.
    weights: what to act with; loaded only if newer than what the worker has.
    tasks: what new episodes are drawn from; None for environments without tasks.
    settled: tickets of this worker that need not be remembered any longer.
    """

    number: int
    generation: int
    weights: PublishedWeights
    tasks: TaskWeights | None = None
    settled: tuple[int, ...] = ()


# Training.


@dataclass(frozen=True)
class GroupPlace:
    """One replica's seat. group: number of this forming, so that answers of an earlier one are recognised.

    host, port: where rank 0 keeps the store through which the others find it.
    """

    group: int
    rank: int
    world_size: int
    host: str = ""
    port: int = 0


@dataclass(frozen=True)
class UpdateOrder:
    """Train on one batch. version: policy version before it, which is also the number of the epoch.

    group: the forming of the learner group that it is for. batch: the staged batch to use.
    agent_step_before, agent_step: trained agent steps without and with this batch.
    settings: dotted names below ``trainer`` that were changed while the run goes on, all of them each time.
    staleness: of the oldest fragment; above 0 an older policy collected some of the data.
    """

    generation: int
    group: int
    batch: int
    version: int
    agent_step_before: int
    agent_step: int
    tickets: tuple[int, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    staleness: int = 0
    compare_replicas: bool = False


@dataclass(frozen=True)
class UpdateResult:
    """What one update was. version: after it. digest: of the weights, where replicas are compared.

    seconds: ``training``, ``waiting`` (for the batch to be staged), ``publishing`` (packing weights and optimiser).
    """

    incarnation: str
    rank: int
    version: int
    agent_step: int
    tickets: tuple[int, ...]
    losses: Mapping[str, float]
    hyperparameters: Mapping[str, float]
    metrics: Mapping[str, float]
    seconds: Mapping[str, float]
    skipped_updates: int
    digest: str | None = None


@dataclass(frozen=True)
class Staged:
    """seconds: ``fetching`` from the object store, ``copying`` into the learner's tensors."""

    batch: int
    size_bytes: int
    seconds: Mapping[str, float]


# Checkpoints.


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds beside weights, optimiser and workers. coordinator: a tree of JSON values and arrays."""

    version: int
    agent_step: int
    stats: Mapping[str, Any]
    coordinator: Mapping[str, Any]
    is_final: bool = False


@dataclass(frozen=True)
class Saved:
    path: str
    size_bytes: int
    seconds: float


@dataclass(frozen=True)
class Restored:
    """What a run starts from. path: the checkpoint, or None for a new run. workers: snapshots, by their number.

    initial_policy: where the weights of a new run came from, if not from chance.
    passed_over: checkpoints that are damaged, with the reason.
    """

    path: str | None = None
    version: int = 0
    agent_step: int = 0
    coordinator: Mapping[str, Any] = field(default_factory=dict)
    workers: Mapping[int, NDArray[np.uint8]] = field(default_factory=dict)
    initial_policy: str | None = None
    passed_over: tuple[str, ...] = ()


def fetch(reference: Any, timeout_s: float) -> Any:
    """What a reference stands for; plain values are themselves. UsageError where it does not arrive in time."""
    if not isinstance(reference, ray.ObjectRef):
        return reference
    try:
        return ray.get(reference, timeout=timeout_s)
    except ray.exceptions.GetTimeoutError:
        raise UsageError(f"an object did not arrive within {timeout_s:.0f} s") from None


def fetch_weights(weights: PublishedWeights, timeout_s: float) -> PackedArrays:
    packed = fetch(weights.content, timeout_s)
    assert isinstance(packed, PackedArrays)
    return packed
