"""Learner group: all replicas behind one interface, and one again after any of them died.

Waits for:    every replica's answer to one update.
Released by:  ``begin_update``; the next batch may be staged meanwhile.

The committed weights and optimiser state belong to the coordinator. When a replica is lost, whatever is left takes
them up again and repeats the one update that was under way; a replacement joins between two updates.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from metta_ray.common.errors import LearnersLost, RunFailed, TrainingDiverged
from metta_ray.control.deadlines import Durations
from metta_ray.control.failure import Cause
from metta_ray.service.causes import Failure, Outcome, failure_of, is_death
from metta_ray.service.children import Child, Children, Future
from metta_ray.service.identity import Identity
from metta_ray.service.orders import Contents, GroupPlace, Restored, Staged, UpdateOrder, UpdateResult
from metta_ray.service.process_info import ProcessInfo
from metta_ray.service.run_config import RunConfig
from metta_ray.service.sizes import Sizes

logger = logging.getLogger(__name__)

PING_S = 2.0
PINGS, PING_AGAIN_S = 3, 0.2
"""A message may be lost where no process is."""
FORMING_S = 60.0
FORMING_ATTEMPTS = 5
"""With the same replicas, where none of them was lost but a message was."""
GRACE_S = 1.0
"""How long the other replicas' answers may come after the first one's."""


class BatchLost(Exception):  # noqa: N818 - reads as the fact it states
    """Fragments of a batch are gone; the group is whole again, with the state from before the update."""

    def __init__(self, tickets: tuple[int, ...], reason: str) -> None:
        super().__init__(reason)
        self.tickets = tickets


@dataclass(eq=False)
class Replica:
    child: Child
    hello: Future | None
    born: float
    info: ProcessInfo | None = None

    @property
    def number(self) -> int:
        return self.child.identity.number


@dataclass(frozen=True)
class Batch:
    """tickets, fragments (references) and origins (worker, number of its fragment), in the order of training."""

    number: int
    tickets: tuple[int, ...]
    fragments: tuple[Future, ...]
    origins: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Committed:
    """The state that all replicas share. weights, state: references to what the leader returned."""

    version: int
    weights: Future
    state: Future


@dataclass
class Update:
    """One update under way: ``answers`` are the replicas' (result, weights, state)."""

    batch: Batch
    order: UpdateOrder
    answers: list[list[Future]]
    began: float
    attempt: int = 1


@dataclass(frozen=True)
class Finished:
    """results: of all replicas that answered, the leader's first. staged: how their share of the batch got there."""

    batch: Batch
    order: UpdateOrder
    results: tuple[UpdateResult, ...]
    staged: tuple[Staged, ...]
    seconds: float


class LearnerGroup:
    """committed: what the next update starts from; None until the group has begun."""

    def __init__(
        self,
        config: RunConfig,
        sizes: Sizes,
        children: Children,
        run: str,
        clock: Callable[[], float],
        replica_arguments: Callable[[], tuple[Any, ...]],
        next_number: Callable[[], int],
        on_change: Callable[[str, int, Mapping[str, Any]], None],
        generation: int,
    ) -> None:
        """on_change: told ("joined" | "left", number, details) before a replica begins and after it ended."""
        self.committed: Committed | None = None
        self.members: list[Replica] = []
        self.newcomers: list[Replica] = []
        self.failures = 0
        self.repeated_updates = 0
        self.update: Update | None = None
        self.staging: list[tuple[Batch, list[Future]]] = []
        self._config = config
        self._sizes = sizes
        self._children = children
        self._run = run
        self._clock = clock
        self._replica_arguments = replica_arguments
        self._next_number = next_number
        self._on_change = on_change
        self._generation = generation
        self._group = 0
        self._damage: str | None = None
        self._durations = Durations()

    # Beginning.

    def start(self) -> None:
        """Creates the processes; ``are_ready`` tells when they have answered."""
        for _ in range(self._config.learner.replicas):
            self.newcomers.append(self._start())

    def adopt(self, replicas: Sequence[Child]) -> None:
        """Takes over the replicas of an earlier coordinator, in the order of their ranks."""
        self.newcomers = [Replica(child, child.call("describe"), self._clock()) for child in replicas]

    def are_ready(self) -> bool:
        """Whether every newcomer has answered. Raises the first one's error if its start failed."""
        self._greet()
        return all(replica.hello is None for replica in self.newcomers)

    def begin(self, checkpoint_dir: str | None) -> Restored:
        """State from the newest checkpoint, or a fresh one, on all replicas."""
        leader = self.newcomers[0]
        restored, weights, state = leader.child.call("begin", checkpoint_dir, results=3)
        try:
            found: Restored = self._children.result(restored, FORMING_S)
        except Exception as error:
            if is_death(error):
                raise LearnersLost(f"the first learner died while it began: {failure_of(error).text}") from None
            raise
        self.committed = Committed(found.version, weights, state)
        self._form(self.newcomers)
        return found

    def renew_committed(self) -> None:
        """Asks a replica for the committed state again, where the copy that was handed out may be lost with a node.

        While an update is under way there is no need: its answer brings the next one.
        """
        if self.update is not None or self.committed is None or not self.members:
            return
        version, _, weights, state = self.members[0].child.call("export", results=4)
        try:
            found: int = self._children.result(version, PING_S)
        except Exception as error:
            logger.warning("the committed state could not be renewed: %s", failure_of(error).text)
            return
        if found == self.committed.version:
            self.committed = Committed(found, weights, state)

    def resume(self, version: int) -> UpdateResult | None:
        """After a coordinator restart: the update that was finished and never committed, if there is one.

        The newest state among the adopted replicas becomes the committed one. Raises LearnersLost if none has the
        journal's version or the one after it.
        """
        found: list[tuple[int, UpdateResult | None, Future, Future]] = []
        for replica in self.newcomers:
            number, result, weights, state = replica.child.call("export", results=4)
            try:
                at: int = self._children.result(number, self._update_deadline())
                found.append((at, self._children.result(result), weights, state))
            except Exception as error:
                logger.warning("%s has no state to go on from: %s", replica.child.identity, failure_of(error).text)
        usable = [entry for entry in found if entry[0] in (version, version + 1)]
        if not usable:
            raise LearnersLost(
                f"the journal ends at version {version}, learners are at {[entry[0] for entry in found]}"
            )
        newest, result, weights, state = max(usable, key=lambda entry: entry[0])
        self.committed = Committed(newest, weights, state)
        return result if newest == version + 1 else None

    def form(self) -> None:
        """All newcomers and members take up the committed state together."""
        self._form([*self.members, *self.newcomers])

    # Updates.

    def stage(self, batch: Batch) -> None:
        """Lets the replicas copy the fragments of the next batch; each gets its share of them."""
        share = len(batch.fragments) // len(self.members)
        futures = [
            member.child.call(
                "stage",
                self._generation,
                self._group,
                batch.number,
                list(batch.fragments[rank * share : (rank + 1) * share]),
                batch.origins[rank * share : (rank + 1) * share],
            )
            for rank, member in enumerate(self.members)
        ]
        self.staging.append((batch, futures))

    def begin_update(self, batch: Batch, order: UpdateOrder) -> None:
        order = replace(order, generation=self._generation, group=self._group)
        answers = [member.child.call("train", order, results=3) for member in self.members]
        self.update = Update(batch, order, answers, self._clock())

    @property
    def awaited(self) -> list[Future]:
        """Futures that something happens with when they are done."""
        futures = [replica.hello for replica in self.newcomers if replica.hello is not None]
        if self.update is not None:
            futures.append(self.update.answers[0][0])  # the leader hears of it when another one fails
        return futures

    def poll(self) -> Finished | None:
        """The update that finished, if one has; call ``mend`` when it is committed.

        Where replicas were lost the others repeat it. Raises BatchLost; TrainingDiverged; RunFailed or LearnersLost
        where nothing is left to go on from.
        """
        self._greet()
        update = self.update
        if update is None:
            return None
        leader = update.answers[0][0]
        if self._children.wait([leader], 0.0):
            return self._finish(update)
        took = self._clock() - update.began
        deadline = self._update_deadline()
        if took > deadline:
            self._durations.add_missed(deadline)
            self._recover(f"no answer in {took:.1f} s")
        return None

    def mend(self) -> None:
        """Between two updates: makes the group whole again, and lets newcomers in that are ready.

        Not before the last update is committed, for the replicas then forget that they have its result.
        """
        assert self.update is None
        if self._damage is not None:
            damage, self._damage = self._damage, None
            self._recover(damage)
        missing = self._config.learner.replicas - len(self.members) - len(self.newcomers)
        self.newcomers += [self._start() for _ in range(missing)]
        self._admit_newcomers()

    def _finish(self, update: Update) -> Finished | None:
        """The leader has answered; the others do so at about the same time."""
        answers = [self._answer(answer[0]) for answer in update.answers]
        results = [answer for answer in answers if not isinstance(answer, Failure)]
        failures = [answer for answer in answers if isinstance(answer, Failure)]
        if isinstance(answers[0], Failure):
            lost = next((failure for failure in failures if failure.outcome is Outcome.DATA_LOST), None)
            if lost is None:
                self._recover(failures[0].text)
                return None
            self.update = None
            self._forget_staging(update.batch.number)
            self._recover(lost.text)
            raise BatchLost(update.batch.tickets, lost.text)
        _, weights, state = update.answers[0]
        self.committed = Committed(answers[0].version, weights, state)
        staged = self._staged_times(update.batch.number)
        self._forget_staging(update.batch.number)
        seconds = self._clock() - update.began
        self._durations.add(seconds)
        self.update = None
        self._damage = failures[0].text if failures else None
        return Finished(update.batch, update.order, tuple(results), staged, seconds)

    def _answer(self, head: Future) -> UpdateResult | Failure:
        try:
            result: UpdateResult = self._children.result(head, GRACE_S)
        except Exception as error:
            _raise_what_repeating_cannot_cure(error)
            return failure_of(error)
        return result

    def save(self, checkpoint_dir: str, contents: Contents, snapshots: Mapping[int, Future], keep_last: int) -> Future:
        """Lets the leader write a checkpoint of the committed state, beside training."""
        assert self.committed is not None
        wrapped = {number: [future] for number, future in snapshots.items()}
        weights, state = [self.committed.weights], [self.committed.state]
        future: Future = self.members[0].child.call(
            "save", checkpoint_dir, contents, weights, state, wrapped, keep_last
        )
        return future

    def renew(self) -> list[Future]:
        """Asks for life signs, which also renews the leases."""
        return [member.child.call("describe") for member in self.members]

    def stop(self) -> None:
        for replica in (*self.members, *self.newcomers):
            replica.child.kill(replica.info) if self.update is not None else replica.child.retire()
            self._on_change("left", replica.number, {})
        self.members, self.newcomers, self.update, self.staging = [], [], None, []

    # Repair.

    def _recover(self, reason: str) -> None:
        """Ends replicas that do not answer, forms a group of the others, and repeats the update under way."""
        self.spend_failure(reason)
        logger.warning("learner group: %s; forming it anew", reason)
        update, staging = self.update, self.staging
        self.update, self.staging = None, []
        self._form(self._replace_the_dead(self.members))
        for batch, _ in staging:
            self.stage(batch)
        if update is not None:
            self.repeated_updates += 1
            self.begin_update(update.batch, update.order)
            assert self.update is not None
            self.update.attempt = update.attempt + 1

    def _admit_newcomers(self) -> None:
        """Newcomers that are ready join, if a batch can be shared among more than now."""
        ready = [replica for replica in self.newcomers if replica.hello is None]
        if not self.members or self._feasible(len(self.members) + len(ready)) <= len(self.members):
            return
        staging, self.staging = self.staging, []
        self._form([*self.members, *ready])
        for batch, _ in staging:
            self.stage(batch)

    def _form(self, replicas: Sequence[Replica]) -> None:
        """The replicas become ranks 0, 1, … of a new group with the committed state; those beyond the number that can
        share a batch wait as newcomers. Tries again without those that are lost on the way."""
        self.newcomers = list(dict.fromkeys([*replicas, *self.newcomers]))
        self.members = []
        attempts = 0
        while True:
            attempts += 1
            replicas = replicas or self._await_newcomers()
            seated = list(replicas[: self._feasible(len(replicas))])
            self._group += 1
            try:
                self._join(seated)
            except Exception as error:
                if failure_of(error).outcome is Outcome.DATA_LOST or "ObjectLost" in repr(error):
                    raise LearnersLost(f"the committed state is lost: {error}") from None
                logger.warning("learner group of %d could not be formed: %s", len(seated), failure_of(error).text)
                living = self._replace_the_dead(replicas)
                was_message_lost = failure_of(error).outcome is Outcome.UNKNOWN
                if len(living) == len(replicas) and not (was_message_lost and attempts < FORMING_ATTEMPTS):
                    # All live and still cannot meet: what keeps them apart is unknown, so one goes on alone.
                    self.spend_failure(failure_of(error).text)
                    for replica in living[1:]:
                        self._end(replica)
                        self.newcomers.remove(replica)
                        self.newcomers.append(self._start())
                    living = living[:1] if len(living) > 1 else []
                    if not living:
                        raise
                replicas = living
                continue
            self.members = seated
            self.newcomers = [replica for replica in self.newcomers if replica not in seated]
            return

    def _join(self, replicas: Sequence[Replica]) -> None:
        assert self.committed is not None
        host, port = "", 0
        if len(replicas) > 1:
            host, port = self._children.result(replicas[0].child.call("open_store"), FORMING_S)
        state = ([self.committed.weights], [self.committed.state])
        futures = [
            replica.child.call(
                "join",
                GroupPlace(self._group, rank, len(replicas), host, port),
                self._generation,
                self.committed.version,
                *state,
            )
            for rank, replica in enumerate(replicas)
        ]
        for replica, future in zip(replicas, futures, strict=True):
            replica.info = self._children.result(future, FORMING_S)

    def _replace_the_dead(self, replicas: Sequence[Replica]) -> list[Replica]:
        """The living ones of these; for each of the others a newcomer is started."""
        living = self._living(replicas)
        for replica in replicas:
            if replica not in living:
                self._end(replica)
                self.newcomers.append(self._start())
        return living

    def _living(self, replicas: Sequence[Replica]) -> list[Replica]:
        """Those that answer in time, however busy they are: ``describe`` runs beside everything else."""
        pings = [replica.child.call("describe") for replica in replicas]
        deadline = self._clock() + PING_S
        living = []
        for replica, ping in zip(replicas, pings, strict=True):
            failure = self._failure_of_ping(ping, deadline)
            for _ in range(PINGS - 1):
                if failure is None or failure.outcome is not Outcome.UNKNOWN or self._clock() >= deadline:
                    break
                self._children.wait([], PING_AGAIN_S)
                failure = self._failure_of_ping(replica.child.call("describe"), deadline)
            if failure is None:
                living.append(replica)
            else:
                logger.warning("%s is lost: %s", replica.child.identity, failure.text)
        return living

    def _failure_of_ping(self, ping: Future, deadline: float) -> Failure | None:
        try:
            self._children.result(ping, max(0.05, deadline - self._clock()))
        except Exception as error:
            return failure_of(error)
        return None

    def _await_newcomers(self) -> list[Replica]:
        """No survivor: training waits for the first replacement."""
        deadline = self._clock() + self._config.failure.start_deadline_s
        while self._clock() < deadline:
            self._children.wait([r.hello for r in self.newcomers if r.hello is not None], 0.5)
            self._greet()
            ready = [replica for replica in self.newcomers if replica.hello is None]
            if ready:
                return ready
        raise LearnersLost(f"no learner replica became ready in {self._config.failure.start_deadline_s:.0f} s")

    def _greet(self) -> None:
        """Hears newcomers out. One whose start failed is replaced; before there is a state to go on from, its error is
        raised, for the others would fail like it, unless it went with its node."""
        waiting = [replica for replica in self.newcomers if replica.hello is not None]
        done = self._children.wait([replica.hello for replica in waiting], 0.0) if waiting else []
        for replica in waiting:
            if replica.hello not in done:
                continue
            try:
                replica.info, _ = self._children.result(replica.hello)
                replica.hello = None
            except Exception as error:
                failure = failure_of(error)
                if failure.outcome is Outcome.UNKNOWN:
                    replica.hello = replica.child.call("describe")
                    continue
                self._end(replica)
                if self.committed is None and failure.cause not in (Cause.NODE_LOST, Cause.PREEMPTED):
                    raise
                self.spend_failure(failure.text)
                self.newcomers.append(self._start())

    def _start(self) -> Replica:
        identity = Identity(self._run, "learner", self._next_number(), secrets.token_hex(8), self._generation)
        self._on_change("joined", identity.number, {"incarnation": identity.incarnation})
        child = self._children.start("learner", identity, *self._replica_arguments())
        return Replica(child, child.call("describe"), self._clock())

    def _end(self, replica: Replica) -> None:
        self.members = [member for member in self.members if member is not replica]
        self.newcomers = [newcomer for newcomer in self.newcomers if newcomer is not replica]
        replica.child.kill(replica.info)
        self._on_change("left", replica.number, {})

    def spend_failure(self, reason: str) -> None:
        """Counts a failure against the budget; RunFailed when it is used up."""
        self.failures += 1
        limit = self._config.failure.learner.per_run
        if limit is not None and self.failures > limit:
            raise RunFailed(f"{self.failures} learner failures (failure.learner.per_run={limit}), the last: {reason}")

    def _feasible(self, replicas: int) -> int:
        """The most replicas, up to this number, among which a batch can be shared in whole fragments and segments."""
        trainer = self._config.trainer
        for count in range(min(replicas, self._config.learner.replicas), 0, -1):
            whole = self._sizes.fragments_per_batch % count == 0
            if whole and trainer.minibatch_size % (count * trainer.bptt_horizon) == 0:
                return count
        return 0

    def _staged_times(self, batch: int) -> tuple[Staged, ...]:
        """For monitoring alone: what is not there is left out."""
        futures = [future for entry, futures in self.staging if entry.number == batch for future in futures]
        times = []
        for future in self._children.wait(futures, 0.0):
            with suppress(Exception):
                times.append(self._children.result(future, 0.1))
        return tuple(times)

    def _forget_staging(self, batch: int) -> None:
        self.staging = [entry for entry in self.staging if entry[0].number != batch]

    def _update_deadline(self) -> float:
        failure, learner = self._config.failure, self._config.learner
        deadline = self._durations.deadline(failure.update_deadline_s)
        return deadline if len(self._durations) else max(deadline, learner.first_process_group_timeout_s)


def _raise_what_repeating_cannot_cure(error: Exception) -> None:
    cause = getattr(error, "cause", None)
    for candidate in (error, cause):
        if isinstance(candidate, TrainingDiverged):
            raise TrainingDiverged(str(candidate)) from error
