"""Whatever happens to workers and learners, in whatever order: every agent step is accounted for, once."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from metta_ray.common.errors import LearnersLost
from metta_ray.service.books import Books
from tests.fakes import FRAGMENT_STEPS, FakeCurriculum, FakeRun, FakeWorker, lost_object, raised, unavailable

MAX_STALENESS = 2
SETTINGS: dict[str, Any] = {
    "failure__collect_deadline_s": 3,
    "failure__update_deadline_s": 3,
    "failure__start_deadline_s": 5,
    "failure__backoff_s": 0.1,
    "failure__max_backoff_s": 1,
    "failure__crash": {"per_slot": None, "per_run": None},
    "failure__hang": {"per_slot": None, "per_run": None},
    "failure__learner": {"per_run": None},
    "learner__first_process_group_timeout_s": 3,
    "pacing__max_staleness": MAX_STALENESS,
}
DATA = st.randoms(use_true_random=False)


class Chaos(RuleBasedStateMachine):
    """Rules do to the processes what the world does; after each the books must be right."""

    @initialize(target_staleness=st.sampled_from([0, 1, 2]), workers=st.integers(1, 3), replicas=st.integers(1, 2))
    def begin(self, target_staleness: int, workers: int, replicas: int) -> None:
        self.dir = Path(tempfile.mkdtemp())
        words = {name: value for name, value in SETTINGS.items() if not isinstance(value, dict)}
        for name, budget in SETTINGS.items():
            if isinstance(budget, dict):
                words |= {f"{name}__{limit}": "null" for limit in budget}
        self.run = FakeRun(
            self.dir,
            workers=workers,
            batches=10_000,
            learner__replicas=replicas,
            pacing__target_staleness=target_staleness,
            **words,
        )
        self.run.start()
        self.committed = 0

    def teardown(self) -> None:
        if hasattr(self, "run"):
            self.run.books.close()
            shutil.rmtree(self.dir)

    # The ordinary course.

    @rule()
    def turn(self) -> None:
        try:
            self.run.step()
        except LearnersLost:
            self.go_back()

    @precondition(lambda self: self.busy_workers())
    @rule(random=DATA, count=st.integers(1, 4))
    def deliver(self, random: Any, count: int) -> None:
        for _ in range(count):
            if workers := self.busy_workers():
                random.choice(workers).deliver()
        self.turn()

    @precondition(lambda self: self.run.learners.update is not None)
    @rule()
    def finish_update(self) -> None:
        if any(replica.open_calls("train") for replica in self.run.replicas):
            self.run.children.finish_update()
        self.turn()

    @rule(seconds=st.sampled_from([0.5, 2.0, 4.0]))
    def wait(self, seconds: float) -> None:
        self.run.clock.advance(seconds)
        self.turn()

    # What people do.

    @rule(workers=st.integers(1, 4))
    def scale(self, workers: int) -> None:
        self.run.pool.wanted = workers
        self.turn()

    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:
        self.run.pipeline.paused = paused

    # What goes wrong.

    @precondition(lambda self: self.run.workers)
    @rule(random=DATA)
    def kill_worker(self, random: Any) -> None:
        random.choice(self.run.workers).die()

    @precondition(lambda self: self.run.workers)
    @rule(random=DATA)
    def freeze_worker(self, random: Any) -> None:
        random.choice(self.run.workers).freeze()

    @precondition(lambda self: self.busy_workers())
    @rule(random=DATA)
    def lose_an_answer(self, random: Any) -> None:
        random.choice(self.busy_workers()).answer_is_lost()

    @precondition(lambda self: self.busy_workers())
    @rule(random=DATA)
    def lose_a_request(self, random: Any) -> None:
        random.choice(self.busy_workers()).fail(unavailable())

    @precondition(lambda self: self.busy_workers())
    @rule(random=DATA)
    def lose_a_fragment(self, random: Any) -> None:
        random.choice(self.busy_workers()).fragment_is_lost()

    @precondition(lambda self: self.busy_workers())
    @rule(random=DATA)
    def lose_weights_on_the_way(self, random: Any) -> None:
        random.choice(self.busy_workers()).fail(raised(lost_object()))

    @precondition(lambda self: self.busy_workers())
    @rule(random=DATA)
    def spoil_a_fragment(self, random: Any) -> None:
        random.choice(self.busy_workers()).deliver(fault="values[0, 0] is nan")

    @precondition(lambda self: self.run.replicas)
    @rule(random=DATA)
    def kill_replica(self, random: Any) -> None:
        random.choice(self.run.replicas).die()

    @precondition(lambda self: self.run.replicas)
    @rule(random=DATA)
    def freeze_replica(self, random: Any) -> None:
        random.choice(self.run.replicas).freeze()

    @precondition(lambda self: self.run.replicas)
    @rule(random=DATA, method=st.sampled_from(["join", "stage", "train", "open_store"]))
    def doom_replica(self, random: Any, method: str) -> None:
        random.choice(self.run.replicas).dies_in = method

    # What must hold.

    @invariant()
    def every_agent_step_is_accounted_for(self) -> None:
        ledger = self.run.ledger
        assert ledger.imbalance() == 0
        assert ledger.trained == ledger.agent_step == len(self.run.trained_tickets) * FRAGMENT_STEPS

    @invariant()
    def no_ticket_is_trained_twice_nor_sampled_twice(self) -> None:
        assert len(set(self.run.trained_tickets)) == len(self.run.trained_tickets)
        for worker in self.all_workers():
            assert len(set(worker.sampled)) == len(worker.sampled)

    @invariant()
    def versions_grow_by_one(self) -> None:
        assert self.run.ledger.version == self.run.learners.committed.version
        assert self.run.ledger.version - self.committed in (0, 1)
        self.committed = self.run.ledger.version

    @invariant()
    def nothing_older_than_allowed_is_trained_on(self) -> None:
        if self.run.epochs:
            assert self.run.epochs[-1]["staleness"]["max"] <= MAX_STALENESS

    @invariant()
    def the_curriculum_hears_of_each_episode_once(self) -> None:
        heard = self.run.curriculum.heard
        assert max(heard.values(), default=1) == 1
        assert {f"task {ticket}" for ticket in self.run.trained_tickets} <= heard.keys()

    @invariant()
    def what_is_outstanding_is_bounded(self) -> None:
        ledger, staleness = self.run.ledger, self.run.config.pacing.target_staleness
        assert ledger.in_flight + ledger.queued <= (staleness + 1) * self.run.sizes.batch_steps

    # Helpers.

    def busy_workers(self) -> list[FakeWorker]:
        return [worker for worker in self.run.workers if worker.tickets and not worker.is_frozen]

    def all_workers(self) -> list[FakeWorker]:
        return [child for child in self.run.children.all if isinstance(child, FakeWorker)]

    def go_back(self) -> None:
        """As the coordinator does: to the newest checkpoint, here the beginning."""
        raise AssertionError("replacements start at once, so there is always a learner to go on with")


class ChaosThatEnds(Chaos):
    """Once the world leaves it alone the run goes on by itself, and a new reader of the journal has the same books."""

    def teardown(self) -> None:
        if hasattr(self, "run"):
            run = self.run
            for child in run.children.all:
                child.dies_in = None
            run.pipeline.paused = False
            run.children.fragment_seconds = run.children.update_seconds = 0.05
            for worker in self.busy_workers():
                while worker.tickets:
                    worker.deliver()
            if any(replica.open_calls("train") for replica in run.replicas):
                run.children.finish_update()
            version = run.ledger.version
            run.step_until(lambda: run.ledger.version >= version + 3, turns=3000)
            self.every_agent_step_is_accounted_for()
            self.no_ticket_is_trained_twice_nor_sampled_twice()
            run.pipeline.paused = True
            run.step_until(lambda: run.pipeline.is_quiet, turns=3000)
            run.pipeline.drop_queued("stopped")
            assert run.ledger.open_tickets == []

            run.books.close()
            again = Books(self.dir, FakeCurriculum())  # type: ignore[arg-type]
            assert again.state_dict() == run.books.state_dict()
            again.close()
            spent = Counter(run.ledger.dropped) + Counter(run.ledger.lost)
            assert run.ledger.issued == run.ledger.trained + spent.total()
        super().teardown()


TestChaos = ChaosThatEnds.TestCase
TestChaos.settings = settings(max_examples=20, stateful_step_count=40, deadline=None)
