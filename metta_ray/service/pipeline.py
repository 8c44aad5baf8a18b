"""The training pipeline: the coordinator's main loop, one turn per ``step``.

    tickets ──▶ workers ──▶ fragments ──admit──▶ queue ──▶ batch ──stage──▶ learners ──commit──▶ new version
       ▲                                                                                             │
       └──────────────────────── credits: what is committed may be ordered again ◀──────────────────┘

Waits for:    any worker's fragment, any learner's answer.
Released by:  nothing; each turn does what can be done and says what it saw.

Only references and headers pass through here. What must survive is in the books before anyone acts on it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

from metta_ray.common.errors import RunFailed
from metta_ray.control.admission import Drop, admit
from metta_ray.control.failure import Raise
from metta_ray.control.ledger import TicketState
from metta_ray.control.schedule import Queued, choose_batch, tickets_to_issue
from metta_ray.rl.fragment import FragmentHeader
from metta_ray.service.books import EPISODES, Books
from metta_ray.service.children import Future
from metta_ray.service.epoch import EpochGatherer
from metta_ray.service.layout import Speed
from metta_ray.service.learner_group import Batch, BatchLost, Finished, LearnerGroup
from metta_ray.service.orders import PublishedWeights, Ticket, UpdateOrder
from metta_ray.service.rollout_pool import Delivered, Joined, Left, Member, Missing, Ready, RolloutPool
from metta_ray.service.run_config import RunConfig
from metta_ray.service.sizes import Sizes

logger = logging.getLogger(__name__)

COMPARE_REPLICAS_EVERY = 100


@dataclass(frozen=True)
class Waiting:
    """A fragment that was admitted and waits for its batch. arrived_at: the ledger's version then."""

    header: FragmentHeader
    fragment: Future
    arrived_at: int


class TrainingPipeline:
    """Collects, trains and commits until told otherwise.

    paused: nothing is ordered any more; what is under way is finished. on_epoch, on_event: told of each commit and of
    everything else a person may want to know. speed: what the machine could do, for the record of each epoch.
    """

    def __init__(
        self,
        config: RunConfig,
        sizes: Sizes,
        books: Books,
        pool: RolloutPool,
        learners: LearnerGroup,
        clock: Callable[[], float],
        on_epoch: Callable[[dict[str, Any]], None],
        on_event: Callable[[str, str], None],
        *,
        byte_budget: int,
        speed: Speed | None = None,
    ) -> None:
        self.paused = False
        self.total_timesteps = config.trainer.total_timesteps
        self.byte_budget = byte_budget
        self._config = config
        self._sizes = sizes
        self._books = books
        self._pool = pool
        self._learners = learners
        self._clock = clock
        self._on_epoch = on_epoch
        self._on_event = on_event
        self._gatherer = EpochGatherer(clock(), books.returns, speed)
        self._queue: dict[int, Waiting] = {}
        self._arrived: dict[int, Delivered] = {}
        self._in_batch: dict[int, Waiting] = {}  # staged or trained on
        self._staged: Batch | None = None
        self._next_batch = 0
        self._fragment_bytes = 0
        self._is_synchronous = config.pacing.target_staleness == 0

    # The loop.

    def step(self, timeout_s: float) -> None:
        """One turn. Raises RunFailed, TrainingDiverged or LearnersLost where the run cannot go on."""
        for event in self._pool.poll(timeout_s, self._learners.awaited):
            self._on(event)
        self._accept_in_order()
        self._train()
        self._order()

    @property
    def is_quiet(self) -> bool:
        """Nothing is under way: all that was ordered has been trained on or closed, but for a batch's fragments."""
        ledger = self._books.ledger
        return ledger.in_flight == 0 and self._learners.update is None and self._staged is None and not self._arrived

    @property
    def is_finished(self) -> bool:
        return self._books.ledger.agent_step >= self.total_timesteps

    @property
    def bytes_outstanding(self) -> int:
        """Of fragments in the object store and of those that are on their way."""
        ledger = self._books.ledger
        return (ledger.in_flight + ledger.queued) // self._sizes.fragment_steps * self._fragment_bytes

    def drop_queued(self, reason: str) -> None:
        """Closes what no batch will be made of."""
        for ticket in list(self._queue):
            del self._queue[ticket]
            self._close("drop", ticket, reason)

    def restart_clock(self) -> None:
        self._gatherer.restart_clock(self._clock())

    def forget_all(self) -> None:
        """After the books were set back: what was under way is no longer known."""
        self._queue.clear()
        self._arrived.clear()
        self._in_batch.clear()
        self._staged = None

    # What workers say.

    def _on(self, event: Any) -> None:
        match event:
            case Joined(slot, identity):
                record = {"role": "rollout", "number": identity.number, "slot": slot}
                record |= {"incarnation": identity.incarnation, "generation": identity.generation}
                self._books.record({"kind": "joined", **record})
            case Ready(member):
                where = f"process {member.info.pid} on {member.info.host}" if member.info else ""
                self._on_event("ready", f"{member.child.identity} is ready ({where})")
            case Delivered(_, header, _):
                self._arrived[header.ticket] = event
            case Missing(_, ticket, reason):
                self._lose(ticket, "data_lost")
                self._on_event("data_lost", f"the fragment of ticket {ticket} is lost: {reason}")
                self._learners.renew_committed()  # it may be the weights that the worker could not get
            case Left():
                self._left(event)

    def _left(self, event: Left) -> None:
        member, failure = event.member, event.failure
        for ticket in event.tickets:
            self._lose(ticket, failure.cause.value if failure else "drained")
        self._books.record({"kind": "left", "role": "rollout", "number": member.number})
        if failure is None:
            self._on_event("left", f"{member.child.identity} left")
            return
        decision = event.decision
        what = f"{member.child.identity} is lost: {failure.text}; {decision.reason if decision else ''}"
        self._on_event(failure.cause.value, what + (f"\n{failure.traceback}" if failure.traceback else ""))
        if isinstance(decision, Raise):
            first = self._pool.first_failure or failure
            raise RunFailed(f"{decision.reason}. First cause: {first.text}\n{first.traceback}".rstrip())

    def _accept_in_order(self) -> None:
        """Takes in what arrived. In synchronous mode in the order of tickets, whoever was faster."""
        ledger = self._books.ledger
        for ticket in sorted(self._arrived):
            if self._is_synchronous and any(
                earlier < ticket and ledger.state_of(earlier) is TicketState.IN_FLIGHT
                for earlier in ledger.open_tickets
            ):
                return
            self._accept(self._arrived.pop(ticket))

    def _accept(self, event: Delivered) -> None:
        header, ledger = event.header, self._books.ledger
        ticket = header.ticket
        state = ledger.state_of(ticket)
        if state is None or ticket in self._queue or ticket in self._in_batch:
            return  # closed meanwhile, or answered twice
        if state is TicketState.IN_FLIGHT:
            record = {"kind": "deliver", "ticket": ticket, "version": header.policy_version}
            outcomes = [list(outcome) for outcome in header.outcomes]
            returns = [float(value) for value in header.stats.get("episode/return", ())[-EPISODES:]]
            told = {"counted": header.counted_steps, "outcomes": outcomes} | ({"returns": returns} if returns else {})
            self._books.record(record | told)
            self._gatherer.fragment(header, event.without_order)
        self._fragment_bytes = max(self._fragment_bytes, header.size_bytes)
        decision = self._admit(header, known=event.member.child.identity.incarnation)
        if isinstance(decision, Drop):
            self._close("drop", ticket, decision.reason)
            self._on_event(
                "dropped", f"the fragment of ticket {ticket} is dropped, {decision.reason}: {decision.detail}"
            )
        else:
            self._queue[ticket] = Waiting(header, event.fragment, ledger.version)

    def _admit(self, header: FragmentHeader, known: str) -> Any:
        return admit(
            policy_version=header.policy_version,
            train_version=self._next_train_version,
            max_staleness=self._config.pacing.max_staleness,
            # A ticket is answered by the worker that it was ordered from; older generations' tickets are asked again.
            generation=self._books.generation,
            current_generation=self._books.generation,
            incarnation=header.incarnation,
            known_incarnation=known,
            fault=header.fault,
        )

    @property
    def _next_train_version(self) -> int:
        """The learner's version when the next batch is trained on: known exactly, since each update adds one."""
        return self._books.ledger.version + (self._learners.update is not None) + (self._staged is not None)

    # What learners do.

    def _train(self) -> None:
        try:
            finished = self._learners.poll()
            if finished is not None:
                self._commit(finished)
        except BatchLost as lost:
            self._lose_batch(lost)
        if self._learners.update is None and self._learners.members:
            self._learners.mend()
        if self._staged is None and self._learners.members:
            self._stage()
        if self._staged is not None and self._learners.update is None and self._learners.members:
            batch, self._staged = self._staged, None
            self._learners.begin_update(batch, self._update_order(batch))

    def _stage(self) -> None:
        """Puts the next batch together and lets the learners copy it while they train on the one before."""
        for ticket, waiting in list(self._queue.items()):
            decision = self._admit(waiting.header, known=waiting.header.incarnation)
            if isinstance(decision, Drop):
                del self._queue[ticket]
                self._close("drop", ticket, decision.reason)
                self._on_event("dropped", f"ticket {ticket} waited too long: {decision.detail}")
        ledger = self._books.ledger
        tickets = choose_batch(
            [Queued(t, w.header.policy_version, w.header.agent_steps) for t, w in self._queue.items()],
            batch_steps=self._sizes.batch_steps,
            synchronous=self._is_synchronous,
            in_flight=[t for t in ledger.open_tickets if ledger.state_of(t) is TicketState.IN_FLIGHT]
            if self._is_synchronous
            else (),
        )
        if not tickets:
            return
        chosen = {ticket: self._queue.pop(ticket) for ticket in tickets}
        self._in_batch |= chosen
        fragments = tuple(waiting.fragment for waiting in chosen.values())
        origins = tuple((waiting.header.stream, waiting.header.sequence) for waiting in chosen.values())
        self._staged = Batch(self._next_batch, tuple(tickets), fragments, origins)
        self._next_batch += 1
        self._learners.stage(self._staged)

    def _update_order(self, batch: Batch) -> UpdateOrder:
        ledger = self._books.ledger
        counted = sum(self._in_batch[ticket].header.counted_steps for ticket in batch.tickets)
        settings = {name.removeprefix("trainer."): value for name, value in self._books.settings.items()}
        return UpdateOrder(
            generation=0,
            group=0,
            batch=batch.number,
            version=ledger.version,
            agent_step_before=ledger.agent_step,
            agent_step=ledger.agent_step + counted,
            tickets=batch.tickets,
            settings=settings,
            staleness=max(ledger.version - self._in_batch[t].header.policy_version for t in batch.tickets),
            compare_replicas=len(self._learners.members) > 1 and ledger.version % COMPARE_REPLICAS_EVERY == 0,
        )

    def _commit(self, finished: Finished) -> None:
        """From here on the update counts: it is on the disk before its weights go out."""
        order, ledger = finished.order, self._books.ledger
        self._books.record({"kind": "commit", "version": order.version + 1, "tickets": list(order.tickets)}, sync=True)
        trained = [self._in_batch.pop(ticket) for ticket in order.tickets]
        headers = [waiting.header for waiting in trained]
        for ticket, header in zip(order.tickets, headers, strict=True):
            self._settle(ticket, header.stream)
        self._compare(finished)
        self._gatherer.staged(finished.staged)
        record = self._gatherer.finish(
            self._clock(),
            finished.results,
            order.agent_step - order.agent_step_before,
            [order.version - header.policy_version for header in headers],
            num_workers=len(self._pool.ready),
            useful_workers=self._sizes.useful_workers,
            target_staleness=self._config.pacing.target_staleness,
        )
        assert ledger.imbalance() == 0
        ages = [order.version - waiting.arrived_at for waiting in trained]
        record |= {"update_seconds": finished.seconds, "replicas": len(finished.results)}
        self._on_epoch(record | {"queue_age": sum(ages) / len(ages)})

    def _lose_batch(self, lost: BatchLost) -> None:
        """Fragments of a batch were lost with their node. The others go with them: nobody knows which those are."""
        for ticket in lost.tickets:
            self._in_batch.pop(ticket, None)
            self._close("lose", ticket, "data_lost")
        self._on_event("data_lost", f"a batch of {len(lost.tickets)} fragments is lost: {lost}")

    def _compare(self, finished: Finished) -> None:
        digests = {result.digest for result in finished.results if result.digest is not None}
        if len(digests) > 1:
            self._on_event("divergence", f"replicas differ after update {finished.order.version}; all take rank 0's")
            self._learners.form()

    # What is ordered.

    def _order(self) -> None:
        """Spends the credits on workers that have room, the least busy first."""
        committed = self._learners.committed
        if committed is None or self.is_finished:
            return
        workers = self._pool.ready
        if self._is_synchronous and len(workers) < self._pool.to_be_filled:
            return  # the same workers make each batch
        for worker in islice(self._in_turn(workers), max(0, self._credits())):
            self._issue(worker)

    def _in_turn(self, workers: list[Member]) -> Iterator[Member]:
        """Who gets the next tickets: always the same workers one after another where batches are repeatable, else the
        least busy first, until all have as many as they may."""
        if self._is_synchronous:
            yield from cycle(workers)
            return
        for held in range(self._config.rollout.tickets_per_worker):
            yield from [worker for worker in workers if len(worker.orders) == held]

    def _credits(self) -> int:
        ledger, sizes = self._books.ledger, self._sizes
        outstanding = ledger.in_flight + ledger.queued
        credits = tickets_to_issue(
            outstanding_steps=outstanding,
            batch_steps=sizes.batch_steps,
            fragment_steps=sizes.fragment_steps,
            target_staleness=self._config.pacing.target_staleness,
            bytes_outstanding=self.bytes_outstanding,
            fragment_bytes=self._fragment_bytes,
            byte_budget=self.byte_budget,
            paused=self.paused,
        )
        # Towards the end no more than is still needed: nothing is collected to be thrown away.
        batches_left = -(-(self.total_timesteps - ledger.agent_step) // sizes.batch_steps)
        still_needed = batches_left * sizes.fragments_per_batch - outstanding // sizes.fragment_steps
        return min(credits, still_needed)

    def _issue(self, worker: Member) -> None:
        number, steps = self._books.ledger.next_ticket, self._sizes.fragment_steps
        self._books.record({"kind": "issue", "ticket": number, "worker": worker.number, "steps": steps})
        self._pool.order(worker, self.ticket(number, tuple(worker.settled)))

    def ticket(self, number: int, settled: tuple[int, ...] = ()) -> Ticket:
        """With the newest weights and tasks."""
        committed, curriculum = self._learners.committed, self._books.curriculum
        assert committed is not None
        table = curriculum.task_table() if curriculum is not None else None
        return Ticket(
            number=number,
            generation=self._books.generation,
            weights=PublishedWeights(committed.version, committed.weights),
            tasks=table.weights if table is not None else None,
            settled=settled,
        )

    # Endings of tickets.

    def _lose(self, ticket: int, reason: str) -> None:
        if self._books.ledger.is_open(ticket) and ticket not in self._queue and not self._is_under_way(ticket):
            self._close("lose", ticket, reason)

    def _is_under_way(self, ticket: int) -> bool:
        return ticket in self._in_batch or ticket in self._arrived

    def _close(self, kind: str, ticket: int, reason: str) -> None:
        ledger = self._books.ledger
        stream = ledger.worker_of(ticket)
        self._books.record({"kind": kind, "ticket": ticket, "reason": reason})
        self._settle(ticket, stream)

    def _settle(self, ticket: int, stream: int) -> None:
        member = self._pool.with_number(stream)
        if member is not None:
            member.settled.append(ticket)
