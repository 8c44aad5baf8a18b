import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from metta_ray.control.scaling import Decision, Keep, Observation, Resize, ScalingLimits, ScalingState, decide

LIMITS = ScalingLimits(min_workers=2, max_workers=20, useful_workers=16)
SETTLED = LIMITS.cool_down


def starved(num_workers: int = 8, learner_waiting: float = 0.4) -> Observation:
    return Observation(num_workers, learner_waiting, worker_waiting=0.0, queue_age=0.0)


def flooded(num_workers: int = 8, worker_waiting: float = 0.9) -> Observation:
    return Observation(num_workers, learner_waiting=0.0, worker_waiting=worker_waiting, queue_age=1.0)


def decided(*observations: Observation, num_workers: int = 8, since_resize: int = SETTLED) -> Decision:
    return decide(observations, LIMITS, ScalingState(num_workers, since_resize))


# --- by hand ---------------------------------------------------------------------------------------------


def test_workers_are_added_while_the_learner_waits():
    assert decided(*[starved()] * 3) == Resize(10, "learner waited 40% of the time")


def test_no_more_are_added_than_the_learner_can_use():
    # 8 / (1 - 0.11) = 8.99
    assert decided(*[starved(learner_waiting=0.11)] * 3) == Resize(9, "learner waited 11% of the time")


def test_a_quarter_goes_where_fragments_pile_up():
    assert decided(*[flooded()] * 3) == Resize(6, "fragments waited for the learner, workers waited 90% of the time")


def test_busy_workers_and_some_headroom_stay():
    # 8 × (1 - 0.2) × 1.1 = 7.04
    assert isinstance(decided(*[flooded(worker_waiting=0.2)] * 3), Keep)
    # 8 × (1 - 0.25) × 1.1 = 6.6
    assert decided(*[flooded(worker_waiting=0.25)] * 3).num_workers == 7  # type: ignore[union-attr]


def test_the_most_cautious_of_the_observations_decides():
    # 8 / (1 - 0.11) = 8.99, and 8 × (1 - 0.25) × 1.1 = 6.6
    assert decided(starved(), starved(learner_waiting=0.11), starved()).num_workers == 9  # type: ignore[union-attr]
    assert decided(flooded(), flooded(worker_waiting=0.25), flooded()).num_workers == 7  # type: ignore[union-attr]


def test_nothing_changes_in_the_band_between():
    between = Observation(8, learner_waiting=0.05, worker_waiting=0.3, queue_age=0.2)

    assert decided(*[between] * 3) == Keep("supply and demand agree")


def test_one_different_observation_starts_the_count_anew():
    assert isinstance(decided(starved(), flooded(), starved(), starved()), Keep)
    assert isinstance(decided(flooded(), starved(), starved(), starved()), Resize)


def test_two_observations_are_too_few():
    assert isinstance(decided(starved(), starved()), Keep)


def test_after_a_change_there_is_a_pause():
    assert isinstance(decided(*[starved()] * 3, since_resize=SETTLED - 1), Keep)


def test_observations_of_another_size_do_not_count():
    assert isinstance(decided(starved(7), starved(8), starved(8)), Keep)


@pytest.mark.parametrize(("num_workers", "bound"), [(1, 2), (17, 16), (40, 16)])
def test_a_size_outside_the_bounds_changes_at_once(num_workers: int, bound: int):
    decision = decided(num_workers=num_workers, since_resize=0)

    assert decision == Resize(bound, f"{num_workers} workers are outside 2 to 16")


def test_the_bounds_are_not_crossed():
    assert decided(*[starved(15)] * 3, num_workers=15) == Resize(16, "learner waited 40% of the time")
    assert isinstance(decided(*[starved(16)] * 3, num_workers=16), Keep)
    assert decided(*[flooded(3)] * 3, num_workers=3).num_workers == 2  # type: ignore[union-attr]
    assert isinstance(decided(*[flooded(2)] * 3, num_workers=2), Keep)


def test_asked_for_minimum_holds_even_above_the_useful_number():
    limits = ScalingLimits(min_workers=8, max_workers=20, useful_workers=4)

    assert limits.clamp(1) == limits.clamp(20) == 8


def test_the_state_counts_observations_since_the_last_change():
    state = ScalingState(4)

    assert state.after(Keep("")) == ScalingState(4, 1)
    assert state.after(Keep("")).after(Resize(6, "")) == ScalingState(6, 0)


# --- a training that answers -----------------------------------------------------------------------------


class Training:
    """Workers and learner in steady state: ``demand`` workers feed the learner exactly."""

    def __init__(self, demand: float, noise: float = 0.0, seed: int = 0) -> None:
        self.demand = demand
        self._noise = noise
        self._random = random.Random(seed)

    def observe(self, num_workers: int) -> Observation:
        def noisy(share: float) -> float:
            return min(1.0, max(0.0, share + self._random.uniform(-self._noise, self._noise)))

        learner_waiting = max(0.0, 1 - num_workers / self.demand)
        worker_waiting = max(0.0, 1 - self.demand / num_workers)
        return Observation(
            num_workers, noisy(learner_waiting), noisy(worker_waiting), queue_age=float(not learner_waiting)
        )


def sizes(training: Training, start: int, limits: ScalingLimits, epochs: int = 200) -> list[int]:
    state, seen, result = ScalingState(start), [], []
    for _ in range(epochs):
        seen.append(training.observe(state.num_workers))
        state = state.after(decide(seen, limits, state))
        result.append(state.num_workers)
    return result


@settings(max_examples=60)
@given(
    demand=st.floats(0.3, 40.0),
    start=st.integers(1, 30),
    low=st.integers(1, 8),
    span=st.integers(0, 30),
    noise=st.sampled_from([0.0, 0.03]),
    seed=st.integers(0, 10**6),
)
def test_under_constant_load_the_number_settles_close_to_demand(
    demand: float, start: int, low: int, span: int, noise: float, seed: int
):
    limits = ScalingLimits(min_workers=low, max_workers=low + span, useful_workers=24)

    path = sizes(Training(demand, noise, seed), start, limits)

    assert len(set(path[60:])) == 1 or noise, "it stays where it is"
    assert len({after > before for before, after in pairwise(path) if after != before}) <= 1, "it never turns back"
    settled = path[-1]
    assert limits.clamp(int(0.85 * demand)) <= settled <= limits.clamp(int(1.2 * demand) + 2)


def test_when_the_load_changes_the_number_follows():
    limits = ScalingLimits(min_workers=1, max_workers=20, useful_workers=20)
    training = Training(demand=12.0)
    assert sizes(training, 2, limits)[-1] in (11, 12)

    training.demand = 5.0

    assert sizes(training, 12, limits)[-1] == 6


class AnyObservations(RuleBasedStateMachine):
    """Whatever is observed, the bounds hold, and changes keep their distance."""

    @initialize(low=st.integers(1, 6), span=st.integers(0, 12), useful=st.integers(1, 20), start=st.integers(1, 30))
    def start(self, low: int, span: int, useful: int, start: int) -> None:
        self.limits = ScalingLimits(low, low + span, useful)
        self.state = ScalingState(start)
        self.seen: list[Observation] = []
        self.decisions: list[Decision] = []

    @rule(
        ready=st.integers(-1, 0),
        waiting=st.sampled_from([0.0, 0.01, 0.05, 0.2, 1.0]),
        idle=st.sampled_from([0.0, 0.3, 1.0]),
        age=st.sampled_from([0.0, 2.0]),
    )
    def epoch(self, ready: int, waiting: float, idle: float, age: float) -> None:
        self.seen.append(Observation(self.state.num_workers + ready, waiting, idle, age))
        decision = decide(self.seen, self.limits, self.state)
        if isinstance(decision, Resize):
            assert decision.num_workers != self.state.num_workers
            grows = decision.num_workers > self.state.num_workers
            inside = self.limits.clamp(self.state.num_workers) == self.state.num_workers
            assert not inside or grows == (waiting > self.limits.waiting_high), "in the direction of what was seen"
        self.decisions.append(decision)
        self.state = self.state.after(decision)

    @invariant()
    def bounds_hold(self) -> None:
        resized = [decision for decision in self.decisions if isinstance(decision, Resize)]
        assert all(self.limits.min_workers <= decision.num_workers <= self.limits.upper for decision in resized)

    @invariant()
    def changes_keep_their_distance(self) -> None:
        at: list[Any] = [index for index, decision in enumerate(self.decisions) if isinstance(decision, Resize)]
        assert all(b - a > self.limits.cool_down for a, b in pairwise(at))


AnyObservations.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestAnyObservations = AnyObservations.TestCase
