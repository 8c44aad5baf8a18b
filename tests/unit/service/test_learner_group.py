"""The learner group against replicas in this process: one interface, and one group again after any of them died."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from metta_ray.common.errors import LearnersLost, RunFailed, TrainingDiverged
from metta_ray.service.identity import Identity
from metta_ray.service.learner_group import Batch, BatchLost, Finished, LearnerGroup
from metta_ray.service.orders import Contents, UpdateOrder
from tests.fakes import (
    Call,
    FakeChildren,
    FakeFuture,
    FakeLearner,
    ManualClock,
    failed_to_start,
    node_lost,
    preempted,
    raised,
    small_config,
    small_sizes,
    unavailable,
)

FRAGMENTS = 4


class Group:
    """A group, and the batches it is given."""

    def __init__(self, replicas: int = 2, **settings: Any) -> None:
        self.clock = ManualClock()
        self.children = FakeChildren(self.clock)
        self.changes: list[tuple[str, int]] = []
        self._numbers, self._tickets, self._batches = itertools.count(), itertools.count(), itertools.count()
        config = small_config(FRAGMENTS, 10, learner__replicas=replicas, **settings)
        self.group = LearnerGroup(
            config,
            small_sizes(FRAGMENTS),
            self.children,
            "group",
            self.clock,
            lambda: (),
            self._numbers.__next__,
            lambda what, number, details: self.changes.append((what, number)),
            1,
        )

    def begin(self) -> Group:
        self.group.start()
        assert self.group.are_ready()
        self.group.begin(None)
        return self

    def batch(self) -> Batch:
        """Of new fragments."""
        tickets = tuple(itertools.islice(self._tickets, FRAGMENTS))
        fragments = tuple(self.fragment(ticket) for ticket in tickets)
        return Batch(next(self._batches), tickets, fragments, origins=tuple((0, ticket) for ticket in tickets))

    def fragment(self, ticket: int) -> FakeFuture:
        call = Call("collect", (), 1)
        call.answer(f"fragment {ticket}")
        return call.futures[0]

    def stage(self, batch: Batch | None = None) -> Batch:
        batch = batch or self.batch()
        self.group.stage(batch)
        return batch

    def update(self, batch: Batch) -> None:
        assert self.group.committed is not None
        version = self.group.committed.version
        order = UpdateOrder(0, 0, batch.number, version, 0, FRAGMENTS, batch.tickets)
        self.group.begin_update(batch, order)

    def begin_update(self) -> Batch:
        batch = self.stage()
        self.update(batch)
        return batch

    def finish(self) -> Finished:
        """The update under way, however often it is repeated."""
        for _ in range(20):
            if any(learner.open_calls("train") for learner in self.replicas):
                self.children.finish_update()
            finished = self.group.poll()
            if finished is not None:
                return finished
        raise AssertionError("the update does not finish")

    @property
    def replicas(self) -> list[FakeLearner]:
        return self.children.learners

    @property
    def seats(self) -> list[int]:
        """Numbers of the replicas, by rank."""
        return [member.number for member in self.group.members]

    @property
    def trained(self) -> tuple[int, ...]:
        assert self.group.committed is not None
        history: tuple[int, ...] = self.group.committed.weights.value
        return history


# Working together.


def test_each_rank_gets_its_share_of_the_fragments_in_order():
    group = Group(2).begin()

    group.stage()

    assert [learner.staged_ever for learner in group.replicas] == [
        [(0, ["fragment 0", "fragment 1"])],
        [(0, ["fragment 2", "fragment 3"])],
    ]


def test_an_update_finishes_with_the_results_of_all_and_the_leaders_first():
    group = Group(2).begin()
    batch = group.begin_update()
    assert group.group.poll() is None

    finished = group.finish()

    assert [result.rank for result in finished.results] == [0, 1]
    assert finished.batch == batch
    assert group.group.committed.version == 1
    assert group.trained == batch.tickets
    assert group.group.staging == []


def test_the_next_batch_is_staged_during_an_update():
    group = Group(2).begin()
    first = group.begin_update()
    second = group.stage()

    group.finish()
    group.update(second)
    group.finish()

    assert group.trained == first.tickets + second.tickets


def test_a_start_that_fails_before_there_was_a_group_is_raised():
    group = Group(2)
    group.children.start_seconds = None
    group.group.start()

    group.replicas[1].die(failed_to_start(ValueError("no such device")))

    with pytest.raises(Exception, match="no such device"):
        group.group.are_ready()


@pytest.mark.parametrize("error", [preempted(), node_lost()])
def test_one_whose_node_is_lost_before_there_was_a_group_is_replaced(error: Exception):
    group = Group(2)
    group.children.start_seconds = None
    group.group.start()

    group.replicas[1].die(error)
    assert not group.group.are_ready()
    for learner in group.replicas:
        learner.become_ready()

    assert group.group.are_ready()
    assert len(group.group.newcomers) == 2
    assert group.group.failures == 1


# A replica is lost.


@pytest.mark.parametrize("rank", [0, 1])
def test_survivors_repeat_the_very_same_batch(rank: int):
    group = Group(2).begin()
    batch = group.begin_update()

    group.replicas[rank].die()
    assert group.group.poll() is None
    group.children.start_seconds = None
    finished = group.finish()

    assert group.trained == batch.tickets, "trained once, in order"
    assert finished.batch == batch
    assert len(finished.results) == 1
    assert group.group.repeated_updates == 1
    assert ("left", rank) in group.changes


def test_a_survivor_of_one_gets_the_whole_batch():
    group = Group(2).begin()
    group.children.start_seconds = None
    group.begin_update()
    group.replicas[0].die()

    group.group.poll()

    [survivor] = [learner for learner in group.replicas if learner.is_ready]
    assert survivor.staged_ever[-1] == (0, [f"fragment {i}" for i in range(4)])
    assert (survivor.rank, survivor.world_size) == (0, 1)


def test_a_batch_that_was_staged_ahead_is_staged_again():
    group = Group(2).begin()
    first = group.begin_update()
    second = group.stage()

    group.replicas[1].die()
    group.finish()
    group.update(second)
    group.finish()

    assert group.trained == first.tickets + second.tickets


def test_a_replacement_joins_between_two_updates():
    group = Group(2).begin()
    group.children.start_seconds = None
    group.begin_update()
    group.replicas[1].die()
    group.group.poll()
    assert group.seats == [0]

    newcomer = group.replicas[-1]
    newcomer.become_ready()
    group.group.poll()
    assert group.seats == [0], "not in the middle of one"

    group.finish()
    group.group.mend()
    assert group.seats == [0, 2]
    assert newcomer.history == group.trained


def test_a_replacement_joins_although_the_next_batch_waits():
    """A learner that is never idle must not keep newcomers out for ever."""
    group = Group(2).begin()
    first = group.begin_update()
    second = group.stage()
    group.children.start_seconds = None
    group.replicas[1].die()
    group.group.poll()
    group.replicas[-1].become_ready()

    group.finish()
    group.group.mend()
    group.update(second)
    finished = group.finish()

    assert len(finished.results) == 2
    assert group.trained == first.tickets + second.tickets


def test_a_frozen_replica_is_found_at_the_deadline_and_replaced():
    group = Group(2, failure__update_deadline_s=3).begin()
    group.begin_update()
    group.finish()
    batch = group.begin_update()
    frozen = group.replicas[1]
    frozen.freeze()

    for _ in range(25):
        assert group.group.poll() is None
        group.clock.advance(0.1)
    assert frozen.is_alive

    while frozen.is_alive:
        group.group.poll()
        group.clock.advance(0.1)
        assert group.clock() < 1010
    group.finish()
    assert frozen.end == "killed"
    assert group.trained[-FRAGMENTS:] == batch.tickets


def test_the_first_update_may_take_as_long_as_cold_files_take():
    group = Group(2, failure__update_deadline_s=3, learner__first_process_group_timeout_s=60).begin()
    group.begin_update()

    group.clock.advance(50)
    assert group.group.poll() is None

    assert len(group.finish().results) == 2


def test_with_no_survivor_training_waits_for_the_first_replacement():
    group = Group(2).begin()
    group.begin_update()
    group.finish()
    group.children.start_seconds = 4.0
    batch = group.begin_update()
    before = group.clock()

    for learner in group.replicas:
        learner.die()
    group.group.poll()

    assert group.clock() - before == pytest.approx(4.0, abs=1.0)
    group.finish()
    assert group.trained[-FRAGMENTS:] == batch.tickets
    assert len(group.trained) == 2 * FRAGMENTS


def test_without_any_replacement_in_time_the_learners_are_lost():
    group = Group(2, failure__start_deadline_s=5).begin()
    group.children.start_seconds = None
    group.begin_update()
    for learner in group.replicas:
        learner.die()

    with pytest.raises(LearnersLost, match="no learner replica became ready in 5 s"):
        group.group.poll()


def test_a_committed_state_that_is_gone_means_that_the_learners_are_lost():
    group = Group(1).begin()
    group.begin_update()
    group.group.committed.weights.is_lost = True
    group.replicas[0].die()

    with pytest.raises(LearnersLost, match="committed state is lost"):
        group.group.poll()


def test_a_replacement_that_fails_to_start_is_replaced_too():
    group = Group(2).begin()
    batch = group.begin_update()
    group.children.start_seconds = None
    for learner in group.replicas:
        learner.die()
    group.children.schedule(group.clock() + 3, lambda: group.replicas[0].die(failed_to_start(ValueError("no room"))))
    group.children.schedule(group.clock() + 6, lambda: group.replicas[0].become_ready())

    group.group.poll()

    group.finish()
    assert group.trained == batch.tickets


def test_a_newcomer_that_dies_while_it_joins_is_replaced_once():
    group = Group(2).begin()
    group.begin_update()
    group.replicas[1].die()
    group.group.poll()
    group.finish()
    group.replicas[-1].dies_in = "join"

    group.group.mend()
    for _ in range(5):
        group.group.poll()
        group.group.mend()

    assert len(group.replicas) == 2
    assert group.group.newcomers == []
    assert [change for change in group.changes if change[0] == "left"] == [("left", 1), ("left", 2)]
    assert sorted(learner.rank for learner in group.replicas) == [0, 1]


def test_a_member_that_dies_while_a_newcomer_joins_is_replaced_once():
    group = Group(2).begin()
    group.begin_update()
    group.replicas[1].die()
    group.group.poll()
    group.finish()
    group.replicas[0].dies_in = "open_store"

    group.group.mend()
    for _ in range(5):
        group.group.poll()
        group.group.mend()

    assert len(group.replicas) == len(group.group.members) == 2
    assert group.group.newcomers == []
    assert len(group.trained) == FRAGMENTS


def test_what_the_leader_finished_counts_though_another_died_at_the_very_end():
    group = Group(2).begin()
    batch = group.begin_update()
    leader, other = group.replicas
    [call] = leader.open_calls("train")
    [others] = other.open_calls("train")
    others.fail(raised(RuntimeError("too late")))
    leader.finish(call)
    other.is_alive = False

    finished = group.group.poll()

    assert finished is not None
    assert [result.rank for result in finished.results] == [0]
    assert group.trained == batch.tickets
    assert group.group.repeated_updates == 0
    group.group.mend()
    assert len(group.group.members) == 1 or len(group.replicas) == 2


def test_three_of_four_replicas_train_with_as_many_as_can_share_a_batch():
    group = Group(4).begin()
    group.children.start_seconds = None
    batch = group.begin_update()

    group.replicas[2].die()
    group.group.poll()
    finished = group.finish()

    assert len(finished.results) == 2, "four fragments cannot be shared by three"
    assert group.trained == batch.tickets
    assert len([learner for learner in group.replicas if learner.is_ready]) == 3, "the third is kept for later"
    group.replicas[-1].become_ready()
    group.group.poll()
    group.group.mend()
    assert len(group.group.members) == 4


def test_two_replacements_for_one_survivor_do_not_wait_for_the_third():
    group = Group(4).begin()
    group.children.start_seconds = None
    group.begin_update()
    for learner in group.replicas[1:]:
        learner.die()
    group.group.poll()
    group.finish()

    for learner in group.replicas[1:3]:
        learner.become_ready()
    group.group.poll()
    group.group.mend()

    assert len(group.group.members) == 2
    assert len(group.replicas) == 4


@pytest.mark.parametrize("lost", [1, 2])
def test_fragments_that_are_gone_cost_their_batch_and_no_replica(lost: int):
    """The leader's share, or another's: then the leader only hears that a peer left."""
    group = Group(2).begin()
    batch = group.begin_update()
    batch.fragments[lost].is_lost = True
    group.children.finish_update()

    with pytest.raises(BatchLost) as caught:
        group.group.poll()

    assert caught.value.tickets == batch.tickets
    assert group.group.update is None
    assert group.seats == [0, 1]
    following = group.begin_update()
    group.finish()
    assert group.trained == following.tickets


def test_a_training_that_diverged_is_not_repeated():
    group = Group(1).begin()
    group.begin_update()

    group.replicas[0].open_calls("train")[0].fail(raised(TrainingDiverged("8 updates in a row were not finite")))

    with pytest.raises(TrainingDiverged, match="8 updates"):
        group.group.poll()


def test_failures_beyond_the_budget_end_the_run():
    group = Group(2, failure__learner__per_run=2).begin()
    for _ in range(2):
        group.begin_update()
        group.replicas[-1].die()
        group.finish()
        group.group.mend()

    group.begin_update()
    group.replicas[-1].die()

    with pytest.raises(RunFailed, match=r"3 learner failures \(failure.learner.per_run=2\)"):
        group.finish()


def test_an_answer_that_is_lost_is_fetched_again_and_not_trained_again():
    group = Group(1).begin()
    batch = group.begin_update()
    leader = group.replicas[0]
    [call] = leader.open_calls("train")
    answered = Call("train", call.args, 3)
    leader.finish(answered)
    call.fail(unavailable())

    group.group.poll()
    finished = group.finish()

    assert finished.order.version == 0
    assert group.trained == batch.tickets
    assert group.group.committed.version == 1


# After a restart of the coordinator.


def adopted(versions: list[int]) -> Group:
    """Replicas of an earlier coordinator that are at these versions."""
    group = Group(len(versions))
    for number, version in enumerate(versions):
        learner = group.children.start("learner", Identity("group", "learner", number, f"{number}", 0))
        learner.version, learner.rank = version, number
    group.group.adopt(group.replicas)
    assert group.group.are_ready()
    return group


def test_the_newest_state_among_adopted_replicas_goes_on():
    group = adopted([3, 4])

    assert group.group.resume(3) is None
    group.group.form()

    assert group.group.committed.version == 4
    assert group.seats == [0, 1]


def test_states_of_other_versions_are_refused():
    with pytest.raises(LearnersLost, match="journal ends at version 7, learners are at \\[3, 3\\]"):
        adopted([3, 3]).group.resume(7)


def test_an_update_that_nobody_committed_is_found():
    group = adopted([3])
    learner = group.replicas[0]
    order = UpdateOrder(1, -1, 0, 3, 0, 4, (20, 21))
    learner.staged[0] = []
    learner.finish(Call("train", (order,), 3))

    found = group.group.resume(3)

    assert found is not None
    assert (found.version, found.tickets) == (4, (20, 21))


def test_saving_goes_to_the_leader_with_the_committed_state():
    group = Group(2).begin()
    group.begin_update()
    group.finish()

    future = group.group.save("/checkpoints", Contents(1, 64, {}, {}), {}, keep_last=3)

    assert future.value.path == "/checkpoints/model_0001"


def test_stop_ends_all_and_says_so():
    group = Group(2).begin()
    group.begin_update()

    group.group.stop()

    assert group.replicas == []
    assert [number for what, number in group.changes if what == "left"] == [0, 1]
