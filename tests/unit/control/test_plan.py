"""The model of a training: its bounds, what limits it, and layouts that fit the batch. Times are made up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from metta_ray.common.errors import ConfigError
from metta_ray.control.plan import Job, Layout, Resources, best_layout, floor_of, next_lever, predict
from metta_ray.control.rates import Curve, ServiceTimes

COLLECTING, LEARNING = 40e-6, 80e-6
TIMES = ServiceTimes(
    environment=Curve.of([(64, 10e-6)]),
    inference=Curve.of([(64, 30e-6)]),
    training=Curve.of([(1024, LEARNING)]),
    look_again=0.0,
    advantage=0.0,
    transport=0.0,
    staging=0.0,
    publish_s=0.0,
    load_s=0.0,
    step_bytes=100.0,
    weights_bytes=800_000,
)
JOB = Job(batch_steps=16_384, minibatch_steps=1024, horizon=64, agents_per_env=4)
IDEAL = Resources(
    cores=None,
    background_cores=0.0,
    message_s=0.0,
    turnaround_s=0.0,
    exchange_latency_s=0.0,
    exchange_bytes_per_second=1e15,
    coordinator_fragments_per_second=1e9,
    network_bytes_per_second=1e15,
)


def layout(workers: int, replicas: int = 1, rows: int = 16) -> Layout:
    return Layout(workers, replicas, rows, rows * JOB.horizon)


def rate(*args, job: Job = JOB, resources: Resources = IDEAL, times: ServiceTimes = TIMES) -> float:
    return predict(times, job, layout(*args), resources).agent_steps_per_second


def test_with_a_core_each_the_slower_side_decides():
    fast_learner = replace(TIMES, training=Curve.of([(1024, 1e-6)]))

    assert rate(1, times=fast_learner) == pytest.approx(1 / COLLECTING, rel=0.05)
    assert rate(2, times=fast_learner) == pytest.approx(2 / COLLECTING, rel=0.05)
    assert rate(8) == pytest.approx(1 / LEARNING, rel=0.02)


def test_replicas_share_the_batch():
    assert rate(16, 2) == pytest.approx(2 * rate(16, 1), rel=0.05)


def test_replicas_pay_for_their_exchange():
    slow = replace(IDEAL, exchange_bytes_per_second=1e6)

    prediction = predict(TIMES, JOB, layout(16, 4), slow)

    assert prediction.agent_steps_per_second < rate(16, 1)
    assert prediction.limited_by == "exchange"


def test_synchronous_sides_take_turns():
    turns = replace(JOB, target_staleness=0)

    assert rate(4, job=turns) == pytest.approx(1 / (COLLECTING / 4 + LEARNING), rel=0.05)


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize("replicas", [1, 2])
def test_shared_cores_are_never_beaten(workers: int, replicas: int):
    shared = replace(IDEAL, cores=2)

    prediction = predict(TIMES, JOB, layout(workers, replicas), shared)

    assert 0 < prediction.agent_steps_per_second <= 1.001 * floor_of(TIMES, JOB, layout(workers, replicas), shared)
    assert prediction.efficiency <= 1.001


def test_more_processes_than_cores_take_the_learners_time_unless_they_step_back():
    """Workers that are through early leave a core idle, after they slowed the learner down."""
    shared = replace(IDEAL, cores=2)

    assert rate(2, resources=shared) < 0.97 * rate(1, resources=shared)
    assert rate(2, resources=replace(shared, learners_first=True)) == pytest.approx(1 / LEARNING, rel=0.03)


def test_other_load_takes_its_part():
    shared = replace(IDEAL, cores=2)
    half_a_core_less = rate(4, 2, resources=replace(shared, background_cores=0.5))

    assert half_a_core_less == pytest.approx(0.75 * rate(4, 2, resources=shared), rel=0.05)


def test_what_limits_is_named():
    fast_learner = replace(TIMES, training=Curve.of([(1024, 1e-6)]))

    assert predict(TIMES, JOB, layout(8), IDEAL).limited_by == "learner"
    assert predict(fast_learner, JOB, layout(1), IDEAL).limited_by == "inference"
    assert predict(fast_learner, JOB, layout(64, rows=128), IDEAL).limited_by == "pacing"
    few = replace(IDEAL, coordinator_fragments_per_second=1.0)
    assert predict(TIMES, JOB, layout(8), few).limited_by == "coordinator"
    assert predict(TIMES, JOB, layout(8), few).fragments_per_second == pytest.approx(1.0)
    narrow = replace(IDEAL, network_bytes_per_second=1e5)
    assert predict(TIMES, JOB, layout(8), narrow).limited_by == "network"


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(ConfigError, match="3 learner replica"):
        predict(TIMES, JOB, layout(2, 3), IDEAL)
    with pytest.raises(ConfigError, match="cannot be shared by 7"):
        best_layout(TIMES, JOB, IDEAL, replicas=7)


@pytest.mark.parametrize("cores", [1, 2, 4, 16])
def test_the_best_layout_fits_the_batch_and_is_as_fast_as_any_of_its_kind(cores: int):
    shared = replace(IDEAL, cores=cores)

    best = best_layout(TIMES, JOB, shared)

    assert JOB.batch_steps % (best.fragment_steps * best.replicas) == 0
    assert JOB.minibatch_steps % (best.replicas * JOB.horizon) == 0
    assert best.fragment_steps == best.rows * JOB.horizon
    assert best.rows % JOB.agents_per_env == 0
    assert best.processes <= cores + 1
    found = predict(TIMES, JOB, best, shared).agent_steps_per_second
    for workers in range(1, cores + 1):
        assert found >= 0.969 * rate(workers, 1, resources=shared)


def test_fewer_processes_are_preferred_where_more_gain_nothing():
    fast = replace(TIMES, environment=Curve.of([(64, 1e-6)]), inference=Curve.of([(64, 1e-6)]))

    assert best_layout(fast, JOB, replace(IDEAL, cores=8), replicas=1).workers == 1


def test_what_is_given_stays():
    best = best_layout(TIMES, JOB, replace(IDEAL, cores=4), workers=3, replicas=1, rows=32)

    assert best == Layout(3, 1, 32, 32 * 64)


def test_the_next_lever_is_what_it_says():
    fast_learner = replace(TIMES, training=Curve.of([(1024, 1e-6)]))

    lever = next_lever(fast_learner, JOB, layout(2), IDEAL)

    assert lever is not None
    assert lever.text == "+1 rollout worker: about +50 %"
    assert lever.gain == pytest.approx(0.5, abs=0.03)


def test_where_nothing_helps_there_is_no_lever():
    few = replace(IDEAL, coordinator_fragments_per_second=0.1)
    whole = replace(JOB, minibatch_steps=16_384)

    assert next_lever(TIMES, whole, layout(2, rows=128), few) is None
