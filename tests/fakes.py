"""The service's children in this process, and a clock that tests turn.

    run = FakeRun(tmp_path, workers=2)
    run.start()
    run.step()
    run.workers[0].deliver()

``FakeChildren`` implements ``service/children.py``. A fake child answers when a test says so, or by itself after a time
on the manual clock; it can die, freeze, answer late, and lose what it returned. It keeps the promises of the real
ones: one call at a time, the same ticket gives the same fragment, replicas finish an update together or not at all.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    ObjectLostError,
    RayActorError,
    RayTaskError,
)

from metta_ray.common.errors import UsageError
from metta_ray.envs.tasks import TaskTable
from metta_ray.rl.fragment import FragmentHeader
from metta_ray.service.books import Books
from metta_ray.service.identity import Identity
from metta_ray.service.learner_group import LearnerGroup
from metta_ray.service.orders import Restored, Saved, Staged, Ticket, UpdateOrder, UpdateResult
from metta_ray.service.pipeline import TrainingPipeline
from metta_ray.service.process_info import ProcessInfo
from metta_ray.service.rollout_pool import RolloutPool
from metta_ray.service.run_config import RunConfig, load_run_config
from metta_ray.service.sizes import Sizes

HORIZON = 8
FRAGMENT_STEPS = 64
FRAGMENT_BYTES = 1000


class ManualClock:
    """Stands still until it is advanced."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


# What goes wrong, as Ray says it.


def died() -> Exception:
    return ActorDiedError()


def preempted() -> Exception:
    """Its node was taken away with notice."""
    error = ActorDiedError()
    error._preempted = True
    return error


def node_lost() -> Exception:
    return RayActorError(error_msg="The actor died because its node has died. Node Id: 6496d0fa")


def unavailable() -> Exception:
    """The answer is unknown: the call may have run."""
    return ActorUnavailableError("rpc failed", None)


def raised(error: Exception) -> Exception:
    """A method raised ``error``."""
    traceback = (
        f'Traceback (most recent call last):\n  File "user.py", line 1, in step\n{type(error).__name__}: {error}'
    )
    return RayTaskError("method", traceback, error).as_instanceof_cause()


def failed_to_start(error: Exception) -> Exception:
    """The constructor raised ``error``."""
    return ActorDiedError(RayTaskError("__init__", f"Traceback\n{type(error).__name__}: {error}", error))


def lost_object() -> Exception:
    return ObjectLostError("00" * 28, None, "")


# Calls.


class FakeFuture:
    """One result of a call. is_lost: its value was in an object store that is gone."""

    def __init__(self, call: Call, index: int) -> None:
        self.call = call
        self._index = index
        self.is_lost = False

    @property
    def is_done(self) -> bool:
        return self.call.is_done

    @property
    def value(self) -> Any:
        if self.call.error is not None:
            raise self.call.error
        if self.is_lost:
            raise lost_object()
        assert self.call.values is not None
        return self.call.values[self._index]


class Call:
    """A method that a child was asked for. Answered once; later answers are heard by nobody."""

    def __init__(self, method: str, args: tuple[Any, ...], results: int) -> None:
        self.method = method
        self.args = args
        self.futures = [FakeFuture(self, index) for index in range(results)]
        self.values: tuple[Any, ...] | None = None
        self.error: Exception | None = None

    @property
    def is_done(self) -> bool:
        return self.values is not None or self.error is not None

    def answer(self, *values: Any) -> None:
        if not self.is_done:
            self.values = values

    def fail(self, error: Exception) -> None:
        if not self.is_done:
            self.error = error


class FakeChild:
    """A process. end: how it was ended from outside, "retired" or "killed"."""

    def __init__(self, children: FakeChildren, identity: Identity, args: tuple[Any, ...]) -> None:
        self.identity = identity
        self.args = args
        self.children = children
        self.calls: list[Call] = []
        self.is_ready = False
        self.is_alive = True
        self.is_frozen = False
        self.end: str | None = None

    def __repr__(self) -> str:
        return str(self.identity)

    def call(self, method: str, *args: Any, results: int = 1) -> Any:
        call = Call(method, args, results)
        if not self.is_alive:
            call.fail(died())
        else:
            self.calls.append(call)
            self.take(call)
        return call.futures if results > 1 else call.futures[0]

    def retire(self) -> None:
        self.end = self.end or "retired"
        self.die()

    def kill(self, info: ProcessInfo | None) -> None:
        self.end = self.end or "killed"
        self.die()

    def die(self, error: Exception | None = None) -> None:
        """The process ends; whatever it was asked fails."""
        self.is_alive = False
        for call in self.calls:
            call.fail(error or died())

    def freeze(self) -> None:
        """It lives and answers nothing any more, not even what it is doing."""
        self.is_frozen = True

    def become_ready(self) -> None:
        self.is_ready = True
        for call in self.open_calls("describe"):
            self.take(call)

    def open_calls(self, method: str) -> list[Call]:
        return [call for call in self.calls if call.method == method and not call.is_done]

    def take(self, call: Call) -> None:
        """Does what is asked, or leaves it open."""
        if self.is_frozen or (call.method == "describe" and not self.is_ready):
            return
        handler = getattr(self, f"on_{call.method}", None)
        if handler is not None:
            handler(call)

    def on_describe(self, call: Call) -> None:
        call.answer(self.info())

    def info(self) -> ProcessInfo:
        number = self.identity.number
        return ProcessInfo(self.identity.incarnation, 10_000 + number, 0.0, "host", "node", {}, 0)


class FakeWorker(FakeChild):
    """Collects on command (``deliver``), or each fragment in ``children.fragment_seconds`` if that is set.

    sampled: tickets it sampled for, in order; one in it twice would be agent steps that nobody knows of.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.sampled: list[int] = []
        self.version = -1
        self._made: dict[int, FragmentHeader | None] = {}
        self._busy_until = 0.0

    @property
    def tickets(self) -> list[Ticket]:
        """What it was ordered and has not answered."""
        return [call.args[0] for call in self.open_calls("collect")]

    def on_collect(self, call: Call) -> None:
        seconds = self.children.fragment_seconds
        if seconds is not None:
            self._busy_until = max(self.children.clock(), self._busy_until) + seconds
            self.children.schedule(self._busy_until, self._deliver_by_itself)

    def on_snapshot(self, call: Call) -> None:
        call.answer(np.frombuffer(f"state of {self.identity}".encode(), np.uint8))

    def deliver(self, **changes: Any) -> FragmentHeader:
        """Answers the oldest order; changes: fields of the header that are not as they should be."""
        call = self.open_calls("collect")[0]
        header = self.collect(call.args[0], **changes)
        call.answer(header, f"fragment {header.ticket}")
        return header

    def fail(self, error: Exception) -> None:
        """The oldest order fails; the process lives unless the error says otherwise."""
        self.open_calls("collect")[0].fail(error)

    def answer_is_lost(self) -> None:
        """The oldest order is carried out, and the answer does not arrive."""
        call = self.open_calls("collect")[0]
        self.collect(call.args[0])
        call.fail(unavailable())

    def fragment_is_lost(self) -> None:
        """The oldest order is answered, and then the node that holds the fragment is lost."""
        call = self.open_calls("collect")[0]
        self.deliver()
        call.futures[1].is_lost = True

    def collect(self, ticket: Ticket, **changes: Any) -> FragmentHeader:
        for number in ticket.settled:
            if number in self._made:
                self._made[number] = None
        if ticket.number in self._made:
            header = self._made[ticket.number]
            if header is None:
                raise AssertionError(f"{self} was asked again for settled ticket {ticket.number}")
            return header
        self.version = max(self.version, ticket.weights.version)
        header = self._sample(ticket, changes)
        self._made[ticket.number] = header
        return header

    def _sample(self, ticket: Ticket, changes: dict[str, Any]) -> FragmentHeader:
        self.sampled.append(ticket.number)
        fields: dict[str, Any] = {
            "run": self.identity.run,
            "generation": ticket.generation,
            "ticket": ticket.number,
            "stream": self.identity.number,
            "incarnation": self.identity.incarnation,
            "policy_version": self.version,
            "segments": FRAGMENT_STEPS // HORIZON,
            "horizon": HORIZON,
            "counted_steps": FRAGMENT_STEPS,
            "size_bytes": FRAGMENT_BYTES,
            "outcomes": ((f"task {ticket.number}", 1.0),),
            "stats": {"episode/return": [1.0]},
            "seconds": {"environment": 0.6, "inference": 0.3, "transport": 0.1, "waiting": 0.0},
        }
        return FragmentHeader(**fields | changes)

    def _deliver_by_itself(self) -> None:
        if self.is_alive and not self.is_frozen and self.open_calls("collect"):
            self.deliver()


class FakeLearner(FakeChild):
    """A replica whose weights are the tickets that they were trained on, so that nothing can be trained twice unseen.

    Updates finish on command (``children.finish_update``), or in ``children.update_seconds`` if that is set.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.history: tuple[int, ...] = ()
        self.version = 0
        self.rank, self.world_size, self.group = 0, 1, -1
        self.staged: dict[int, list[Any]] = {}
        self.staged_ever: list[tuple[int, list[str]]] = []
        self.dies_in: str | None = None
        self.last: tuple[UpdateResult, Any, Any] | None = None

    def take(self, call: Call) -> None:
        if call.method == self.dies_in:
            self.die()
        else:
            super().take(call)

    def on_describe(self, call: Call) -> None:
        call.answer((self.info(), self.version))

    def on_begin(self, call: Call) -> None:
        call.answer(self.children.restored, self.history, ("optimiser", self.version))
        self.version = self.children.restored.version

    def on_open_store(self, call: Call) -> None:
        call.answer(("localhost", 1))

    def on_join(self, call: Call) -> None:
        place, _, version, [weights], [state] = call.args
        for earlier in self.open_calls("train"):
            earlier.fail(raised(RuntimeError("left the group")))
        try:
            self.history = weights.value
            _ = state.value
        except ObjectLostError as error:
            call.fail(raised(error))
            return
        self.rank, self.world_size, self.group, self.version = place.rank, place.world_size, place.group, version
        self.staged, self.last = {}, None
        call.answer(self.info())

    def on_stage(self, call: Call) -> None:
        _, group, batch, fragments, _ = call.args
        assert group == self.group
        self.staged[batch] = list(fragments)
        try:
            self.staged_ever.append((batch, [fragment.value for fragment in fragments]))
        except ObjectLostError as error:
            call.fail(raised(error))
            return
        call.answer(Staged(batch, FRAGMENT_BYTES * len(fragments), {"fetching": 0.0, "copying": 0.0}))

    def on_train(self, call: Call) -> None:
        order: UpdateOrder = call.args[0]
        if self.last is not None and self.last[0].tickets == order.tickets:
            call.answer(*self.last)
        elif order.version != self.version or order.group != self.group:
            call.fail(raised(UsageError(f"{self} is at version {self.version}, the order is for {order.version}")))
        else:
            self.children.join_update(self)

    def on_export(self, call: Call) -> None:
        result = self.last[0] if self.last else None
        call.answer(self.version, result, self.history, ("optimiser", self.version))

    def on_save(self, call: Call) -> None:
        directory, contents = call.args[0], call.args[1]
        call.answer(Saved(f"{directory}/model_{contents.version:04d}", 1, 0.0))

    def has_its_share(self, call: Call) -> bool:
        """Whether its fragments of the batch are there; without them it leaves the update."""
        try:
            for fragment in self.staged[call.args[0].batch]:
                _ = fragment.value
        except ObjectLostError as error:
            call.fail(raised(error))
        return not call.is_done

    def finish(self, call: Call) -> None:
        """The update's end, which all replicas reach together."""
        order: UpdateOrder = call.args[0]
        self.version, self.history = order.version + 1, (*self.history, *order.tickets)
        result = UpdateResult(
            incarnation=self.identity.incarnation,
            rank=self.rank,
            version=self.version,
            agent_step=order.agent_step,
            tickets=order.tickets,
            losses={"policy_loss": 0.5},
            hyperparameters={"learning_rate": 1e-3},
            metrics={},
            seconds={"waiting": 0.0, "training": 0.1},
            skipped_updates=0,
            digest=str(self.history) if order.compare_replicas else None,
        )
        is_leader = self.rank == 0
        self.last = (result, self.history, ("optimiser", self.version)) if is_leader else (result, None, None)
        call.answer(*self.last)

    def die(self, error: Exception | None = None) -> None:
        was_training = bool(self.open_calls("train"))
        super().die(error)
        if was_training:
            self.children.break_update(self.group)


class FakeEvaluator(FakeChild):
    """Plays on command (``finish``, ``refuse``). played: numbers of what it was asked to play, in order."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.played: list[int] = []

    def on_evaluate(self, call: Call) -> None:
        self.played.append(call.args[0].number)

    def finish(self, **changes: Any) -> None:
        """Answers what it plays; changes: of the result."""
        call = self.open_calls("evaluate")[0]
        call.answer(evaluation_result(call.args[0], **changes))

    def refuse(self, reason: str) -> None:
        self.open_calls("evaluate")[0].answer({"refused": reason})

    def fail(self, error: Exception) -> None:
        self.open_calls("evaluate")[0].fail(error)


def evaluation_result(request: Any, **changes: Any) -> dict[str, Any]:
    """What an evaluator answers. By default its policy is the best of all so far."""
    own = {"policy": request.policy_uri, "version": request.version, "score": 0.5, "low": 0.4, "high": 0.6}
    result = {
        **own,
        "suite": request.suite or "evaluation",
        "simulations": [{"simulation": "one", "score": 0.5}],
        "standing": {"compared": request.version or 1, "best": dict(own)},
        "regression": None,
        "text": f"evaluation of {request.policy_uri}",
    }
    return result | changes


class FakeChildren:
    """Starts fake children; whoever waits lets the clock run, and what was scheduled happens.

    start_seconds: until a new child is ready; None: it becomes ready on command. missing: by role, what
    ``missing_resources`` says. fragment_seconds, update_seconds: None: on command.
    """

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.all: list[Any] = []
        self.start_seconds: float | None = 0.0
        self.fragment_seconds: float | None = None
        self.update_seconds: float | None = None
        self.missing: dict[str, str] = {}
        self.restored = Restored()
        self._scheduled: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()

    # The protocol.

    def start(self, role: str, identity: Identity, *args: Any) -> Any:
        kinds = {"rollout": FakeWorker, "learner": FakeLearner, "evaluator": FakeEvaluator}
        child = kinds[role](self, identity, args)
        self.all.append(child)
        if self.start_seconds == 0:
            child.become_ready()
        elif self.start_seconds is not None:
            self.schedule(self.clock() + self.start_seconds, child.become_ready)
        return child

    def find(self, identity: Identity) -> Any:
        for child in self.all:
            if child.is_alive and child.identity.actor_name == identity.actor_name:
                return child
        return None

    def wait(self, futures: Sequence[FakeFuture], timeout_s: float) -> list[FakeFuture]:
        deadline = self.clock() + timeout_s
        while True:
            self._run_due()
            done = [future for future in futures if future.is_done]
            if done or self.clock() >= deadline:
                return done
            following = self._scheduled[0][0] if self._scheduled else deadline
            self.clock.now = min(following, deadline)

    def result(self, future: FakeFuture, timeout_s: float = 5.0) -> Any:
        if not self.wait([future], timeout_s):
            raise GetTimeoutError(f"no answer in {timeout_s:g} s")
        return future.value

    def missing_resources(self, role: str, count: int) -> str | None:
        return self.missing.get(role)

    # What tests say.

    @property
    def workers(self) -> list[FakeWorker]:
        """Living ones, in the order of their numbers."""
        return [child for child in self.all if isinstance(child, FakeWorker) and child.is_alive]

    @property
    def learners(self) -> list[FakeLearner]:
        """Living ones, in the order of their numbers."""
        return [child for child in self.all if isinstance(child, FakeLearner) and child.is_alive]

    @property
    def evaluators(self) -> list[FakeEvaluator]:
        """Living ones, in the order of their numbers."""
        return [child for child in self.all if isinstance(child, FakeEvaluator) and child.is_alive]

    def schedule(self, at: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._scheduled, (at, next(self._serial), action))

    def join_update(self, learner: FakeLearner) -> None:
        """With the last replica of its group the update begins; one that does not come holds up the others, and one
        that is dead fails them."""
        mates = [child for child in self.all if isinstance(child, FakeLearner) and child.group == learner.group]
        if not all(mate.is_alive for mate in mates):
            self.break_update(learner.group)
        if self.update_seconds is not None and len(self._in_update(learner.group)) == learner.world_size:
            group = learner.group
            self.schedule(self.clock() + self.update_seconds, lambda: self._finish(group))

    def finish_update(self) -> None:
        """The update under way is finished by all its replicas."""
        self._finish(max(learner.group for learner in self.learners if learner.open_calls("train")))

    def break_update(self, group: int) -> None:
        """A replica is gone: the others' collectives fail."""
        for learner, call in self._in_update(group):
            if not learner.is_frozen:
                call.fail(raised(RuntimeError("Connection closed by peer")))

    def _finish(self, group: int) -> None:
        together = self._in_update(group)
        if any(learner.is_frozen for learner, _ in together):
            return
        if together and len(together) == together[0][0].world_size:
            missing = [learner for learner, call in together if not learner.has_its_share(call)]
            if not missing:
                for learner, call in together:
                    learner.finish(call)
            else:
                self.break_update(group)

    def _in_update(self, group: int) -> list[tuple[FakeLearner, Call]]:
        members = [learner for learner in self.learners if learner.group == group]
        return [(member, call) for member in members for call in member.open_calls("train")]

    def _run_due(self) -> None:
        while self._scheduled and self._scheduled[0][0] <= self.clock():
            heapq.heappop(self._scheduled)[2]()


class FakeCurriculum:
    """Counts what it hears."""

    def __init__(self) -> None:
        self.heard: Counter[str] = Counter()

    def task_table(self) -> TaskTable:
        return TaskTable(len(self.heard), (), np.ones(1))

    def complete_task(self, task_id: str, score: float) -> None:
        self.heard[task_id] += 1

    def state_dict(self) -> dict[str, Any]:
        return {"heard": dict(self.heard)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.heard = Counter(state["heard"])


def small_sizes(fragments_per_batch: int, target_staleness: int = 1) -> Sizes:
    """Fragments of ``FRAGMENT_STEPS``."""
    return Sizes(
        num_envs=1,
        agents_per_worker=FRAGMENT_STEPS // HORIZON,
        fragment_steps=FRAGMENT_STEPS,
        fragments_per_batch=fragments_per_batch,
        batch_steps=FRAGMENT_STEPS * fragments_per_batch,
        minibatch_steps=FRAGMENT_STEPS,
        useful_workers=(target_staleness + 1) * fragments_per_batch,
    )


def small_config(fragments_per_batch: int, batches: int, **settings: Any) -> RunConfig:
    """settings: dotted names with ``__`` for the dots."""
    batch = FRAGMENT_STEPS * fragments_per_batch
    words = {
        "preset": "cartpole",
        "rollout.num_workers": 2,
        "learner.replicas": 1,
        "trainer.bptt_horizon": HORIZON,
        "trainer.batch_size": batch,
        "trainer.minibatch_size": batch,
        "trainer.total_timesteps": batch * batches,
    } | {name.replace("__", "."): value for name, value in settings.items()}
    return load_run_config(None, {name: str(value) for name, value in words.items()})


class FakeRun:
    """Books, pool, learner group and pipeline of a run, put together as the coordinator does, over fake children."""

    def __init__(
        self,
        run_dir: Path,
        *,
        workers: int = 2,
        fragments_per_batch: int = 2,
        batches: int = 10,
        byte_budget: int = 0,
        curriculum: FakeCurriculum | None = None,
        **settings: Any,
    ) -> None:
        self.clock = ManualClock()
        self.children = FakeChildren(self.clock)
        self.config = small_config(fragments_per_batch, batches, **settings)
        self.sizes = small_sizes(fragments_per_batch, self.config.pacing.target_staleness)
        self.curriculum = curriculum or FakeCurriculum()
        self.books = Books(run_dir, self.curriculum)  # type: ignore[arg-type]
        self.ledger = self.books.ledger
        self.wanted = workers
        self.epochs: list[dict[str, Any]] = []
        self.events: list[tuple[str, str]] = []
        self.pool = RolloutPool(
            self.config,
            self.children,
            "fake",
            self.clock,
            lambda slot: (slot,),
            lambda: self.books.take_number("rollout"),
            self.books.generation,
        )
        self.learners = LearnerGroup(
            self.config,
            self.sizes,
            self.children,
            "fake",
            self.clock,
            lambda: (),
            lambda: self.books.take_number("learner"),
            self._learner_changed,
            self.books.generation,
        )
        self.pipeline = TrainingPipeline(
            self.config,
            self.sizes,
            self.books,
            self.pool,
            self.learners,
            self.clock,
            self.epochs.append,
            lambda kind, text: self.events.append((kind, text)),
            byte_budget=byte_budget,
        )

    def start(self) -> FakeRun:
        """Learners have begun, workers are ready, the first tickets are out."""
        self.begin_learners()
        self.pool.wanted = self.wanted
        self.step()
        self.step()
        return self

    def begin_learners(self) -> None:
        self.learners.start()
        assert self.learners.are_ready()
        self.learners.begin(None)

    def step(self, timeout_s: float = 0.05) -> None:
        self.pipeline.step(timeout_s)

    def step_until(self, condition: Callable[[], bool], turns: int = 1000) -> None:
        for _ in range(turns):
            if condition():
                return
            self.step()
        raise AssertionError(f"not reached in {turns} turns: {self.ledger.totals()}, {self.events[-5:]}")

    @property
    def workers(self) -> list[FakeWorker]:
        return self.children.workers

    @property
    def replicas(self) -> list[FakeLearner]:
        return self.children.learners

    @property
    def trained_tickets(self) -> tuple[int, ...]:
        """What the committed weights were trained on, in order."""
        committed = self.learners.committed
        assert committed is not None
        history: tuple[int, ...] = committed.weights.value
        return history

    def kinds(self) -> list[str]:
        """Of the events so far."""
        return [kind for kind, _ in self.events]

    def _learner_changed(self, what: str, number: int, details: Any) -> None:
        self.books.record({"kind": what, "role": "learner", "number": number, **details})
