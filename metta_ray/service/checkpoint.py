"""Checkpoints of the service: those of the library with the coordinator's and the workers' state in place of ranks'.

checkpoints/model_0012/
  policy.safetensors, policy.json     the policy, readable by PolicyStore
  trainer.safetensors, trainer.json   counters and optimiser
  coordinator.…                       ledger, curriculum, settings
  worker3.…                           environments, recurrent state and chance of rollout worker 3
  manifest.json                       size and SHA-256 of every file
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metta_ray.agent.metta_agent import MettaAgent
from metta_ray.agent.policy_files import read_weights, write_policy_files
from metta_ray.agent.policy_metadata import PolicyMetadata
from metta_ray.agent.policy_record import FILE_SCHEME, PolicyRecord, make_model_name
from metta_ray.agent.policy_store import PolicyStore
from metta_ray.common.errors import CheckpointError
from metta_ray.common.util.fs import atomic_directory
from metta_ray.common.util.state_directory import (
    load_tree,
    save_tree,
    tree_from_bytes,
    tree_to_bytes,
    verify_manifest,
    write_manifest,
)
from metta_ray.rl.trainer_checkpoint import FORMAT_VERSION, KIND, TRAINER, trainer_checkpoints
from metta_ray.service.orders import Contents, Restored, Saved

logger = logging.getLogger(__name__)

COORDINATOR = "coordinator"
WORKER = "worker"


class Found(NamedTuple):
    """A checkpoint that was read; weights and optimiser stay in the learner."""

    restored: Restored
    weights: dict[str, NDArray[Any]]
    optimizer: dict[str, Any]


def write(
    checkpoint_dir: Path,
    contents: Contents,
    policy: MettaAgent,
    optimizer: dict[str, Any],
    workers: Mapping[int, NDArray[np.uint8]],
    store: PolicyStore,
    keep_last: int,
) -> Saved:
    """Writes ``model_<version>``, complete or not at all, then deletes older ones beyond ``keep_last`` (0: none)."""
    began = time.perf_counter()
    directory = checkpoint_dir / make_model_name(contents.version)
    details = {
        "agent_step": contents.agent_step,
        "epoch": contents.version,
        "stats": dict(contents.stats),
        "final": contents.is_final,
    }
    uri = f"{FILE_SCHEME}{directory.absolute()}"
    record = PolicyRecord(directory.name, uri, PolicyMetadata(details), policy=policy)
    trainer = {
        "agent_step": contents.agent_step,
        "epoch": contents.version,
        "world_size": 0,  # no states of ranks: that is what tells the library
        "optimizer": optimizer,
        "stopwatch": None,
    }
    with atomic_directory(directory, replace=True) as temporary:
        write_policy_files(temporary, record)
        save_tree(temporary, TRAINER, trainer)
        save_tree(temporary, COORDINATOR, dict(contents.coordinator))
        for number, snapshot in workers.items():
            save_tree(temporary, f"{WORKER}{number}", tree_from_bytes(snapshot.tobytes()))
        write_manifest(temporary, KIND, FORMAT_VERSION)
    store.saved(record, directory)
    if keep_last > 0:
        store.cleanup_old_policies(checkpoint_dir, keep_last_n=keep_last)
    size = sum(file.stat().st_size for file in directory.iterdir())
    return Saved(str(directory.absolute()), size, time.perf_counter() - began)


def read_newest(checkpoint_dir: str | Path) -> Found | None:
    """The newest sound checkpoint; None if there is none at all. Damaged ones are passed over, and named.

    Raises CheckpointError if there are some and all are damaged.
    """
    candidates = trainer_checkpoints(checkpoint_dir)
    passed_over: list[str] = []
    for path in candidates:
        try:
            return _read(path, tuple(passed_over))
        except CheckpointError as error:
            logger.warning("checkpoint %s is passed over: %s", path.name, error)
            passed_over.append(f"{path.name}: {error}")
    if candidates:
        raise CheckpointError(
            f"all {len(candidates)} checkpoints in {checkpoint_dir} are damaged ({passed_over[0]}). Restore one from a "
            "backup, or start afresh with --new or under another name"
        )
    return None


def _read(path: Path, passed_over: tuple[str, ...]) -> Found:
    verify_manifest(path, kind=KIND, format_version=FORMAT_VERSION)
    trainer = load_tree(path, TRAINER)
    weights = {name: tensor.numpy() for name, tensor in read_weights(path).tensors.items()}
    # One written by the library has no coordinator: weights, optimiser and counters go on, the rest starts afresh.
    has_coordinator = (path / f"{COORDINATOR}.json").exists()
    restored = Restored(
        path=str(path.absolute()),
        version=int(trainer["epoch"]),
        agent_step=int(trainer["agent_step"]),
        coordinator=load_tree(path, COORDINATOR) if has_coordinator else {},
        workers={_number(file): _packed(load_tree(path, file.stem)) for file in sorted(path.glob(f"{WORKER}*.json"))},
        passed_over=passed_over,
    )
    return Found(restored, weights, trainer["optimizer"])


def _number(file: Path) -> int:
    return int(file.stem.removeprefix(WORKER))


def _packed(tree: Any) -> NDArray[np.uint8]:
    return np.frombuffer(tree_to_bytes(tree), np.uint8)
