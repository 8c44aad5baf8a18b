"""The coordinator: one per run, detached and named; owns the books, the children and the loop.

A thread of its own runs the pipeline; the methods, which Ray calls from other threads, read what that thread wrote
down last or put a command into its queue. When Ray starts the coordinator anew, it opens the journal, finds its
children by their names, takes over what they finished meanwhile and goes on.

Loads neither torch nor an engine, so that it is back in a moment.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections import deque
from concurrent.futures import Future as Answer
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import ray

from metta_ray.common.errors import ConfigError, LearnersLost, MettaRayError, StateStoreError
from metta_ray.common.util import fs
from metta_ray.common.util.typed_config import apply_overrides
from metta_ray.control.run_state import RunState, may_follow
from metta_ray.control.scaling import Observation, Resize, ScalingLimits, ScalingState
from metta_ray.control.scaling import decide as decide_size
from metta_ray.control.schedule import is_due
from metta_ray.rl.progress import MetricsLog
from metta_ray.rl.run_directories import package_versions, save_experiment_config, setup_run_directories
from metta_ray.rl.vecenv import training_factory
from metta_ray.service.books import Books
from metta_ray.service.causes import failure_of
from metta_ray.service.children import Future
from metta_ray.service.identity import Identity, coordinator_name, namespace_of
from metta_ray.service.learner_group import LearnerGroup, Replica
from metta_ray.service.orders import Contents, Restored, Saved, UpdateResult
from metta_ray.service.pipeline import TrainingPipeline
from metta_ray.service.process_info import ProcessInfo
from metta_ray.service.ray_children import RayChildren
from metta_ray.service.rollout_pool import RolloutPool
from metta_ray.service.run_config import RunConfig, parse_workers, store_url
from metta_ray.service.shared_directory import leave_nonce
from metta_ray.service.sizes import Sizes, too_many_workers
from metta_ray.state.base import StateStore
from metta_ray.state.open_store import open_store
from metta_ray.state.records import EventRecord, RunRecord

logger = logging.getLogger(__name__)

TURN_S = 0.05
STATUS_EVERY_S = 0.25
RECORD_EVERY_S = 1.0
LINGER_S = 5.0
KEPT_LINES = 5000
EVALUATION_DEADLINE_S = 900.0
SAVE_DEADLINE_S = 120.0
RETRY_SAVE_S = 10.0
OBJECT_STORE_SHARE = 0.3
MUST_AGREE = ("python", "ray", "torch", "mettagrid", "metta_ray")
TOLD = {"ready": 0, "left": 0, "dropped": 5}
"""How many events of a kind a person is shown; the others are only counted and kept."""


class Coordinator:
    """config, sizes, spec: of the run, checked. session: what only the starting process knows (addresses, job)."""

    def __init__(
        self, run: str, config: dict[str, Any], sizes: Sizes, spec: dict[str, Any], session: dict[str, Any]
    ) -> None:
        self.run = run
        self._config = RunConfig.from_mapping(config)
        self._sizes = sizes
        self._spec = spec
        self._session = session
        self._was_restarted = bool(ray.get_runtime_context().was_current_actor_reconstructed)
        self._clock = time.monotonic
        self._started = time.time()
        self._commands: SimpleQueue[tuple[str, tuple[Any, ...], Answer[dict[str, Any]]]] = SimpleQueue()
        self._news = threading.Condition()
        self._lines: deque[dict[str, Any]] = deque(maxlen=KEPT_LINES)
        self._next_line = int(time.time() * 1000)  # numbers go on growing over a restart
        self._events: deque[str] = deque(maxlen=200)
        self._told: dict[str, int] = {}
        self._state = RunState.STARTING
        self._message = ""
        self._result: dict[str, Any] = {}
        self._epoch: dict[str, Any] = {}
        self._status: dict[str, Any] = {}
        self._status_at = self._record_at = self._lease_at = -1e9
        self._drivers: dict[str, float] = {}
        self._closing = threading.Event()
        self._ending: RunState | None = None
        self._saving: tuple[Future, int, float] | None = None
        self._save_wanted = False
        self._save_answers: list[Answer[dict[str, Any]]] = []
        self._saved: dict[str, Any] = {}
        self._retry_save_at = 0.0
        self._pings: list[Future] = []
        self._scaling: ScalingState | None = None
        self._observations: list[Observation] = []
        self._limits: ScalingLimits | None = None
        self._refresh_status()
        threading.Thread(target=self._live, name="pipeline", daemon=True).start()

    def __repr__(self) -> str:
        return f"coordinator(run={self.run})"

    # What is asked from outside. Called in threads of Ray.

    def status(self) -> dict[str, Any]:
        return self._status

    def progress(self, after: int, timeout_s: float = 5.0) -> dict[str, Any]:
        """Lines with numbers above ``after``, waiting for one; state; and, at the end, the result."""

        def is_news() -> bool:
            return self._state.is_final or bool(self._lines and self._lines[-1]["number"] > after)

        with self._news:
            self._news.wait_for(is_news, timeout_s)
            lines = [line for line in self._lines if line["number"] > after]
            return {"lines": lines, "state": self._state.value, "result": self._result}

    def scale(self, workers: str) -> dict[str, Any]:
        return self._ask("scale", workers)

    def pause(self) -> dict[str, Any]:
        return self._ask("pause")

    def unpause(self) -> dict[str, Any]:
        return self._ask("unpause")

    def checkpoint(self) -> dict[str, Any]:
        return self._ask("checkpoint", timeout_s=SAVE_DEADLINE_S)

    def set(self, name: str, value: Any) -> dict[str, Any]:
        return self._ask("set", name, value)

    def stop(self, force: bool = False) -> dict[str, Any]:
        return self._ask("stop", force)

    def attach(self, driver_id: str, heartbeat: int) -> dict[str, Any]:
        """The life sign of a driver; heartbeat -1: it leaves and the run goes on."""
        del heartbeat
        self._drivers[driver_id] = self._clock()
        return {"ok": True, "message": ""}

    def detach(self, driver_id: str) -> dict[str, Any]:
        self._drivers.pop(driver_id, None)
        return {"ok": True, "message": ""}

    def close(self) -> dict[str, Any]:
        """The driver has seen the end: nothing keeps the coordinator any longer."""
        self._closing.set()
        return {"ok": True, "message": ""}

    def _ask(self, command: str, *args: Any, timeout_s: float = 60.0) -> dict[str, Any]:
        if self._state.is_final:
            return {"ok": False, "message": f"run {self.run} has ended: {self._state}"}
        answer: Answer[dict[str, Any]] = Answer()
        self._commands.put((command, args, answer))
        return answer.result(timeout=timeout_s)

    # The life of a run. Everything below runs in the pipeline's thread.

    def _live(self) -> None:
        try:
            self._open()
            while self._state is not RunState.DONE and not self._is_over():
                self._turn()
        except MettaRayError as error:
            self._fail(str(error), bad_input=isinstance(error, ConfigError))
        except BaseException as error:
            logger.exception("run %s failed", self.run)
            failure = failure_of(error)
            self._fail(f"{failure.text}\n{failure.traceback}".strip())
        finally:
            self._leave()

    def _turn(self) -> None:
        self._obey()
        if not self._learners_have_begun:
            self._begin_learners()
        try:
            self._pipeline.step(TURN_S)
        except LearnersLost as error:
            self._go_back(error)
        self._look_after_saving()
        self._look_after_people()
        self._keep_up_appearances()

    def _open(self) -> None:
        dirs = setup_run_directories(self.run, self._session["data_dir"])
        self._dirs = dirs
        trainer = self._config.trainer
        self._config = self._config.model_copy(update={"trainer": trainer.in_run_dir(dirs.run_dir)})
        self._checkpoint_dir = self._config.trainer.checkpoint.checkpoint_dir
        if not self._was_restarted:
            record = self._config.record()
            sections = {name: record[name] for name in record if name not in ("trainer", "device", "run", "data_dir")}
            save_experiment_config(dirs, self._config.learner.device, trainer, **sections)
        curriculum = training_factory(trainer).curriculum()
        self._books = Books(Path(dirs.run_dir), curriculum)
        self._books.record({"kind": "generation", "number": self._books.generation + 1}, sync=True)
        self._store = self._open_store()
        nonce = leave_nonce(dirs.run_dir)
        self._children = RayChildren(self._config, self.run)
        self._pool = RolloutPool(
            self._config,
            self._children,
            self.run,
            self._clock,
            self._worker_arguments,
            lambda: self._books.take_number("rollout"),
            self._books.generation,
        )
        arguments = (self._config.model_dump(), self._sizes, self._spec, dirs.run_dir, nonce)
        self._learners = LearnerGroup(
            self._config,
            self._sizes,
            self._children,
            self.run,
            self._clock,
            lambda: arguments,
            lambda: self._books.take_number("learner"),
            self._learner_changed,
            self._books.generation,
        )
        self._pipeline = TrainingPipeline(
            self._config,
            self._sizes,
            self._books,
            self._pool,
            self._learners,
            self._clock,
            self._epoch_done,
            self._event,
            byte_budget=self._byte_budget(),
        )
        self._worker_snapshots: dict[int, Any] = {}
        self._resize(self._books.workers or self._configured_workers())
        self._learners_have_begun = False
        self._log = MetricsLog(dirs.run_dir, tensorboard=self._config.tensorboard)
        self._is_adopting = self._was_restarted and bool(self._books.members["learner"])
        if self._is_adopting:
            self._adopt()
        else:
            self._forget_members()
            self._learners.start()
            if not any(Path(self._checkpoint_dir).glob("model_*")):
                self._pool.wanted = self._wanted  # nothing to restore: workers may start beside the learners

    def _adopt(self) -> None:
        """Takes over the children of the coordinator before this one."""
        self._event("restarted", f"the coordinator is back (generation {self._books.generation})")
        living = [self._find("learner", number) for number in sorted(self._books.members["learner"])]
        self._learners.adopt([child for child in living if child is not None])
        if not self._learners.newcomers:
            raise LearnersLost("no learner outlived the coordinator")

    def _adopt_workers(self) -> None:
        ledger = self._books.ledger
        for number, member in sorted(self._books.members["rollout"].items()):
            child = self._find("rollout", number)
            owed = [t for t in ledger.open_tickets if ledger.worker_of(t) == number]
            if child is None:
                self._books.record({"kind": "left", "role": "rollout", "number": number})
            elif member["slot"] not in self._pool.members:
                self._pool.adopt(member["slot"], child, {t: self._pipeline.ticket(t) for t in owed})
                continue
            for ticket in owed:
                self._books.record({"kind": "lose", "ticket": ticket, "reason": "crash"})

    def _find(self, role: str, number: int) -> Any:
        member = self._books.members[role][number]
        return self._children.find(
            Identity(self.run, role, number, member["incarnation"], member.get("generation", self._books.generation))
        )

    def _forget_members(self) -> None:
        """Ends what an earlier coordinator may have left in this cluster."""
        for role in ("rollout", "learner"):
            for number in list(self._books.members[role]):
                child = self._find(role, number)
                if child is not None:
                    child.kill(None)
                self._books.record({"kind": "left", "role": role, "number": number})

    def _begin_learners(self) -> None:
        """As soon as all replicas are there, they get the state to start from."""
        if not self._learners.are_ready():
            return
        for replica in self._learners.newcomers:
            self._require_same_versions(f"learner-{replica.number}", replica.info)
        if self._is_adopting:
            self._resume_after_restart()
        else:
            self._start_from(self._learners.begin(self._checkpoint_dir))
        self._learners_have_begun = True
        self._pool.wanted = self._wanted
        self._pipeline.restart_clock()

    def _resume_after_restart(self) -> None:
        version = self._books.ledger.version
        finished = self._learners.resume(version)
        if finished is not None:
            self._commit_found(finished)
        self._learners.form()
        self._adopt_workers()
        self._event("resumed", f"goes on at policy version {self._books.ledger.version}; no update was lost")

    def _commit_found(self, found: UpdateResult) -> None:
        """An update that the learners finished while nobody could commit it."""
        self._books.record({"kind": "commit", "version": found.version, "tickets": list(found.tickets)}, sync=True)
        self._log.write(
            found.version,
            found.agent_step,
            {"update_seconds": found.seconds["training"]},
            dict(found.metrics),
            losses=dict(found.losses),
            hyperparameters=dict(found.hyperparameters),
        )

    def _start_from(self, restored: Restored) -> None:
        for reason in restored.passed_over:
            self._event("damaged", f"a damaged checkpoint is passed over: {reason}")
        if restored.path is None and self._books.is_new:
            source = f", starting from the weights of {restored.initial_policy}" if restored.initial_policy else ""
            self._note(f"run {self.run}: {self._config.trainer.curriculum_or_env}, {self._describe_sizes()}{source}")
        else:
            self._books.restore_checkpoint(restored.version, restored.agent_step, restored.coordinator)
            self._worker_snapshots = {slot: ray.put(state) for slot, state in restored.workers.items()}
            self._saved = {"path": restored.path, "epoch": restored.version, "at": self._clock()}
            self._note(
                f"continuing {self.run} after epoch {restored.version}, {restored.agent_step:,} agent steps, from "
                f"{restored.path or 'the beginning, since no checkpoint had been written'}:\n"
                f"  restored weights, optimiser, schedules, curriculum, ledger and the environments, recurrent and "
                f"random states of {len(restored.workers)} worker(s)"
            )
        self._log = MetricsLog(
            self._dirs.run_dir, keep_until_epoch=restored.version, tensorboard=self._config.tensorboard
        )

    def _go_back(self, error: LearnersLost) -> None:
        """The last replica's state is gone: new learners, from the newest checkpoint."""
        self._event("learners_lost", f"{error}; going back to the newest checkpoint")
        self._learners.stop()
        self._learners.failures += 1
        self._learners._check_budget(str(error))
        self._pipeline.forget_all()
        self._is_adopting = self._learners_have_begun = False
        self._learners.start()

    def _describe_sizes(self) -> str:
        sizes, config = self._sizes, self._config
        return (
            f"{self._wanted} rollout worker(s) with {sizes.num_envs} environments each, {config.learner.replicas} "
            f"learner(s), {sizes.fragments_per_batch} fragments of {sizes.fragment_steps:,} agent steps per update, "
            f"{config.trainer.total_timesteps:,} agent steps"
        )

    def _worker_arguments(self, slot: int) -> tuple[Any, ...]:
        """A worker restored from a checkpoint goes on where the one in its slot was, once."""
        snapshot = self._worker_snapshots.pop(slot, None)
        return (self._config.model_dump(), self._sizes, snapshot)

    def _learner_changed(self, what: str, number: int, details: Any) -> None:
        self._books.record({"kind": what, "role": "learner", "number": number, **details})
        if what == "left":
            self._event("learner_left", f"learner-{number} left")

    def _require_same_versions(self, who: str, info: ProcessInfo | None) -> None:
        if info is None:
            return
        own = package_versions()
        for package in MUST_AGREE:
            if own.get(package) != info.versions.get(package):
                raise ConfigError(
                    f"{package} is {own.get(package)} on the coordinator's node and {info.versions.get(package)} on "
                    f"{info.host} ({who}); install the same version on all nodes"
                )

    def _byte_budget(self) -> int:
        if self._config.pacing.byte_budget:
            return self._config.pacing.byte_budget
        store = ray.cluster_resources().get("object_store_memory", 0.0)
        return int(store * OBJECT_STORE_SHARE)

    # Epochs.

    def _epoch_done(self, record: dict[str, Any]) -> None:
        self._epoch = record
        epoch = record["epoch"]
        shares = {f"share/{name}": value for name, value in record["shares"].items()}
        speed = {
            "agent_steps_per_second": record["agent_steps_per_second"],
            "epoch_seconds": record["epoch_seconds"],
            "update_seconds": record["update_seconds"],
            "staleness/mean": record["staleness"]["mean"],
            "staleness/max": record["staleness"]["max"],
            "workers/ready": len(self._pool.ready),
            **shares,
        }
        try:
            self._log.write(
                epoch,
                record["agent_step"],
                speed,
                record["metrics"],
                losses=record["losses"],
                hyperparameters=record["hyperparameters"],
            )
        except OSError as error:
            self._event("metrics", f"metrics of epoch {epoch} were not written: {error}")
        shown = {name: value for name, value in record.items() if name not in ("metrics", "losses", "hyperparameters")}
        self._tell(shown | {"total_timesteps": self._pipeline.total_timesteps, "workers": self._workers()})
        if is_due(epoch, epoch - 1, self._config.trainer.checkpoint.checkpoint_interval):
            self._save_wanted = True
        self._look_after_saving()  # now, before workers are ordered to go on: so the cut is clean
        self._observe(record)

    def _observe(self, record: dict[str, Any]) -> None:
        """The automatic number of workers."""
        if self._limits is None or self._scaling is None or not record["shares"]:
            return
        self._observations.append(
            Observation(
                num_workers=len(self._pool.ready),
                learner_waiting=record["shares"].get("no_data", 0.0),
                worker_waiting=record["shares"].get("no_ticket", 0.0),
                queue_age=record["queue_age"],
            )
        )
        decision = decide_size(tuple(self._observations), self._limits, self._scaling)
        self._scaling = self._scaling.after(decision)
        if isinstance(decision, Resize):
            self._wanted = self._pool.wanted = decision.num_workers
            self._event("resize", f"{decision.num_workers} workers wanted: {decision.reason}")

    # Commands.

    def _obey(self) -> None:
        while True:
            try:
                command, args, answer = self._commands.get_nowait()
            except Empty:
                return
            try:
                result = getattr(self, f"_command_{command}")(*args)
            except Exception as error:
                answer.set_exception(error)
                continue
            self._refresh_status()
            if command == "checkpoint" and result is None:
                self._save_answers.append(answer)
            else:
                answer.set_result(result)

    def _command_scale(self, text: str) -> dict[str, Any]:
        message = self._resize(text)
        self._books.record({"kind": "workers", "text": text}, sync=True)
        if self._learners_have_begun:
            self._pool.wanted = self._wanted
        self._event("scale", f"scaled to {text}{'; ' + message if message else ''}")
        return {"ok": True, "message": message or f"{self._wanted} worker(s) wanted"}

    def _command_pause(self) -> dict[str, Any]:
        self._pipeline.paused = True
        self._enter(RunState.PAUSED, "paused")
        return {"ok": True, "message": "paused: what is under way is finished, nothing is ordered"}

    def _command_unpause(self) -> dict[str, Any]:
        if self._ending is None:
            self._pipeline.paused = False
            self._pipeline.restart_clock()
            self._enter(RunState.RUNNING, "goes on")
        return {"ok": True, "message": "the run goes on"}

    def _command_checkpoint(self) -> dict[str, Any] | None:
        if not self._learners_have_begun:
            return {"ok": False, "message": "nothing to save yet: the learners are starting"}
        if self._saved.get("epoch") == self._books.ledger.version:
            return {"ok": True, "message": f"{self._saved['path']} holds this very state already"}
        self._save_wanted = True
        return None

    def _command_set(self, name: str, value: Any) -> dict[str, Any]:
        name = name.replace("-", "_")
        if not name.startswith("trainer.") or name.split(".")[1] not in _LIVE_SECTIONS:
            allowed = ", ".join(f"trainer.{section}" for section in _LIVE_SECTIONS)
            raise ConfigError(f"{name} cannot be changed while the run goes on; what can: settings below {allowed}")
        changed = apply_overrides(self._config, {**self._books.settings, name: value})
        plain: Any = changed
        for part in name.split("."):
            plain = getattr(plain, part)
        if plain is not None and not isinstance(plain, bool | int | float | str):
            raise ConfigError(f"{name} is a section; name one setting in it")
        self._books.record({"kind": "setting", "name": name, "value": plain}, sync=True)
        if name == "trainer.total_timesteps":
            self._pipeline.total_timesteps = plain
        self._event("setting", f"{name} = {plain} from update {self._books.ledger.version + 1} on")
        return {"ok": True, "message": f"{name} = {plain}, from the next update on"}

    def _command_stop(self, force: bool) -> dict[str, Any]:
        if force:
            self._enter(RunState.DRAINING, "stopped at once")
            self._finish(RunState.STOPPED, "stopped without a checkpoint")
        else:
            self._end(RunState.STOPPED, "stop was asked for")
        return {"ok": True, "message": "stopping: finishing what is under way, then a checkpoint"}

    def _resize(self, text: str) -> str:
        """Sets the wanted number; says so where more than can be useful are asked for."""
        target = parse_workers(text)
        useful = self._sizes.useful_workers
        if target.num_workers is not None:
            self._wanted, self._limits, self._scaling = target.num_workers, None, None
            most = target.num_workers
        else:
            assert target.min_workers is not None
            assert target.max_workers is not None
            self._limits = ScalingLimits(target.min_workers, target.max_workers, useful)
            self._wanted = self._limits.clamp(getattr(self, "_wanted", self._config.rollout.num_workers))
            self._scaling = ScalingState(self._wanted)
            most = target.max_workers
        self._observations = []
        return too_many_workers(most, self._config, self._sizes) if most > useful else ""

    def _configured_workers(self) -> str:
        rollout = self._config.rollout
        self._wanted = rollout.initial_workers
        return f"{rollout.min_workers}:{rollout.max_workers}" if rollout.is_automatic else str(rollout.num_workers)

    # Saving.

    def _look_after_saving(self) -> None:
        if self._saving is not None:
            self._look_after_save_under_way(*self._saving)
        ledger = self._books.ledger
        may = self._learners.committed is not None and bool(self._learners.members)
        if not self._save_wanted or self._saving is not None or not may or self._clock() < self._retry_save_at:
            return
        self._save_wanted = False
        contents = Contents(
            version=ledger.version,
            agent_step=ledger.agent_step,
            stats=self._epoch.get("metrics", {}),
            coordinator=self._books.checkpoint_state(),
            is_final=self._ending is not None,
        )
        snapshots = self._pool.snapshots()
        keep = self._config.trainer.checkpoint.keep_last
        future = self._learners.save(self._checkpoint_dir, contents, snapshots, keep)
        self._saving = (future, ledger.version, self._clock())

    def _look_after_save_under_way(self, future: Future, version: int, began: float) -> None:
        is_late = self._clock() - began > SAVE_DEADLINE_S
        if not self._children.wait([future], 0.0) and not is_late:
            return
        self._saving = None
        try:
            saved: Saved = self._children.result(future, 0.1)
        except Exception as error:
            self._save_failed(failure_of(error).text, version)
            return
        self._saved = {"path": saved.path, "epoch": version, "at": self._clock(), "bytes": saved.size_bytes}
        self._books.compact()
        self._event("checkpoint", f"checkpoint {saved.path} ({saved.size_bytes / 1e6:.1f} MB, {saved.seconds:.2f} s)")
        self._answer_savers({"ok": True, "message": saved.path})

    def _save_failed(self, reason: str, version: int) -> None:
        """Training goes on; the checkpoint before is untouched."""
        self._event("checkpoint_failed", f"checkpoint of epoch {version} was not written: {reason}; training goes on")
        self._answer_savers({"ok": False, "message": reason})
        self._save_wanted = True
        self._retry_save_at = self._clock() + RETRY_SAVE_S
        self._failed_saves = getattr(self, "_failed_saves", 0) + 1

    def _answer_savers(self, answer: dict[str, Any]) -> None:
        for waiting in self._save_answers:
            waiting.set_result(answer)
        self._save_answers.clear()

    # Ends.

    def _end(self, how: RunState, reason: str) -> None:
        """Drains: no new tickets; what is under way is finished, saved, and then the run is over."""
        if self._ending is None:
            self._ending = how
            self._pipeline.paused = True
            self._enter(RunState.DRAINING, reason)

    def _is_over(self) -> bool:
        """Moves a run that ends along: quiet, saved, evaluated."""
        if self._state.is_final:
            return True
        if self._ending is None:
            if self._learners_have_begun and self._pipeline.is_finished:
                self._end(RunState.DONE, "all agent steps are trained")
            return False
        if not self._learners_have_begun:
            self._finish(self._ending, "ended before training began")
            return True
        if not self._pipeline.is_quiet:
            return False
        self._pipeline.drop_queued("surplus" if self._ending is RunState.DONE else "stopped")
        version = self._books.ledger.version
        has_trained = version > 0
        if has_trained and self._saved.get("epoch") != version:
            gives_up = getattr(self, "_failed_saves", 0) >= 3
            self._save_wanted = self._save_wanted or (self._saving is None and not gives_up)
            if not gives_up:
                return False
        if self._saving is not None:
            return False
        evaluation = self._evaluate() if self._ending is RunState.DONE and self._config.evaluate else None
        self._finish(self._ending, evaluation or "")
        return True

    def _evaluate(self) -> str:
        """Plays the last policy; an evaluation that fails is told, and nothing more."""
        path = self._saved.get("path")
        if path is None:
            return ""
        self._enter(RunState.EVALUATING, "playing evaluation episodes")
        for event in self._pool.stop():  # their cores are free for it
            self._books.record({"kind": "left", "role": "rollout", "number": event.member.number})
        identity = Identity(
            self.run, "evaluator", self._books.take_number("evaluator"), secrets.token_hex(8), self._books.generation
        )
        child = self._children.start("evaluator", identity, self._config.model_dump(), self._dirs.run_dir)
        future = child.call("evaluate", f"file://{path}")
        deadline = self._clock() + EVALUATION_DEADLINE_S
        while self._clock() < deadline and not self._children.wait([future], TURN_S):
            self._obey()
            self._look_after_people()
            self._keep_up_appearances()
            if self._ending is not RunState.DONE:
                break
        try:
            table: str = self._children.result(future, 0.1)
        except Exception as error:
            table = f"the evaluation failed: {failure_of(error).text}"
        child.retire()
        return table

    def _finish(self, how: RunState, text: str) -> None:
        ledger = self._books.ledger.totals()
        self._result = {
            "state": how.value,
            "text": text,
            "checkpoint": self._saved.get("path"),
            "metrics": str(Path(self._dirs.run_dir) / "metrics.jsonl"),
            "ledger": ledger,
            "failures": self._failures(),
        }
        if text:
            self._note(text)
        if self._saved.get("path"):
            self._note(f"checkpoint: {self._saved['path']}")
        self._enter(how, "")

    def _fail(self, message: str, *, bad_input: bool = False) -> None:
        self._message = message
        self._result = {
            "state": "failed",
            "text": message,
            "bad_input": bad_input,
            "checkpoint": self._saved.get("path"),
        }
        if self._saved.get("path"):
            message = f"{message}\nlast good checkpoint: {self._saved['path']}"
        self._enter(RunState.FAILED, message)

    def _leave(self) -> None:
        """Ends all children, says so in the store, and, once the driver has seen it, ends itself."""
        for name in ("_pool", "_learners"):
            part = getattr(self, name, None)
            if part is not None:
                try:
                    part.stop()
                except Exception:
                    logger.exception("some children of run %s may be left", self.run)
        if hasattr(self, "_books"):
            for number in list(self._books.members["rollout"]):
                self._books.record({"kind": "left", "role": "rollout", "number": number})
            self._books.close()
        if hasattr(self, "_children"):
            self._children.remove_group()
        self._refresh_status()
        self._put_record()
        with self._news:
            self._news.notify_all()
        lock = fs.RunLock.held(self._dirs.run_dir) if hasattr(self, "_dirs") else None
        if lock is not None:
            lock.release()
        self._closing.wait(LINGER_S)
        try:
            handle = ray.get_actor(coordinator_name(self.run), namespace=namespace_of(self.run))
            ray.kill(handle, no_restart=True)
        except Exception:
            os._exit(0)

    # What people see.

    def _look_after_people(self) -> None:
        now, timeout_s = self._clock(), self._config.failure.driver_timeout_s
        for driver, seen in list(self._drivers.items()):
            if now - seen > timeout_s:
                del self._drivers[driver]
                if not self._config.detach:
                    self._event("driver_lost", f"the driver was not heard of for {now - seen:.0f} s")
                    self._end(RunState.STOPPED, "its driver is gone")

    def _keep_up_appearances(self) -> None:
        now = self._clock()
        if now - self._lease_at > max(self._config.failure.heartbeat_s, self._config.failure.lease_s / 10):
            self._lease_at, self._pings = now, self._learners.renew()
        if now - self._status_at >= STATUS_EVERY_S:
            self._refresh_status()
            if self._ending is None and not self._pipeline.paused:
                is_running = self._learners_have_begun and bool(self._pool.ready)
                self._enter(RunState.RUNNING if is_running else RunState.WAITING, "")
        if now - self._record_at >= RECORD_EVERY_S:
            self._record_at = now
            self._put_record()

    def _refresh_status(self) -> None:
        self._status_at = self._clock()
        status: dict[str, Any] = {
            "run": self.run,
            "state": self._state.value,
            "message": self._message,
            "total_timesteps": self._config.trainer.total_timesteps,
            "dashboard_url": self._session.get("dashboard_url"),
            "events": list(self._events)[-20:],
            "pid": os.getpid(),
        }
        if hasattr(self, "_pipeline"):
            books, ledger = self._books, self._books.ledger
            checkpoint = {
                "path": self._saved.get("path"),
                "epoch": self._saved.get("epoch"),
                "age_s": round(self._clock() - self._saved["at"], 1) if "at" in self._saved else None,
            }
            status |= {
                "generation": books.generation,
                "agent_step": ledger.agent_step,
                "total_timesteps": self._pipeline.total_timesteps,
                "policy_version": ledger.version,
                "epoch": ledger.version,
                "reward": self._epoch.get("reward"),
                "agent_steps_per_second": self._epoch.get("agent_steps_per_second"),
                "staleness": self._epoch.get("staleness"),
                "bottleneck": self._epoch.get("bottleneck"),
                "workers": self._workers(with_list=True),
                "learners": self._learner_list(),
                "ledger": ledger.totals(),
                "failures": self._failures(),
                "checkpoint": checkpoint,
                "settings": dict(books.settings),
                "waiting_for": self._waiting_for(),
                "run_dir": self._dirs.run_dir,
                "unwritten_events": books.unwritten,
                "bytes_outstanding": self._pipeline.bytes_outstanding,
                "byte_budget": self._pipeline.byte_budget,
            }
        self._status = status

    def _workers(self, *, with_list: bool = False) -> dict[str, Any]:
        pool = self._pool
        counts: dict[str, Any] = {
            "wanted": self._wanted,
            "ready": len(pool.ready),
            "starting": len(pool.starting),
            "draining": len(pool.draining),
            "useful": self._sizes.useful_workers,
        }
        if with_list:
            members = [*(pool.members[slot] for slot in sorted(pool.members)), *pool.draining]
            counts["list"] = [
                {
                    "stream": member.number,
                    "slot": member.slot,
                    "state": member.state.value,
                    "pid": member.info.pid if member.info else None,
                    "host": member.info.host if member.info else None,
                    "node": member.info.node_id if member.info else None,
                    "tickets": len(member.orders),
                    "fragments": member.fragments,
                    "rss_bytes": member.info.rss_bytes if member.info else None,
                    "incarnation": member.child.identity.incarnation,
                }
                for member in dict.fromkeys(members)
            ]
        return counts

    def _learner_list(self) -> list[dict[str, Any]]:
        seats: list[tuple[int | None, str, Replica]] = [
            (rank, "training", member) for rank, member in enumerate(self._learners.members)
        ]
        seats += [(None, "joining", member) for member in self._learners.newcomers]
        return [
            {
                "name": f"learner-{replica.number}",
                "rank": rank,
                "state": state,
                "pid": replica.info.pid if replica.info else None,
                "node": replica.info.node_id if replica.info else None,
            }
            for rank, state, replica in seats
        ]

    def _failures(self) -> dict[str, int]:
        counts = {cause.value: count for cause, count in self._pool.failures.items()}
        return counts | {"learner": self._learners.failures, "repeated_updates": self._learners.repeated_updates}

    def _waiting_for(self) -> str | None:
        if not self._learners_have_begun and self._learners.newcomers:
            return self._children.missing_resources("learner", len(self._learners.newcomers)) or "learners to start"
        if not self._pool.ready and self._pool.wanted:
            return self._pool.waiting_for() or "the first rollout worker to start"
        return self._pool.waiting_for()

    def _enter(self, state: RunState, text: str) -> None:
        if state is self._state or not may_follow(self._state, state):
            return
        self._state = state
        self._refresh_status()
        if text:
            self._note(f"{state.value}: {text}")

    def _event(self, kind: str, text: str) -> None:
        """Something happened: kept, counted, and told as long as it is not the hundredth of its kind."""
        logger.info("%s: %s", kind, text)
        self._events.append(f"{time.strftime('%H:%M:%S')} {text.splitlines()[0]}")
        told = self._told[kind] = self._told.get(kind, 0) + 1
        if told <= TOLD.get(kind, 1000):
            self._note(text)
        elif told == TOLD[kind] + 1 and TOLD[kind]:
            self._note(f"further events of the kind {kind!r} are only counted: see metta-ray status {self.run}")
        if self._store is not None:
            try:
                self._store.add_event(EventRecord(self.run, time.time(), kind, text))
            except StateStoreError as error:
                logger.warning("event not stored: %s", error)

    def _note(self, text: str) -> None:
        self._tell({"text": text})

    def _tell(self, line: dict[str, Any]) -> None:
        with self._news:
            self._lines.append({"number": self._next_line, **line})
            self._next_line += 1
            self._news.notify_all()

    _store: StateStore | None = None

    def _open_store(self) -> StateStore | None:
        """The store is for people: a run trains without one too."""
        try:
            return open_store(store_url(self._config.state.url, self._session["data_dir"]))
        except StateStoreError as error:
            self._note(f"warning: {error}; the run goes on, but metta-ray runs will not show it")
            return None

    def _put_record(self) -> None:
        if self._store is None:
            return
        status = self._status
        record = RunRecord(
            name=self.run,
            run_dir=self._dirs.run_dir,
            state=self._state.value,
            generation=self._books.generation,
            started=self._started,
            updated=time.time(),
            ray_address=self._session.get("ray_address"),
            dashboard_url=self._session.get("dashboard_url"),
            namespace=namespace_of(self.run),
            job_id=self._session.get("job_id"),
            driver_pid=self._session.get("driver_pid"),
            agent_step=status.get("agent_step", 0),
            total_timesteps=status.get("total_timesteps", 0),
            policy_version=status.get("policy_version", 0),
            reward=status.get("reward"),
            message=self._message.splitlines()[0] if self._message else "",
            config=self._config.record(),
        )
        try:
            self._store.put_run(record)
        except StateStoreError as error:
            logger.warning("record not stored: %s", error)


_LIVE_SECTIONS = ("optimizer", "ppo", "vtrace", "prioritized_experience_replay", "total_timesteps")
