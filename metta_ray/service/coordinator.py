"""The coordinator: one per run, detached and named; owns the books, the children and the loop.

A thread of its own runs the pipeline; the methods, which Ray calls from other threads, read what that thread wrote
down last or put a command into its queue. When Ray starts the coordinator anew, it opens the journal, finds its
children by their names, takes over what they finished meanwhile and goes on.

Loads neither torch nor an engine, so that it is back in a moment.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from concurrent.futures import Future as Answer
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import ray

from metta_ray.common.errors import ConfigError, LearnersLost, MettaRayError, RunDirectoryInUse, StateStoreError
from metta_ray.common.util import fs
from metta_ray.control.run_state import RunState
from metta_ray.control.schedule import is_due
from metta_ray.rl.curriculum_log import CurriculumLog
from metta_ray.rl.progress import MetricsLog
from metta_ray.rl.run_directories import package_versions, save_experiment_config, setup_run_directories
from metta_ray.rl.trackers import open_trackers
from metta_ray.rl.vecenv import training_factory
from metta_ray.service.announcer import EVENTS_FILE, Announcer
from metta_ray.service.books import Books
from metta_ray.service.causes import failure_of
from metta_ray.service.checkpointer import Newest
from metta_ray.service.children import Child
from metta_ray.service.commands import Commands, Reply
from metta_ray.service.evaluations import OWN_SUITE, Wish
from metta_ray.service.identity import Identity, coordinator_name, namespace_of
from metta_ray.service.layout import Speed
from metta_ray.service.metrics_exporter import CoordinatorMetrics
from metta_ray.service.orders import Restored, UpdateResult
from metta_ray.service.process_info import ProcessInfo, require_same_versions
from metta_ray.service.run_config import RunConfig, store_url
from metta_ray.service.run_log import keep_log
from metta_ray.service.run_status import facts_before_opening, facts_of, failures_of, workers_of
from metta_ray.service.sizes import Sizes
from metta_ray.service.uploads import Uploads
from metta_ray.service.wiring import build_parts
from metta_ray.service.worker_count import WorkerCount
from metta_ray.state.base import StateStore
from metta_ray.state.open_store import open_store
from metta_ray.state.publisher import Publisher
from metta_ray.state.records import RunRecord
from metta_ray.state.timed_store import TimedStore

logger = logging.getLogger(__name__)

TURN_S = 0.05
STATUS_EVERY_S = 0.25
RECORD_EVERY_S = 1.0
NODES_EVERY_S = 1.0
WAITED_S = 3.0
"""Waiting that lasts so long is told: starting takes seconds anyway."""
LINGER_S = 5.0
STORE_S = 3.0
"""A store that is away when a run ends is not waited for any longer."""
COMMAND_S = 60.0
CHECKPOINT_COMMAND_S = 180.0


class Coordinator:
    """config, sizes, spec: of the run, checked. session: what only the starting process knows (addresses, job)."""

    def __init__(self, run: str, config: dict[str, Any], sizes: Sizes, spec: dict[str, Any], session: Reply) -> None:
        self.run = run
        self._config = RunConfig.from_mapping(config)
        self._sizes = sizes
        self._spec = spec
        self._session = session
        self._clock = time.monotonic
        self._started = time.time()
        self._was_restarted = bool(ray.get_runtime_context().was_current_actor_reconstructed)
        self._commands: SimpleQueue[tuple[str, tuple[Any, ...], Answer[Reply]]] = SimpleQueue()
        self._announcer = Announcer(run)
        self._metrics = CoordinatorMetrics(run, self._config, was_restarted=self._was_restarted)
        self._count = WorkerCount(self._config, sizes)
        self._drivers: dict[str, float] = {}
        self._seen_by_driver = threading.Event()
        self._is_open = self._has_begun = False
        self._ending: RunState | None = None
        self._final_evaluation: int | None = None
        self._is_playing = False
        self._epoch: dict[str, Any] = {}
        self._status: Reply = {}
        self._status_at = self._record_at = self._lease_at = self._nodes_at = float("-inf")
        self._left_nodes: set[str] = set()
        self._waits: tuple[str | None, float] = (None, 0.0)  # for what, since when; inf: it was told
        self._checked: set[str] = set()
        self._stored_generation = 0
        self._refresh_status()
        threading.Thread(target=self._live, name="pipeline", daemon=True).start()

    def __repr__(self) -> str:
        return f"coordinator(run={self.run})"

    # What is asked from outside. Called in threads of Ray.

    def status(self) -> Reply:
        return self._status

    def progress(self, after: int, timeout_s: float = 5.0) -> Reply:
        """Lines with numbers above ``after``, waiting for one; the state; at the end, the result."""
        return self._announcer.progress(after, timeout_s)

    def scale(self, workers: str) -> Reply:
        return self._ask("scale", workers)

    def pause(self) -> Reply:
        return self._ask("pause")

    def unpause(self) -> Reply:
        return self._ask("unpause")

    def checkpoint(self) -> Reply:
        return self._ask("checkpoint", timeout_s=CHECKPOINT_COMMAND_S)

    def evaluate(
        self, suite: str = OWN_SUITE, epoch: int | None = None, episodes: int | None = None, seed: int = 0
    ) -> Reply:
        """Asks for an evaluation of a checkpoint, by default of the policy as it is now; its number is in the answer,
        its result in ``evaluation``."""
        return self._ask("evaluate", suite, epoch, episodes, seed, timeout_s=CHECKPOINT_COMMAND_S)

    def evaluation(self, number: int) -> Reply:
        return self._ask("evaluation", number)

    def curriculum(self) -> Reply:
        """How every task stands."""
        return self._ask("curriculum")

    def set(self, name: str, value: Any) -> Reply:
        return self._ask("set", name, value)

    def stop(self, force: bool = False) -> Reply:
        return self._ask("stop", force)

    def attach(self, driver_id: str, heartbeat: int) -> Reply:
        """The life sign of a driver, with which the run ends."""
        del heartbeat
        self._drivers[driver_id] = self._clock()
        return {"ok": True, "message": ""}

    def close(self) -> Reply:
        """The driver has seen the end: nothing keeps the coordinator any longer."""
        self._seen_by_driver.set()
        return {"ok": True, "message": ""}

    def _ask(self, command: str, *args: Any, timeout_s: float = COMMAND_S) -> Reply:
        if self._announcer.state.is_final:
            return {"ok": False, "message": f"run {self.run} has ended: {self._announcer.state}"}
        answer: Answer[Reply] = Answer()
        self._commands.put((command, args, answer))
        return answer.result(timeout=timeout_s)

    # The life of a run. Everything below runs in the pipeline's thread.

    def _live(self) -> None:
        try:
            self._open()
            while not self._is_over():
                self._turn()
        except MettaRayError as error:
            self._fail(str(error), is_bad_input=isinstance(error, ConfigError | RunDirectoryInUse))
        except BaseException as error:
            logger.exception("run %s failed", self.run)
            failure = failure_of(error)
            self._fail(f"{failure.text}\n{failure.traceback}".strip())
        finally:
            self._leave()

    def _turn(self) -> None:
        self._obey()
        try:
            if not self._has_begun:
                self._begin()
            self._pipeline.step(TURN_S)
        except LearnersLost as error:
            self._go_back(error)
        self._save_if_wanted()
        self._evaluations.look_after()
        self._look_after_drivers()
        self._look_after_nodes()
        self._keep_up_appearances()

    def _open(self) -> None:
        """Takes the run's directory, reads the books, and puts the parts together."""
        dirs = self._dirs = setup_run_directories(self.run, self._session["data_dir"])
        logging.getLogger("metta_ray").setLevel(logging.INFO)
        keep_log(dirs.run_dir)
        self._announcer.events_file = Path(dirs.run_dir) / EVENTS_FILE
        self._uploads = Uploads(dirs.run_dir, self._session.get("remote"), self._announcer)
        trainer = self._config.trainer
        self._config = self._config.model_copy(update={"trainer": trainer.in_run_dir(dirs.run_dir)})
        self._checkpoint_dir = self._config.trainer.checkpoint.checkpoint_dir
        self._open_store()
        self._books = Books(Path(dirs.run_dir), training_factory(trainer).curriculum())
        self._books.record({"kind": "generation", "number": self._next_generation()}, sync=True)
        if not self._was_restarted:
            record = self._config.record()
            sections = {name: record[name] for name in record if name not in ("trainer", "device", "run", "data_dir")}
            save_experiment_config(dirs, self._config.learner.device, trainer, **sections)
        self._trackers = open_trackers(
            dirs.run_dir,
            self.run,
            self._config.record(),
            tensorboard=self._config.tensorboard,
            wandb=self._config.wandb,
        )
        self._log = MetricsLog(dirs.run_dir, trackers=self._trackers)
        self._curriculum_log = CurriculumLog(dirs.run_dir, trainer.total_timesteps)
        self._worker_snapshots: dict[int, Any] = {}
        parts = self._parts = build_parts(
            self.run,
            self._config,
            self._sizes,
            self._spec,
            dirs.run_dir,
            self._books,
            self._count,
            self._announcer,
            self._clock,
            speed=Speed.of_session(self._config, self._sizes, self._session),
            snapshot_of=lambda slot: self._worker_snapshots.pop(slot, None),
            on_epoch=self._epoch_done,
            on_learner=self._learner_changed,
        )
        self._children, self._pool, self._learners = parts.children, parts.pool, parts.learners
        self._pipeline, self._checkpointer = parts.pipeline, parts.checkpointer
        self._evaluations = parts.evaluations
        self._command = Commands(parts)
        self._count.ask(self._books.workers or self._count.configured)
        self._is_open = True
        self._refresh_status()
        self._metrics.open(self._status)
        self._take_over_evaluators()
        self._is_adopting = self._was_restarted and self._adopt_learners()
        if self._is_adopting:
            return
        self._end_leftovers()
        self._learners.start()
        if not any(Path(self._checkpoint_dir).glob("model_*")):
            self._pool.wanted = self._count.wanted  # nothing to restore: workers may start beside the learners

    # Beginning, and beginning again.

    def _begin(self) -> None:
        """As soon as all learner replicas are there, they get the state to start from."""
        if not self._learners.are_ready():
            return
        for replica in self._learners.newcomers:
            self._require_same_versions(f"learner-{replica.number}", replica.info)
        if self._is_adopting:
            self._resume_after_restart()
        else:
            self._start_from(self._learners.begin(self._checkpoint_dir))
        self._has_begun = True
        self._pool.wanted = self._count.wanted
        self._pipeline.restart_clock()

    def _start_from(self, restored: Restored) -> None:
        for reason in restored.passed_over:
            self._announcer.event("damaged", f"a damaged checkpoint is passed over: {reason}")
        if restored.path is None and self._books.is_new:
            source = f", starting from the weights of {restored.initial_policy}" if restored.initial_policy else ""
            self._announcer.note(f"run {self.run}: {self._description()}{source}")
            return
        self._books.restore_checkpoint(restored.version, restored.agent_step, restored.coordinator)
        self._worker_snapshots = {slot: ray.put(state) for slot, state in restored.workers.items()}
        if restored.path is not None:
            self._checkpointer.newest = Newest(restored.path, restored.version, self._clock())
        self._log = MetricsLog(self._dirs.run_dir, keep_until_epoch=restored.version, trackers=self._trackers)
        self._announcer.note(
            f"continuing {self.run} after epoch {restored.version}, {restored.agent_step:,} agent steps, from "
            f"{restored.path or 'the beginning, since no checkpoint had been written'}:\n"
            "  restored weights, optimiser, schedules, curriculum, ledger, and environments, recurrent and random "
            f"states of {len(restored.workers)} worker(s)"
        )

    def _adopt_learners(self) -> bool:
        """Finds the replicas of the coordinator before this one; False if none is left."""
        self._announcer.event("restarted", f"the coordinator is back (generation {self._books.generation})")
        living = [self._find("learner", number) for number in sorted(self._books.members["learner"])]
        self._learners.adopt([child for child in living if child is not None])
        return bool(self._learners.newcomers)

    def _take_over_evaluators(self) -> None:
        """Whatever becomes of the learners: what is being played goes on. Those of an earlier start of the run end."""

        def find(number: int) -> Child | None:
            child = self._find("evaluator", number)
            if child is not None and not self._was_restarted:
                child.kill(None)
                return None
            return child

        self._evaluations.pool.take_over(list(self._books.members["evaluator"]), find)

    def _resume_after_restart(self) -> None:
        """Takes over what the learners finished meanwhile, then asks the workers again for what they owe."""
        finished = self._learners.resume(self._books.ledger.version)
        if finished is not None:
            self._commit_found(finished)
        self._learners.form()
        self._adopt_workers()
        version = self._books.ledger.version
        self._announcer.event("resumed", f"goes on at policy version {version}; no update was lost")

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

    def _adopt_workers(self) -> None:
        ledger = self._books.ledger
        for number, member in sorted(self._books.members["rollout"].items()):
            child = self._find("rollout", number)
            owed = [ticket for ticket in ledger.open_tickets if ledger.worker_of(ticket) == number]
            if child is not None and member["slot"] not in self._pool.members:
                self._pool.adopt(member["slot"], child, {ticket: self._pipeline.ticket(ticket) for ticket in owed})
                continue
            self._books.record({"kind": "left", "role": "rollout", "number": number})
            for ticket in owed:
                self._books.record({"kind": "lose", "ticket": ticket, "reason": "crash"})

    def _find(self, role: str, number: int) -> Child | None:
        member = self._books.members[role][number]
        generation = member.get("generation", self._books.generation)
        return self._children.find(Identity(self.run, role, number, member["incarnation"], generation))

    def _end_leftovers(self) -> None:
        """Ends what an earlier coordinator may have left in this cluster."""
        for role in ("rollout", "learner"):
            for number in list(self._books.members[role]):
                child = self._find(role, number)
                if child is not None:
                    child.kill(None)
                self._books.record({"kind": "left", "role": role, "number": number})

    def _go_back(self, error: LearnersLost) -> None:
        """The last replica's state is gone: new learners, from the newest checkpoint."""
        self._learners.spend_failure(str(error))
        self._announcer.event("learners_lost", f"{error}; going back to the newest checkpoint")
        self._learners.stop()
        self._pipeline.forget_all()
        if self._is_adopting:
            self._end_leftovers()  # workers that were to be taken over by a state that is gone
        self._is_adopting = self._has_begun = False
        self._learners.start()

    # Epochs.

    def _epoch_done(self, record: dict[str, Any]) -> None:
        """Called by the pipeline after each commit, before anything new is ordered."""
        self._epoch, epoch = record, record["epoch"]
        self._write_metrics(record)
        self._metrics.epoch(record, self._books.curriculum)
        shown = {name: value for name, value in record.items() if name not in ("metrics", "losses", "hyperparameters")}
        workers = workers_of(self._pool, self._count.wanted, self._sizes.useful_workers)
        self._announcer.tell(shown | {"total_timesteps": self._pipeline.total_timesteps, "workers": workers})
        if is_due(epoch, epoch - 1, self._config.trainer.checkpoint.checkpoint_interval):
            self._checkpointer.want()
        is_last = self._config.evaluate and self._pipeline.is_finished  # which is evaluated anyway
        if is_due(epoch, epoch - 1, self._config.trainer.simulation.evaluate_interval) and not is_last:
            self._evaluations.want(Wish(epoch, "interval"))
        self._save_if_wanted()  # now, so that in synchronous mode the cut lies between two batches
        resize = self._count.observe(record, len(self._pool.ready))
        if resize is not None:
            self._pool.wanted = resize.num_workers
            self._announcer.event("resize", f"{resize.num_workers} workers wanted: {resize.reason}")

    def _write_metrics(self, record: dict[str, Any]) -> None:
        speed = {
            "time": time.time(),
            "agent_steps_per_second": record["agent_steps_per_second"],
            "efficiency": record["efficiency"],
            "epoch_seconds": record["epoch_seconds"],
            "update_seconds": record["update_seconds"],
            "staleness/mean": record["staleness"]["mean"],
            "staleness/max": record["staleness"]["max"],
            **{f"staleness/count/{lag}": fragments for lag, fragments in record["staleness"]["histogram"].items()},
            "workers/wanted": self._count.wanted,
            "workers/ready": len(self._pool.ready),
            **{f"share/{name}": value for name, value in record["shares"].items()},
        }
        try:
            self._log.write(
                record["epoch"],
                record["agent_step"],
                speed,
                record["metrics"],
                losses=record["losses"],
                hyperparameters=record["hyperparameters"],
            )
            self._curriculum_log.note(record["epoch"], record["agent_step"], self._books.curriculum)
        except OSError as error:
            self._announcer.event("metrics", f"metrics of epoch {record['epoch']} were not written: {error}")

    def _save_if_wanted(self) -> None:
        self._checkpointer.look_after(self._epoch.get("metrics", {}), is_final=self._ending is not None)

    # Commands.

    def _obey(self) -> None:
        while True:
            try:
                command, args, answer = self._commands.get_nowait()
            except Empty:
                return
            try:
                reply = self._stop(*args) if command == "stop" else self._follow(command, args, answer)
            except Exception as error:
                answer.set_exception(error)
                continue
            self._refresh_status()
            if reply is not None:
                answer.set_result(reply)

    def _follow(self, command: str, args: tuple[Any, ...], answer: Answer[Reply]) -> Reply | None:
        """None: the command answers by itself, later."""
        if self._ending is not None:
            return {"ok": False, "message": f"run {self.run} is ending"}
        return self._command.follow(command, args, answer, has_begun=self._has_begun)

    def _stop(self, force: bool) -> Reply:
        if force:
            self._end(RunState.STOPPED, "stopped at once")
            self._finish(RunState.STOPPED, "stopped without a last checkpoint")
            return {"ok": True, "message": "stopped at once"}
        self._end(RunState.STOPPED, "stop was asked for")
        return {"ok": True, "message": "stopping: what is under way is finished, then saved"}

    # Ends.

    def _end(self, how: RunState, reason: str) -> None:
        """Drains: no new tickets; what is under way is finished, saved, and then the run is over."""
        if self._ending is None or how is RunState.STOPPED:
            self._ending = how
            self._pipeline.paused = True
            self._announcer.enter(RunState.DRAINING, reason)

    def _is_over(self) -> bool:
        """Moves a run that ends along: quiet, saved, evaluated, finished."""
        if self._announcer.state.is_final:
            return True
        if self._ending is None:
            if self._has_begun and self._pipeline.is_finished:
                self._end(RunState.DONE, "all agent steps are trained")
            return False
        if not self._has_begun:
            return self._finish(self._ending, "ended before training began")
        if self._is_playing:
            return self._await_evaluations()
        if not self._pipeline.is_quiet:
            return False
        self._pipeline.drop_queued("surplus" if self._ending is RunState.DONE else "stopped")
        if not self._is_saved():
            return False
        if self._ending is RunState.DONE and self._begin_last_evaluations():
            return False
        return self._finish(self._ending, "")

    def _is_saved(self) -> bool:
        version, checkpointer = self._books.ledger.version, self._checkpointer
        if checkpointer.is_busy:
            return False
        if version == 0 or checkpointer.holds(version) or checkpointer.has_given_up:
            return True
        checkpointer.want()
        return False

    def _begin_last_evaluations(self) -> bool:
        """Whether there is something left to be played before the run is over."""
        newest = self._checkpointer.newest
        if self._config.evaluate and newest is not None:
            self._final_evaluation = self._evaluations.ask_for_the_last(newest)
        self._evaluations.give_up_wishes("the run has ended")
        if self._final_evaluation is None and self._evaluations.is_idle:
            return False
        self._announcer.enter(RunState.EVALUATING, "playing evaluation episodes")
        self._pool.wanted = 0  # their cores are free for it
        self._is_playing = True
        return True

    def _await_evaluations(self) -> bool:
        if self._ending is RunState.STOPPED:
            return self._finish(RunState.STOPPED, "stopped during the evaluation; training is complete")
        if not self._evaluations.is_idle:
            return False
        return self._finish(RunState.DONE, self._evaluations.text_of(self._final_evaluation))

    def _finish(self, how: RunState, text: str) -> bool:
        newest = self._checkpointer.newest
        self._announcer.result = {
            "state": how.value,
            "text": text,
            "checkpoint": newest.path if newest else None,
            "ledger": self._books.ledger.totals(),
            "failures": failures_of(self._pool, self._learners),
        }
        if text:
            self._announcer.note(text)
        if newest is not None:
            self._announcer.note(f"checkpoint: {newest.path}")
        self._uploads.finish(self._config.failure.upload_deadline_s)
        self._announcer.enter(how)
        return True

    def _fail(self, message: str, *, is_bad_input: bool = False) -> None:
        newest = self._checkpointer.newest if self._is_open else None
        if newest is not None:
            message = f"{message}\nlast good checkpoint: {newest.path}"
        if self._is_open:
            self._uploads.finish(self._config.failure.upload_deadline_s)
        self._announcer.message = message
        self._announcer.result = {"state": "failed", "text": message, "bad_input": is_bad_input}
        self._announcer.enter(RunState.FAILED, message)

    def _leave(self) -> None:
        """Ends all children, says so in the store, and, once the driver has seen it, ends itself."""
        if self._is_open:
            try:
                self._pool.stop()
                self._learners.stop()
                self._evaluations.pool.stop()
                self._log.close()
                for number in list(self._books.members["rollout"]):
                    self._books.record({"kind": "left", "role": "rollout", "number": number})
                self._books.close()
                self._children.remove_group()
            except Exception:
                logger.exception("something of run %s may be left; metta-ray stop %s --force", self.run, self.run)
            self._refresh_status()
            self._put_record()
        self._announcer.close(STORE_S)
        lock = fs.RunLock.held(self._dirs.run_dir) if hasattr(self, "_dirs") else None
        if lock is not None:
            lock.release()
        self._seen_by_driver.wait(LINGER_S)
        try:
            handle = ray.get_actor(coordinator_name(self.run), namespace=namespace_of(self.run))
            ray.kill(handle, no_restart=True)
        except Exception:
            os._exit(0)

    # What people see.

    def _look_after_drivers(self) -> None:
        """An attached run ends with its driver."""
        now, timeout_s = self._clock(), self._config.failure.driver_timeout_s
        for driver, seen in list(self._drivers.items()):
            if now - seen > timeout_s:
                del self._drivers[driver]
                self._announcer.event("driver_lost", f"the driver was not heard of for {now - seen:.0f} s")
                self._end(RunState.STOPPED, "its driver is gone")

    def _look_after_nodes(self) -> None:
        """A node that will be taken away loses no work: its workers finish what they owe, and all is saved."""
        now = self._clock()
        if now - self._nodes_at < NODES_EVERY_S:
            return
        self._nodes_at = now
        leaving = self._children.leaving_nodes()
        moved = self._pool.leave_nodes(leaving)
        learners = [replica for replica in self._learners.members if replica.info and replica.info.node_id in leaving]
        if moved or (learners and not leaving <= self._left_nodes):
            children = [member.child for member in moved] + [replica.child for replica in learners]
            names = ", ".join(str(child.identity) for child in children)
            self._announcer.event("preempted", f"a node will be taken away; {names} leave it, and a checkpoint is made")
            self._checkpointer.want()
        self._left_nodes |= leaving

    def _keep_up_appearances(self) -> None:
        now, failure = self._clock(), self._config.failure
        if now - self._lease_at > max(failure.heartbeat_s, failure.lease_s / 10):
            self._lease_at, self._pings = now, self._learners.renew()
        if now - self._status_at >= STATUS_EVERY_S:
            for member in self._pool.ready:
                self._require_same_versions(str(member.child.identity), member.info)
            if self._ending is None and not self._pipeline.paused:
                is_running = self._has_begun and bool(self._pool.ready)
                self._announcer.enter(RunState.RUNNING if is_running else RunState.WAITING)
            self._uploads.look_after()
            self._refresh_status()
            self._tell_what_is_waited_for()
        if now - self._record_at >= RECORD_EVERY_S:
            self._record_at = now
            self._put_record()

    def _tell_what_is_waited_for(self) -> None:
        now, waiting_for = self._status_at, self._status.get("waiting_for")
        if waiting_for != self._waits[0]:
            self._waits = (waiting_for, now)
        elif waiting_for is not None and now - self._waits[1] >= WAITED_S:
            self._announcer.note(f"waiting for {waiting_for}")
            self._waits = (waiting_for, float("inf"))

    def _refresh_status(self) -> None:
        self._status_at = self._clock()
        announcer = self._announcer
        status: Reply = {
            "run": self.run,
            "state": announcer.state.value,
            "message": announcer.message,
            "total_timesteps": self._config.trainer.total_timesteps,
            **{name: self._session.get(name) for name in ("dashboard_url", "grafana_url", "metrics_url")},
            "events": announcer.events,
            "pid": os.getpid(),
        }
        status |= facts_before_opening(self._count.wanted, self._sizes.useful_workers)
        if self._is_open:
            status |= facts_of(self._parts, self._epoch)
            status |= {"waiting_for": self._waiting_for(), "run_dir": self._dirs.run_dir}
            status["upload"] = self._uploads.facts()
        self._status = status

    def _waiting_for(self) -> str | None:
        if self._announcer.state.is_final or self._ending is not None:
            return None
        if not self._has_begun and self._learners.newcomers:
            return self._children.missing_resources("learner", len(self._learners.newcomers)) or "the learners' start"
        missing = self._pool.waiting_for() or self._evaluations.pool.waiting_for()
        if missing is None and self._pool.wanted and not self._pool.ready:
            return "the first rollout worker to start"
        return missing

    def _put_record(self) -> None:
        status, announcer = self._status, self._announcer
        self._metrics.status(status)
        announcer.put_record(
            RunRecord(
                name=self.run,
                run_dir=self._dirs.run_dir,
                state=announcer.state.value,
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
                message=announcer.message,
                best=status.get("best"),
                evaluations=status.get("evaluations", {}),
                config=self._config.record(),
            )
        )

    # Small questions.

    def _open_store(self) -> None:
        """The store is for people: a run trains without one too."""
        try:
            url = store_url(self._config.state.url, self._session["data_dir"])
            store = TimedStore(open_store(url, timeout_s=self._config.state.timeout_s), self._metrics.store_call)
        except StateStoreError as error:
            self._announcer.note(f"warning: {error}; the run goes on, but metta-ray runs will not show it")
            return
        self._stored_generation = self._generation_in(store)
        self._announcer.publisher = Publisher(store, self.run, self._announcer.note)

    def _next_generation(self) -> int:
        """Above all that ever wrote of this run, here or in the store, which may remember a run that was set aside."""
        return max(self._books.generation, self._stored_generation) + 1

    def _generation_in(self, store: StateStore) -> int:
        try:
            record = store.get_run(self.run)
        except StateStoreError:
            return 0  # the publisher will meet the same trouble, and tells it
        return record.generation if record is not None else 0

    def _learner_changed(self, what: str, number: int, details: Any) -> None:
        self._books.record({"kind": what, "role": "learner", "number": number, **details})
        if what == "left" and self._ending is None:
            self._announcer.event("learner_left", f"learner-{number} left")

    def _require_same_versions(self, who: str, info: ProcessInfo | None) -> None:
        if info is None or info.incarnation in self._checked:
            return
        self._checked.add(info.incarnation)
        require_same_versions(package_versions(), who, info)

    def _description(self) -> str:
        sizes, config = self._sizes, self._config
        threads = f" of {config.learner.threads} threads" if config.learner.threads > 1 else ""
        turns = "" if config.pacing.target_staleness else ", collecting and training in turn"
        return (
            f"{config.trainer.curriculum_or_env}, {self._count.wanted} rollout worker(s) with {sizes.num_envs} "
            f"environments each, {config.learner.replicas} learner(s){threads}{turns}, {sizes.fragments_per_batch} "
            f"fragments of {sizes.fragment_steps:,} agent steps per update, "
            f"{self._pipeline.total_timesteps:,} agent steps"
        )
