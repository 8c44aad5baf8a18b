"""The training pipeline, turn by turn, over workers and learners in this process."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from metta_ray.common.errors import EnvironmentFault, LearnersLost, RunFailed
from metta_ray.control.ledger import TicketState
from tests.fakes import FRAGMENT_BYTES, FRAGMENT_STEPS, FakeRun, failed_to_start, lost_object, raised


def run_of(run_dir: Path, **settings: Any) -> FakeRun:
    """A run that has begun."""
    return FakeRun(run_dir, **settings).start()


def synchronous(run_dir: Path, **settings: Any) -> FakeRun:
    return run_of(run_dir, pacing__target_staleness=0, **settings)


def outstanding(run: FakeRun) -> list[int]:
    """Tickets that workers have."""
    return sorted(ticket.number for worker in run.workers for ticket in worker.tickets)


def deliver_all(run: FakeRun) -> None:
    for worker in run.workers:
        while worker.tickets:
            worker.deliver()
    run.step()


# The ordinary course.


def test_tickets_out_fragments_in_and_a_new_version(tmp_path: Path):
    run = run_of(tmp_path)
    assert outstanding(run) == [0, 1, 2, 3], "two batches of two fragments"
    assert run.ledger.in_flight == 4 * FRAGMENT_STEPS

    run.workers[0].deliver()
    run.step()
    run.workers[1].deliver()
    run.step()
    assert run.learners.update is not None
    assert run.ledger.version == 0

    run.children.finish_update()
    run.step()
    assert run.ledger.version == 1
    assert run.ledger.trained == 2 * FRAGMENT_STEPS
    assert [epoch["epoch"] for epoch in run.epochs] == [1]
    assert outstanding(run)[-1] == 5, "what is committed may be ordered again"


def test_the_next_batch_is_collected_and_staged_during_an_update(tmp_path: Path):
    run = run_of(tmp_path)

    deliver_all(run)
    run.step()

    learner = run.replicas[0]
    assert len(learner.open_calls("train")) == 1
    assert [batch for batch, _ in learner.staged_ever] == [0, 1]
    assert outstanding(run) == [], "nothing beyond two batches"

    run.children.finish_update()
    run.step()
    assert len(learner.open_calls("train")) == 1, "at once, without another turn"


def test_the_least_busy_worker_is_ordered_from(tmp_path: Path):
    run = run_of(tmp_path, workers=3, fragments_per_batch=3)
    assert [len(worker.tickets) for worker in run.workers] == [2, 2, 2]

    run.workers[1].deliver()
    run.workers[1].deliver()
    run.workers[2].deliver()
    run.step()
    run.step()
    run.children.finish_update()
    run.step()

    assert [len(worker.tickets) for worker in run.workers] == [2, 2, 2]


def test_no_worker_has_more_than_its_share_of_tickets(tmp_path: Path):
    run = run_of(tmp_path, workers=1, fragments_per_batch=8, rollout__tickets_per_worker=3)

    assert len(run.workers[0].tickets) == 3


def test_training_goes_on_with_the_workers_that_are_there(tmp_path: Path):
    run = FakeRun(tmp_path, workers=2)
    run.begin_learners()
    run.children.start_seconds = None
    run.pool.wanted = 2
    run.step()
    run.workers[1].become_ready()
    run.step()

    for _ in range(2):
        while run.workers[1].tickets:
            run.workers[1].deliver()
            run.step()
    run.children.finish_update()
    run.step()

    assert run.ledger.version == 1


def test_a_ticket_carries_the_newest_weights_tasks_and_what_is_settled(tmp_path: Path):
    run = run_of(tmp_path, workers=1)
    deliver_all(run)
    run.step()
    run.children.finish_update()
    run.step()
    run.workers[0].deliver()
    run.step()

    ticket = run.workers[0].tickets[-1]

    assert ticket.weights.version == 1
    assert ticket.weights.content is run.learners.committed.weights
    assert ticket.settled == (0, 1)
    assert ticket.tasks is not None
    assert ticket.tasks.version == run.curriculum.task_table().version


# What is not trained on.


def test_a_stale_fragment_is_dropped_with_its_reason_and_ordered_again(tmp_path: Path):
    run = run_of(tmp_path, pacing__max_staleness=1)
    slow, quick = run.workers
    for _ in range(3):
        while run.learners.update is None:
            quick.deliver()
            run.step()
        run.children.finish_update()
        run.step()
    assert run.ledger.version == 3

    slow.deliver()
    run.step()

    assert run.ledger.dropped == {"stale": FRAGMENT_STEPS}
    assert "dropped" in run.kinds()
    assert max(epoch["staleness"]["max"] for epoch in run.epochs) <= 1
    assert run.ledger.imbalance() == 0


def test_a_fragment_that_grows_stale_in_the_queue_is_dropped_when_its_batch_is_made(tmp_path: Path):
    run = run_of(tmp_path, workers=3, fragments_per_batch=3, pacing__target_staleness=1, pacing__max_staleness=1)
    first = run.workers[0].deliver()
    run.step()
    queued = run.pipeline._queue
    assert list(queued) == [first.ticket]

    # As if the versions had gone on without it.
    for version in (1, 2):
        run.ledger._version = version
    run.step()

    assert run.ledger.dropped == {"stale": FRAGMENT_STEPS}
    assert not queued


def test_an_invalid_fragment_is_dropped_and_its_episodes_are_heard(tmp_path: Path):
    run = run_of(tmp_path)

    header = run.workers[0].deliver(fault="obs[0, 3] is nan")
    run.step()

    assert run.ledger.dropped == {"invalid": FRAGMENT_STEPS}
    assert run.curriculum.heard[f"task {header.ticket}"] == 1
    assert any("obs[0, 3] is nan" in text for kind, text in run.events if kind == "dropped")
    assert outstanding(run)[-1] > 3, "another one is ordered in its place"


def test_a_fragment_of_another_life_is_refused(tmp_path: Path):
    run = run_of(tmp_path)

    run.workers[0].deliver(incarnation="somebody else")
    run.step()

    assert run.ledger.dropped == {"foreign": FRAGMENT_STEPS}


def test_masked_steps_are_accounted_for(tmp_path: Path):
    run = run_of(tmp_path)

    run.workers[0].deliver(counted_steps=FRAGMENT_STEPS - 3)
    run.workers[1].deliver()
    run.step()
    run.step()
    run.children.finish_update()
    run.step()

    assert run.ledger.agent_step == 2 * FRAGMENT_STEPS - 3
    assert run.ledger.dropped == {"masked": 3}


def test_data_that_is_lost_before_its_batch_is_closed_and_ordered_again(tmp_path: Path):
    run = run_of(tmp_path)

    run.workers[0].fail(raised(lost_object()))
    run.step()

    assert run.ledger.lost == {"data_lost": FRAGMENT_STEPS}
    assert "data_lost" in run.kinds()
    assert outstanding(run) == [1, 2, 3, 4]


def test_a_batch_whose_fragments_are_gone_is_lost_as_a_whole_and_training_goes_on(tmp_path: Path):
    run = run_of(tmp_path)
    run.workers[0].fragment_is_lost()
    run.workers[1].deliver()
    run.step()
    run.step()
    run.children.finish_update()
    run.step()

    assert run.ledger.lost == {"data_lost": 2 * FRAGMENT_STEPS}
    assert run.ledger.version == 0

    deliver_all(run)
    run.step()
    run.children.finish_update()
    run.step()
    assert run.ledger.version == 1
    assert not {0, 1} & set(run.trained_tickets)


# In synchronous mode.


@pytest.mark.parametrize("first", [0, 1])
def test_synchronous_batches_are_the_same_whoever_is_faster(tmp_path: Path, first: int):
    run = synchronous(tmp_path)
    for _ in range(3):
        for worker in (run.workers[first], run.workers[1 - first]):
            worker.deliver()
            run.step()
        run.step()
        run.children.finish_update()
        run.step()

    assert run.trained_tickets == (0, 1, 2, 3, 4, 5)
    assert [worker.sampled for worker in run.workers] == [[0, 2, 4], [1, 3, 5]]
    assert list(run.curriculum.heard) == [f"task {ticket}" for ticket in range(6)], "in the order of tickets"
    assert all(epoch["staleness"]["max"] == 0 for epoch in run.epochs)


def test_synchronous_collecting_and_training_take_turns(tmp_path: Path):
    run = synchronous(tmp_path)
    assert outstanding(run) == [0, 1]

    deliver_all(run)
    run.step()
    assert outstanding(run) == []

    run.children.finish_update()
    run.step()
    assert outstanding(run) == [2, 3]


def test_synchronous_mode_waits_for_all_its_workers(tmp_path: Path):
    run = FakeRun(tmp_path, workers=2, pacing__target_staleness=0)
    run.begin_learners()
    run.children.start_seconds = None
    run.pool.wanted = 2
    run.step()
    run.workers[0].become_ready()
    run.step()
    assert outstanding(run) == []

    run.workers[1].become_ready()
    run.step()
    assert outstanding(run) == [0, 1]


def test_synchronous_mode_goes_on_after_a_worker_was_lost(tmp_path: Path):
    run = synchronous(tmp_path)
    run.workers[1].deliver()
    run.workers[0].die()
    run.step()
    run.step()
    assert outstanding(run) == [2], "one for the one that is lost"

    deliver_all(run)
    run.step()
    run.children.finish_update()
    run.step()
    assert run.trained_tickets == (1, 2)


def test_synchronous_mode_goes_on_without_a_slot_that_was_given_up(tmp_path: Path):
    run = synchronous(tmp_path, failure__environment__per_slot=1, failure__backoff_s=0.1)

    def with_a_ticket_in_slot_0() -> list[Any]:
        return [worker for worker in run.workers if worker.args == (0,) and worker.tickets]

    for _ in range(2):
        run.step_until(lambda: bool(with_a_ticket_in_slot_0()))
        with_a_ticket_in_slot_0()[0].fail(raised(EnvironmentFault("broken map")))
        run.step()
    assert run.pool.given_up == {0}

    run.children.fragment_seconds = run.children.update_seconds = 0.01
    deliver_all(run)
    run.step_until(lambda: run.ledger.version >= 2)


# How much is under way.


def test_a_byte_budget_bounds_what_is_outstanding(tmp_path: Path):
    run = run_of(tmp_path, workers=4, fragments_per_batch=4, byte_budget=5 * FRAGMENT_BYTES)
    run.children.update_seconds = 0.2
    run.children.fragment_seconds = 0.05
    deliver_all(run)
    run.step_until(lambda: run.ledger.version >= 2)

    most = 0
    while run.ledger.version < 5:
        run.step()
        most = max(most, run.pipeline.bytes_outstanding)

    assert FRAGMENT_BYTES * 4 <= most <= FRAGMENT_BYTES * 5


def test_paused_nothing_is_ordered_and_what_is_under_way_is_finished(tmp_path: Path):
    run = run_of(tmp_path)
    run.pipeline.paused = True
    assert not run.pipeline.is_quiet

    deliver_all(run)
    run.step()
    run.children.finish_update()
    run.step()
    assert not run.pipeline.is_quiet
    run.children.finish_update()
    run.step()

    assert run.pipeline.is_quiet
    assert run.ledger.version == 2
    assert outstanding(run) == []

    run.pipeline.paused = False
    run.step()
    assert len(outstanding(run)) == 4


def test_a_pause_longer_than_all_deadlines_costs_nothing(tmp_path: Path):
    run = run_of(tmp_path, failure__collect_deadline_s=3, failure__update_deadline_s=3)
    run.pipeline.paused = True
    run.children.update_seconds = 0.1
    deliver_all(run)
    run.step_until(lambda: run.pipeline.is_quiet)

    for _ in range(100):
        run.step(1.0)
    run.pipeline.paused = False
    run.children.fragment_seconds = 0.1
    run.step_until(lambda: run.ledger.version >= 5)

    assert run.ledger.lost == {}
    assert "hang" not in run.kinds()


def test_a_rest_that_makes_no_batch_is_quiet_and_can_be_closed(tmp_path: Path):
    run = run_of(tmp_path)
    run.children.update_seconds = 0.1
    run.pipeline.paused = True
    run.workers[0].deliver()
    run.workers[1].deliver()
    run.workers[1].deliver()
    run.workers[0].die()
    run.step_until(lambda: run.pipeline.is_quiet)
    assert run.ledger.queued == FRAGMENT_STEPS

    run.pipeline.drop_queued("stopped")

    assert run.ledger.dropped == {"stopped": FRAGMENT_STEPS}
    assert run.ledger.open_tickets == []
    assert run.ledger.imbalance() == 0


@pytest.mark.parametrize("target_staleness", [0, 1, 2])
def test_nothing_is_collected_beyond_the_end(tmp_path: Path, target_staleness: int):
    run = run_of(tmp_path, batches=3, workers=3, pacing__target_staleness=target_staleness)
    run.children.update_seconds = 0.1
    run.children.fragment_seconds = 0.07
    deliver_all(run)

    run.step_until(lambda: run.pipeline.is_finished and run.pipeline.is_quiet)

    assert sum(len(worker.sampled) for worker in run.workers) == 6
    assert run.ledger.issued == run.ledger.trained == 6 * FRAGMENT_STEPS


def test_a_run_whose_steps_are_masked_collects_until_enough_count(tmp_path: Path):
    run = run_of(tmp_path, batches=2)
    run.children.update_seconds = 0.1
    run.step_until(lambda: bool(outstanding(run)))
    for _ in range(200):
        for worker in run.workers:
            if worker.tickets:
                worker.deliver(counted_steps=FRAGMENT_STEPS // 2)
        run.step()

    assert run.pipeline.is_finished
    assert run.ledger.version == 4
    assert run.ledger.agent_step == 4 * FRAGMENT_STEPS


# Losses.


def test_what_a_worker_delivered_outlives_it(tmp_path: Path):
    run = run_of(tmp_path)
    victim = run.workers[0]
    victim.deliver()
    run.step()
    victim.die()
    run.step()
    assert run.ledger.lost == {"crash": FRAGMENT_STEPS}, "only what it had not delivered"

    run.workers[-1].deliver()
    run.step()
    run.step()
    run.children.finish_update()
    run.step()
    assert 0 in run.trained_tickets


def test_a_hang_costs_its_tickets_and_the_run_goes_on(tmp_path: Path):
    run = run_of(tmp_path, batches=100, failure__collect_deadline_s=2)
    run.children.fragment_seconds = run.children.update_seconds = 0.1
    run.workers[0].freeze()
    while run.workers[1].tickets:
        run.workers[1].deliver()

    run.step_until(lambda: "hang" in run.kinds())
    assert run.ledger.version > 3, "the other worker went on meanwhile"
    version = run.ledger.version
    run.step_until(lambda: run.ledger.version >= version + 3)

    assert run.ledger.lost == {"hang": 2 * FRAGMENT_STEPS}
    assert run.ledger.imbalance() == 0


def test_the_first_cause_is_named_where_the_run_cannot_go_on(tmp_path: Path):
    run = FakeRun(tmp_path)
    run.begin_learners()
    run.children.start_seconds = None
    run.pool.wanted = 2

    def fail_all() -> None:
        for _ in range(20):
            run.step()
            for worker in run.workers:
                worker.die(failed_to_start(EnvironmentFault("map rooms.map is missing")))

    with pytest.raises(RunFailed, match=r"none ever did\. First cause: .*map rooms\.map is missing"):
        fail_all()


def test_a_lost_replica_repeats_its_update_and_nothing_is_trained_twice(tmp_path: Path):
    run = run_of(tmp_path, learner__replicas=2)
    run.children.fragment_seconds = run.children.update_seconds = 0.1
    deliver_all(run)
    run.step_until(lambda: run.learners.update is not None)

    run.replicas[1].die()
    run.step_until(lambda: run.ledger.version >= 4)

    assert run.ledger.trained == len(run.trained_tickets) * FRAGMENT_STEPS
    assert max(Counter(run.trained_tickets).values()) == 1
    assert run.ledger.lost == {}
    assert len(run.learners.members) == 2, "the replacement joined though the learner was never idle"


def test_lost_learners_leave_books_that_can_be_set_back(tmp_path: Path):
    run = run_of(tmp_path, failure__start_deadline_s=3)
    deliver_all(run)
    run.step()
    run.children.start_seconds = None
    run.replicas[0].die()
    with pytest.raises(LearnersLost):
        run.step()

    run.learners.stop()
    run.pipeline.forget_all()
    run.books.restore_checkpoint(0, 0, {})
    run.children.start_seconds = 0.0
    run.begin_learners()
    run.children.fragment_seconds = run.children.update_seconds = 0.1
    run.step_until(lambda: run.ledger.version >= 3)

    assert run.ledger.lost == {"restart": 4 * FRAGMENT_STEPS}
    assert max(Counter(run.trained_tickets).values()) == 1


def test_scaling_down_and_up_again_loses_nothing(tmp_path: Path):
    run = run_of(tmp_path, workers=4, fragments_per_batch=4, batches=40)
    run.children.fragment_seconds = run.children.update_seconds = 0.1
    deliver_all(run)
    for wanted in (1, 4, 2, 3):
        run.pool.wanted = wanted
        version = run.ledger.version
        run.step_until(lambda version=version: run.ledger.version >= version + 3)

    assert run.ledger.lost == run.ledger.dropped == {}
    assert len(run.pool.ready) == 3


def test_replicas_that_differ_are_given_the_leaders_state(tmp_path: Path):
    run = run_of(tmp_path, learner__replicas=2)
    deliver_all(run)
    run.step()
    leader, other = run.replicas
    other.history = (999,)

    run.children.finish_update()
    run.step()

    assert "divergence" in run.kinds()
    assert other.history == leader.history


# After a restart of the coordinator.


def test_a_restarted_coordinator_asks_again_and_trains_each_fragment_once(tmp_path: Path):
    before = run_of(tmp_path)
    before.workers[0].deliver()
    before.step()
    before.workers[1].deliver()  # answered, and nobody heard it
    children, version = before.children, before.ledger.version
    before.books.close()

    after = FakeRun(tmp_path)
    after.children = after.pool._children = after.learners._children = children
    after.clock = children.clock
    after.learners.adopt(children.learners)
    assert after.learners.are_ready()
    assert after.learners.resume(version) is None
    after.learners.form()
    for slot, worker in enumerate(children.workers):
        owed = [t for t in after.ledger.open_tickets if after.ledger.worker_of(t) == worker.identity.number]
        after.pool.adopt(slot, worker, {ticket: after.pipeline.ticket(ticket) for ticket in owed})
    after.pool.wanted = 2
    assert after.ledger.state_of(0) is TicketState.QUEUED

    children.fragment_seconds = children.update_seconds = 0.1
    deliver_all(after)
    after.step_until(lambda: after.ledger.version >= 3)

    assert after.ledger.lost == {}
    assert {0, 1} <= set(after.trained_tickets)
    assert max(Counter(after.trained_tickets).values()) == 1
    assert max(after.curriculum.heard.values()) == 1
    assert all(len(set(worker.sampled)) == len(worker.sampled) for worker in children.workers)
