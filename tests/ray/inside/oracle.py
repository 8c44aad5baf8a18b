"""What a test sees of a run from inside its processes, beside the service: who lives, how many steps environments
really took, the whole journal; and the place where faults are let off at an exact moment.

    $ORACLE_ROOT/<run>/pids/rollout-3     process id of that child (also learner-0, coordinator-<time of its start>)
    $ORACLE_ROOT/<run>/steps/rollout-3    8 bytes: agent steps that its environments took; outlives its process
    $ORACLE_ROOT/<run>/digests/learner-0  after each update: group, version, hash of this replica's weights
    $ORACLE_ROOT/<run>/journal/<n>.log    the journal as it was before it was compacted
    $ORACLE_ROOT/<run>/faults/<point>     written by a test: what the next process that comes to this point does

A fault is taken by one process (renaming is atomic) and happens once.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.abc
import importlib.util
import mmap
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(os.environ.get("ORACLE_ROOT") or ".")
FOLDERS = ("pids", "steps", "digests", "journal", "faults")
FOREVER_S = 1_000_000

_who = ""
_directory: Path | None = None
"""Of this process's run; None as long as it belongs to none."""
_steps: mmap.mmap | None = None


class InjectedError(RuntimeError):
    """Raised by the fault ``raise``."""


def reached(point: str) -> str:
    """A place in the code that has a name. Obeys a fault that waits there; returns its name, mostly ''."""
    if _directory is None or not (path := _directory / "faults" / point).exists():
        return ""
    try:
        path.rename(path.with_name(f"{point}.taken-by-{_who or os.getpid()}-{time.time_ns()}"))
    except FileNotFoundError:
        return ""  # another process was faster
    taken = next(iter(sorted(path.parent.glob(f"{point}.taken-by-{_who or os.getpid()}-*"), reverse=True)))
    fault = taken.read_text().strip()
    _obey(fault, point)
    return fault


def _obey(fault: str, point: str) -> None:
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "sleep":
        time.sleep(FOREVER_S)
    elif fault == "hold_gil":
        ctypes.PyDLL(None).sleep(FOREVER_S)
    elif fault == "raise":
        raise InjectedError(f"injected at {point}")
    elif fault.startswith("wait "):
        time.sleep(float(fault.removeprefix("wait ")))


def count(agent_steps: int) -> None:
    """Agent steps that environments of this process took, from now on also if it is killed."""
    if _steps is not None:
        _steps[:] = (int.from_bytes(_steps[:], "little") + agent_steps).to_bytes(8, "little")


def _belongs_to(run: str) -> None:
    global _directory
    _directory = ROOT / run
    for folder in FOLDERS:
        (_directory / folder).mkdir(parents=True, exist_ok=True)


def _is_born(who: str, *, counts: bool = False) -> None:
    global _who, _steps
    assert _directory is not None
    _who = who
    name = _directory / "pids" / who
    name.with_suffix(".new").write_text(str(os.getpid()))
    name.with_suffix(".new").rename(name)
    if counts:
        path = _directory / "steps" / who
        path.write_bytes(bytes(8))
        with path.open("r+b") as file:
            _steps = mmap.mmap(file.fileno(), 8)


# What is wrapped in which module.


def _rollout_worker(module: ModuleType) -> None:
    def born(worker: Any, identity: Any, *args: Any, **kwargs: Any) -> None:
        _belongs_to(identity.run)
        reached("rollout.start")
        construct(worker, identity, *args, **kwargs)
        _is_born(f"rollout-{identity.number}", counts=True)

    def collect_and_tell(worker: Any, ticket: Any) -> Any:
        reached("rollout.collect")
        return collect(worker, ticket)

    construct, collect = module.RolloutWorker.__init__, module.RolloutWorker.collect
    module.RolloutWorker.__init__, module.RolloutWorker.collect = born, collect_and_tell


def _learner(module: ModuleType) -> None:
    def born(learner: Any, identity: Any, *args: Any, **kwargs: Any) -> None:
        _belongs_to(identity.run)
        construct(learner, identity, *args, **kwargs)
        _is_born(f"learner-{identity.number}")

    def wrapped(agent: Any, device: Any) -> Any:
        policy = wrap(agent, device)
        if _who.startswith("learner") and not getattr(agent, "_is_watched", False):
            agent._is_watched = True
            agent.register_forward_pre_hook(lambda *_: _reached_in_training("learner.forward"))
            # The first parameter's gradient comes last, while the other replicas wait for this one's sum.
            next(iter(agent.parameters())).register_hook(lambda _: _reached_in_training("learner.all_reduce"))
        return policy

    def train_and_tell(learner: Any, order: Any) -> Any:
        reached("learner.train")
        result = train(learner, order)
        _note_weights(learner, order)
        reached("learner.trained")
        return result

    construct, wrap, train = module.Learner.__init__, module.wrap_agent_distributed, module.Learner.train
    module.Learner.__init__, module.wrap_agent_distributed = born, wrapped
    module.Learner.train = train_and_tell


def _reached_in_training(point: str) -> None:
    import torch

    if torch.is_grad_enabled() or point == "learner.all_reduce":
        reached(point)


def _note_weights(learner: Any, order: Any) -> None:
    digest = hashlib.sha256()
    for parameter in learner._agent.parameters():
        digest.update(parameter.detach().cpu().numpy().tobytes())
    assert _directory is not None
    with (_directory / "digests" / _who).open("a") as file:
        file.write(f"{order.group} {order.version + 1} {digest.hexdigest()}\n")


def _evaluator(module: ModuleType) -> None:
    def born(evaluator: Any, identity: Any, *args: Any, **kwargs: Any) -> None:
        _belongs_to(identity.run)
        reached("evaluator.start")
        construct(evaluator, identity, *args, **kwargs)
        _is_born(f"evaluator-{identity.number}")

    def evaluate_and_tell(evaluator: Any, request: Any) -> Any:
        reached("evaluator.evaluate")
        result = evaluate(evaluator, request)
        reached("evaluator.evaluated")
        return result

    construct, evaluate = module.Evaluator.__init__, module.Evaluator.evaluate
    module.Evaluator.__init__, module.Evaluator.evaluate = born, evaluate_and_tell


def _checkpoint(module: ModuleType) -> None:
    def write_and_tell(*args: Any, **kwargs: Any) -> Any:
        reached("learner.save")
        return write_manifest(*args, **kwargs)

    write_manifest = module.write_manifest
    module.write_manifest = write_and_tell


def _coordinator(module: ModuleType) -> None:
    def born(coordinator: Any, run: str, *args: Any, **kwargs: Any) -> None:
        _belongs_to(run)
        _is_born(f"coordinator-{time.time_ns()}")
        construct(coordinator, run, *args, **kwargs)

    construct = module.Coordinator.__init__
    module.Coordinator.__init__ = born


def _journal(module: ModuleType) -> None:
    def keep_and_compact(journal: Any, *args: Any, **kwargs: Any) -> Any:
        if _directory is None or not journal.path.exists():
            return compact(journal, *args, **kwargs)
        copy = _directory / "journal" / f"{time.time_ns()}.log"
        shutil.copyfile(journal.path, copy.with_suffix(".part"))
        copy.with_suffix(".part").rename(copy)  # a test reads while the run goes on: whole or not at all
        before = journal.path.stat()
        try:
            return compact(journal, *args, **kwargs)
        finally:
            if os.path.samestat(before, journal.path.stat()):  # a full disk: its records stay where they were
                copy.unlink()

    compact = module.Journal.compact
    module.Journal.compact = keep_and_compact


def _mettagrid(module: ModuleType) -> None:
    def step_and_count(batch: Any) -> Any:
        reached("env.step")
        result = step(batch)
        count(batch.num_agents)
        return result

    step = module.MettaGridBatch.step
    module.MettaGridBatch.step = step_and_count


WRAPPED: dict[str, Callable[[ModuleType], None]] = {
    "metta_ray.service.rollout_worker": _rollout_worker,
    "metta_ray.service.learner": _learner,
    "metta_ray.service.evaluator": _evaluator,
    "metta_ray.service.checkpoint": _checkpoint,
    "metta_ray.service.coordinator": _coordinator,
    "metta_ray.state.journal": _journal,
    "metta_ray.mettagrid.mettagrid_env": _mettagrid,
}


class _Wrapper(importlib.abc.MetaPathFinder):
    """Wraps modules right after they were loaded."""

    def __init__(self) -> None:
        self._asked: set[str] = set()

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in WRAPPED or fullname in self._asked:
            return None
        self._asked.add(fullname)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_wrap(module: ModuleType) -> None:
            load(module)
            WRAPPED[fullname](module)

        spec.loader.exec_module = load_and_wrap  # type: ignore[method-assign]
        return spec


def install() -> None:
    sys.meta_path.insert(0, _Wrapper())
