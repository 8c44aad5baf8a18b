"""Saving and resuming a training, exactly.

A checkpoint is one directory, complete or absent:

    checkpoints/model_0012/
      policy.safetensors, policy.json     the policy, readable by PolicyStore
      trainer.safetensors, trainer.json   counters, optimiser, stopwatch
      rank0.safetensors, rank0.json, …    per rank: random states, environments, curriculum, recurrent state
      manifest.json                       size and SHA-256 of every file

Environments are saved as the seeds of their running episodes and the actions taken since, and are replayed. Rank
0 alone reads and writes files; what the others need is broadcast as bytes. Every rank calls these functions, and
no collective depends on what only one rank knows.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metta_ray.agent.policy_files import read_weights, write_policy_files
from metta_ray.agent.policy_metadata import PolicyMetadata
from metta_ray.agent.policy_record import FILE_SCHEME, PolicyRecord, make_model_name
from metta_ray.agent.policy_store import PolicyStore
from metta_ray.agent.weights import copy_weights
from metta_ray.common.errors import CheckpointError, TrainingDiverged
from metta_ray.common.profiling.stopwatch import Stopwatch
from metta_ray.common.util.fs import atomic_directory
from metta_ray.common.util.state_directory import (
    load_tree,
    read_manifest,
    save_tree,
    tree_from_bytes,
    tree_to_bytes,
    verify_manifest,
    write_manifest,
)
from metta_ray.envs.vecenv import VecEnv
from metta_ray.rl.distributed import (
    barrier,
    broadcast_bytes,
    gather_bytes,
    setup_distributed_vars,
    unwrap_agent,
)
from metta_ray.rl.experience import Experience
from metta_ray.rl.kickstarter import Kickstarter
from metta_ray.rl.optimizer import Optimizer
from metta_ray.rl.progress import EpochProgress
from metta_ray.rl.update import should_run_on_interval

logger = logging.getLogger(__name__)

KIND = "trainer_checkpoint"
FORMAT_VERSION = 1
TRAINER = "trainer"


def save_checkpoint(
    epoch: int,
    agent_step: int,
    agent: nn.Module,
    optimizer: Optimizer,
    policy_store: PolicyStore | None,
    checkpoint_path: str | Path,
    checkpoint_interval: int,
    stats: dict[str, Any] | None = None,
    force_save: bool = False,
    *,
    experience: Experience | None = None,
    vecenv: VecEnv | None = None,
    timer: Stopwatch | None = None,
    kickstarter: Kickstarter | None = None,
    progress: EpochProgress | None = None,
    metadata: dict[str, Any] | None = None,
    keep_last_n: int = 5,
) -> PolicyRecord | None:
    """Writes ``checkpoint_path/model_<epoch>`` when a multiple of ``checkpoint_interval`` epochs is reached.

    experience, vecenv, timer, kickstarter: what an exact resume needs beside weights and optimiser; call between
    two rollouts.
    progress: its running mean of returns.
    stats, metadata: kept with the policy (``score`` is what PolicyStore's selector ``top`` looks at).
    With a ``policy_store``, checkpoints older than the last ``keep_last_n`` (0: keep all) are deleted, unless pinned or
    the best.

    Returns the saved record on rank 0; None on other ranks or when nothing was due.
    """
    if not force_save and not should_run_on_interval(epoch, checkpoint_interval):
        return None
    is_master, world_size, _ = setup_distributed_vars()
    ranks = gather_bytes(tree_to_bytes(_rank_state(experience, vecenv, kickstarter)))
    record = None
    if is_master:
        directory = Path(checkpoint_path) / make_model_name(epoch)
        details = {"agent_step": agent_step, "epoch": epoch, "stats": stats or {}, "final": force_save}
        record = PolicyRecord(
            run_name=directory.name,
            uri=f"{FILE_SCHEME}{directory.absolute()}",
            metadata=PolicyMetadata(details | (metadata or {})),
            policy=unwrap_agent(agent),
        )
        trainer = {
            "agent_step": agent_step,
            "epoch": epoch,
            "world_size": world_size,
            "optimizer": to_numpy(optimizer.state_dict()),
            "stopwatch": timer.save_state() if timer else None,
            "progress": progress.state_dict() if progress else None,
        }
        _write(directory, record, trainer, ranks)
        if policy_store is not None:
            # What is returned is what was saved, not the policy that goes on learning.
            policy_store.saved(record, directory)
            if keep_last_n > 0:
                policy_store.cleanup_old_policies(checkpoint_path, keep_last_n=keep_last_n)
    barrier()
    return record


def load_checkpoint(
    checkpoint_dir: str | Path,
    agent: nn.Module,
    optimizer: Optimizer | None = None,
    policy_store: PolicyStore | None = None,
    device: torch.device | str | None = None,
    *,
    experience: Experience | None = None,
    vecenv: VecEnv | None = None,
    timer: Stopwatch | None = None,
    kickstarter: Kickstarter | None = None,
    progress: EpochProgress | None = None,
) -> tuple[int, int, str | None]:
    """Continues from the newest sound checkpoint: ``(agent_step, epoch, policy_path)``; ``(0, 0, None)`` if the
    directory holds none.

    Whatever is passed is restored: weights, optimiser, recurrent state, environments with their curriculum,
    stopwatch, random states, the mean return that is shown. A damaged checkpoint is passed over with a warning that
    names it.

    Raises CheckpointError if checkpoints exist but none is sound, or if the optimiser's state does not fit;
    PolicyMismatchError if the weights belong to another architecture.
    """
    del policy_store, device  # accepted as in the original; weights go to where the agent is
    found = _broadcast_result(lambda: _read_newest(Path(checkpoint_dir)))
    if found is None:
        return 0, 0, None
    checkpoint = _Checkpoint(**found)
    copy_weights(unwrap_agent(agent), checkpoint.weights, checkpoint.path)
    trainer = checkpoint.trainer
    if optimizer is not None:
        _load_optimizer(optimizer, trainer["optimizer"], checkpoint.path)
    if timer is not None and trainer["stopwatch"] is not None:
        timer.load_state(trainer["stopwatch"])
    if progress is not None and trainer.get("progress"):  # older checkpoints and those of the service have none
        progress.load_state_dict(trainer["progress"])
    _load_rank_state(checkpoint, experience, vecenv, kickstarter)
    return trainer["agent_step"], trainer["epoch"], checkpoint.path


@contextmanager
def naming_last_checkpoint(checkpoint_dir: str | Path) -> Iterator[None]:
    """A TrainingDiverged that leaves the block says which checkpoint is the last good one."""
    try:
        yield
    except TrainingDiverged as error:
        path = _newest_sound(Path(checkpoint_dir))
        where = f"Last good checkpoint: {path}" if path else "No checkpoint had been written yet"
        raise TrainingDiverged(f"{error}. {where}") from error


def _newest_sound(checkpoint_dir: Path) -> Path | None:
    for path in trainer_checkpoints(checkpoint_dir):
        with suppress(CheckpointError):
            verify_manifest(path, kind=KIND, format_version=FORMAT_VERSION)
            return path
    return None


@dataclass
class _Checkpoint:
    path: str
    weights: dict[str, Any]
    trainer: dict[str, Any]
    ranks: list[dict[str, Any]]


def _write(directory: Path, record: PolicyRecord, trainer: dict[str, Any], ranks: list[bytes]) -> None:
    with atomic_directory(directory, replace=True) as temporary:
        write_policy_files(temporary, record)
        save_tree(temporary, TRAINER, trainer)
        for rank, state in enumerate(ranks):
            save_tree(temporary, f"rank{rank}", tree_from_bytes(state))
        write_manifest(temporary, KIND, FORMAT_VERSION)


def trainer_checkpoints(checkpoint_dir: str | Path) -> list[Path]:
    """Directories that are checkpoints or were meant to be, sound or not; newest epoch first."""
    root = Path(checkpoint_dir)
    named = [path for path in root.glob("model_*") if path.is_dir() and path.name[6:].isdigit()]
    return sorted((path for path in named if not _is_policy_only(path)), key=_epoch, reverse=True)


def _epoch(path: Path) -> int:
    return int(path.name.removeprefix("model_"))


def _is_policy_only(path: Path) -> bool:
    """A sound policy directory that PolicyStore.save wrote. What cannot be told counts as a checkpoint."""
    try:
        return bool(read_manifest(path)["kind"] != KIND)
    except CheckpointError:
        return False


def _read_newest(checkpoint_dir: Path) -> dict[str, Any] | None:
    """The newest checkpoint that is sound; None if there is none at all."""
    candidates = trainer_checkpoints(checkpoint_dir)
    for path in candidates:
        try:
            return _read(path)
        except CheckpointError as error:
            logger.warning("checkpoint %s is passed over: %s", path.name, error)
    if candidates:
        raise CheckpointError(
            f"all {len(candidates)} checkpoints in {checkpoint_dir} are damaged (see the warnings above). Restore one "
            "from a backup, or start afresh explicitly under another run name"
        )
    return None


def _read(path: Path) -> dict[str, Any]:
    verify_manifest(path, kind=KIND, format_version=FORMAT_VERSION)
    trainer = load_tree(path, TRAINER)
    ranks = [load_tree(path, f"rank{rank}") for rank in range(trainer["world_size"])]
    weights = {name: tensor.numpy() for name, tensor in read_weights(path).tensors.items()}
    return {"path": str(path.absolute()), "weights": weights, "trainer": trainer, "ranks": ranks}


def _broadcast_result(read: Callable[[], dict[str, Any] | None]) -> dict[str, Any] | None:
    """Rank 0 reads; all ranks get the result or raise the same error."""
    is_master, _, _ = setup_distributed_vars()
    message: dict[str, Any] = {}
    if is_master:
        try:
            message = {"value": read()}
        except CheckpointError as error:
            message = {"error": str(error)}
    message = tree_from_bytes(broadcast_bytes(tree_to_bytes(message)))
    if "error" in message:
        raise CheckpointError(message["error"])
    value = message["value"]
    assert value is None or isinstance(value, dict)
    return value


def _load_optimizer(optimizer: Optimizer, state: dict[str, Any], path: str) -> None:
    try:
        optimizer.load_state_dict(to_torch(state))
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"the optimiser state in {path} does not fit: {error}. Use the optimizer settings it was trained with, or "
            "call load_checkpoint without optimizer= to start with a fresh one"
        ) from error


def _rank_state(
    experience: Experience | None, vecenv: VecEnv | None, kickstarter: Kickstarter | None
) -> dict[str, Any]:
    return {
        "random": random_state(),
        "experience": experience.state_dict() if experience else None,
        "vecenv": vecenv.snapshot() if vecenv else None,
        "curriculum": vecenv.curriculum.state_dict() if vecenv and vecenv.curriculum else None,
        "kickstarter": kickstarter.state_dict() if kickstarter else None,
    }


def _load_rank_state(
    checkpoint: _Checkpoint,
    experience: Experience | None,
    vecenv: VecEnv | None,
    kickstarter: Kickstarter | None,
) -> None:
    _, world_size, rank = setup_distributed_vars()
    if not checkpoint.ranks:
        logger.warning(
            "checkpoint %s was written by the service: weights and optimiser continue, environments and curriculum "
            "start afresh (metta-ray train --run continues all of it)",
            checkpoint.path,
        )
        if vecenv is not None:
            vecenv.async_reset(checkpoint.trainer["agent_step"])
        return
    if world_size != len(checkpoint.ranks):
        logger.warning(
            "checkpoint %s was written by %d ranks, now there are %d: weights, optimiser and (from rank 0) curriculum "
            "continue, environments and recurrent state start afresh",
            checkpoint.path,
            len(checkpoint.ranks),
            world_size,
        )
        _load_curriculum(vecenv, checkpoint.ranks[0]["curriculum"])
        _start_afresh(vecenv, checkpoint)
        return
    state = checkpoint.ranks[rank]
    try:
        _load_curriculum(vecenv, state["curriculum"])
        if vecenv is not None and state["vecenv"] is not None:
            vecenv.restore(state["vecenv"])
        if experience is not None and state["experience"] is not None:
            experience.load_state_dict(state["experience"])
        if kickstarter is not None and state["kickstarter"] is not None:
            kickstarter.load_state_dict(state["kickstarter"])
    except ValueError as error:
        raise CheckpointError(
            f"the environments saved in {checkpoint.path} are not those of this run: {error}. Use the settings of its "
            "config.yaml, or load without experience= and vecenv="
        ) from error
    set_random_state(state["random"])


def _start_afresh(vecenv: VecEnv | None, checkpoint: _Checkpoint) -> None:
    """New episodes from seeds that the run has not used."""
    saved = checkpoint.ranks[0]["vecenv"]
    if vecenv is not None and saved is not None:
        words = np.random.SeedSequence([saved["run_seed"], checkpoint.trainer["agent_step"]]).generate_state(
            2, np.uint32
        )
        vecenv.async_reset(int(words[0]) << 31 | int(words[1]) >> 1)


def _load_curriculum(vecenv: VecEnv | None, state: dict[str, Any] | None) -> None:
    if vecenv is not None and vecenv.curriculum is not None and state is not None:
        vecenv.curriculum.load_state_dict(state)


def random_state() -> dict[str, Any]:
    """State of the generators of torch (all devices), numpy and Python."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state().numpy(),
        "cuda": [state.numpy() for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
        "numpy": {"name": name, "keys": keys, "position": position, "has_gauss": has_gauss, "cached": cached},
        "python": {"version": version, "internal": np.array(internal, np.uint64), "gauss": gauss},
    }


def set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(torch.from_numpy(state["torch"]))
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([torch.from_numpy(one) for one in state["cuda"]])
    numpy_state = state["numpy"]
    np.random.set_state(tuple(numpy_state[key] for key in ("name", "keys", "position", "has_gauss", "cached")))
    python = state["python"]
    random.setstate((python["version"], tuple(int(word) for word in python["internal"]), python["gauss"]))


def to_numpy(tree: Any) -> Any:
    """A tree whose tensors are arrays on the host; tuples become lists."""
    if isinstance(tree, Tensor):
        return tree.detach().cpu().numpy()
    if isinstance(tree, dict):
        return {key: to_numpy(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [to_numpy(value) for value in tree]
    return tree


def to_torch(tree: Any) -> Any:
    """The inverse: arrays become tensors over the same memory."""
    if isinstance(tree, np.ndarray):
        return torch.from_numpy(tree)
    if isinstance(tree, dict):
        return {key: to_torch(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [to_torch(value) for value in tree]
    return tree
