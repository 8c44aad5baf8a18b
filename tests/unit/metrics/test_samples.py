"""From records and statuses to samples, and from samples to what Prometheus reads."""

from __future__ import annotations

import math
import urllib.request

import pytest

from metta_ray.common.errors import ConfigError
from metta_ray.metrics import catalog, samples
from metta_ray.metrics.prometheus_exporter import PrometheusSink, PrometheusTracker
from metta_ray.metrics.sink import Sample

STATUS = {
    "state": "running",
    "agent_step": 4096,
    "total_timesteps": 10_000,
    "policy_version": 2,
    "generation": 1,
    "workers": {
        "wanted": 3,
        "ready": 2,
        "starting": 1,
        "draining": 0,
        "useful": 8,
        "started": 4,
        "list": [{"rss_bytes": 100}, {"rss_bytes": None}, {"rss_bytes": 50}],
    },
    "learners": [{"state": "training"}, {"state": "joining"}],
    "failures": {"crash": 1, "learner": 2, "repeated_updates": 1},
    "ledger": {
        "trained": 4096,
        "issued": 8192,
        "in_flight": 2048,
        "queued": 1024,
        "imbalance": 0,
        "dropped": {"stale": 512},
        "lost": {"crash": 512},
    },
    "bytes_outstanding": 1000,
    "byte_budget": 5000,
    "checkpoint": {"age_s": 10.0, "all_failures": 1, "write_seconds": 0.5, "size_bytes": 99},
}


def values(sampled: object) -> dict[tuple[str, ...], float]:
    return {(s.metric.name, *s.labels.values()): s.value for s in sampled}  # type: ignore[attr-defined]


def page_of(sink: PrometheusSink) -> dict[str, float]:
    """Series in the text format → value, with the labels that are not common."""
    found = {}
    for family in sink.registry.collect():
        for sample in family.samples:
            labels = [value for name, value in sample.labels.items() if name not in catalog.COMMON_LABELS]
            found[" ".join([sample.name, *labels])] = sample.value
    return found


def test_a_status_says_where_every_agent_step_is_and_who_failed() -> None:
    found = values(samples.of_status(STATUS, now=1000.0))

    assert found["metta_agent_steps_trained",] == 4096
    assert found["metta_agent_steps_dropped", "stale"] == 512
    assert found["metta_agent_steps_lost", "crash"] == 512
    assert found["metta_agent_steps_open", "in_flight"] == 2048
    assert found["metta_run_state", "running"] == 1
    assert found["metta_run_state", "failed"] == 0
    assert found["metta_workers", "wanted"] == 3
    assert found["metta_worker_failures", "crash"] == 1
    assert found["metta_worker_failures", "hang"] == 0
    assert found["metta_restarts", "learner"] == 2
    assert found["metta_learner_replicas", "member"] == 1
    assert found["metta_learner_replicas", "joining"] == 1
    assert found["metta_process_resident_bytes", "rollout"] == 150
    assert found["metta_checkpoint_time_seconds",] == 990.0


def test_a_run_in_an_object_store_says_how_far_it_is_behind() -> None:
    upload = {"behind_s": 7.5, "seconds": 0.25, "all_failures": 3}

    found = values(samples.of_status({**STATUS, "upload": upload}, now=1000.0))

    names = ("metta_upload_behind_seconds", "metta_upload_seconds", "metta_upload_failures")
    assert [found[name,] for name in names] == [7.5, 0.25, 3]
    assert not any(name.startswith("metta_upload") for name, *_ in values(samples.of_status(STATUS, now=1000.0)))


def test_before_anything_is_there_a_status_says_little() -> None:
    early = {name: STATUS[name] for name in ("state", "agent_step", "total_timesteps", "workers")}

    assert {name for name, *_ in values(samples.of_status(early, 0.0))} == {
        *("metta_run_state", "metta_progress_agent_steps", "metta_progress_target_agent_steps", "metta_workers")
    }


def test_the_newest_evaluation_of_each_suite_counts() -> None:
    row = {"suite": "navigation", "state": "done", "version": 3, "score": 0.25}
    rows = [row, {**row, "version": 9, "score": 0.5}, {**row, "version": 12, "state": "running", "score": None}]
    evaluations = {"list": [*rows, {**row, "suite": "arena"}], "failures": {"crash": 2}}
    found = values(samples.of_status(STATUS | {"evaluations": evaluations}, 0.0))

    assert found["metta_evaluation_score", "navigation"] == 0.5
    assert found["metta_evaluation_score", "arena"] == 0.25
    assert found["metta_evaluation_policy_version",] == 9
    assert found["metta_evaluator_failures", "crash"] == 2
    assert found["metta_evaluator_failures", "hang"] == 0


def test_a_record_of_an_update() -> None:
    record = {
        "epoch": 7,
        "agent_steps_per_second": 1000.0,
        "efficiency": None,
        "reward": math.nan,
        "losses": {"entropy": 0.5},
        "shares": {"environments": 0.4, "no_ticket": 0.6, "training": 1.0},
        "limited_by": "learner",
        "staleness": {"max": 2, "histogram": {"1": 3, "2": 1}},
        "metrics": {"env_episode/score": 0.25, "env_task_completions/a/b": 1},
    }
    sampled = list(samples.of_epoch(record))
    found = values(sampled)

    assert found["metta_throughput_agent_steps_per_second",] == 1000.0
    assert ("metta_efficiency_ratio",) not in found
    assert ("metta_episode_reward",) not in found, "not a number is no number"
    assert found["metta_loss", "entropy"] == 0.5
    assert found["metta_time_share_ratio", "worker", "waiting"] == 0.6
    assert found["metta_time_share_ratio", "learner", "training"] == 1.0
    assert found["metta_bottleneck_state", "learner"] == 1
    assert found["metta_bottleneck_state", "environments"] == 0
    assert [s.value for s in sampled if s.metric is catalog.STALENESS] == [1.0, 1.0, 1.0, 2.0]
    assert samples.tasks_in(record) == {"a/b"}


@pytest.mark.parametrize(
    ("probabilities", "entropy"), [([0.25] * 4, 1.0), ([1.0, 0.0, 0.0, 0.0], 0.0), ([0.5, 0.5, 0.0, 0.0], 0.5)]
)
def test_entropy_of_a_curriculum_is_a_share_of_the_uniform_one(probabilities: list[float], entropy: float) -> None:
    found = values(samples.of_curriculum(probabilities, num_seen=1))

    assert found["metta_curriculum_entropy_ratio",] == pytest.approx(entropy)
    assert found["metta_curriculum_coverage_ratio",] == 0.25
    assert found["metta_curriculum_tasks",] == 4


def test_counters_begin_at_zero_for_every_value_and_grow_by_differences() -> None:
    sink = PrometheusSink("a", "coordinator")
    sink.declare_counters([catalog.WORKER_FAILURES])
    assert page_of(sink)["metta_worker_failures_total hang"] == 0

    for total in (2, 2, 5, 1, 2):  # 1: the books went back to a checkpoint
        sink.put([Sample(catalog.WORKER_FAILURES, total, {"cause": "crash"})])

    assert page_of(sink)["metta_worker_failures_total crash"] == 6


def test_what_was_counted_before_is_not_counted_again() -> None:
    sink = PrometheusSink("a", "coordinator")
    sink.start_from([Sample(catalog.STEPS_TRAINED, 1000), Sample(catalog.POLICY_VERSION, 4)])
    sink.put([Sample(catalog.STEPS_TRAINED, 1500)])

    assert page_of(sink)["metta_agent_steps_trained_total"] == 500


def test_labels_beyond_what_is_declared_become_other() -> None:
    sink = PrometheusSink("a", "coordinator")
    sink.put([Sample(catalog.STEPS_LOST, 64, {"reason": "something new"})])
    sink.put([Sample(catalog.LOSS, 1.0, {"loss": f"loss{n}"}) for n in range(100)])
    found = page_of(sink)

    assert found["metta_agent_steps_lost_total other"] == 64
    assert sum(name.startswith("metta_loss ") for name in found) == catalog.MAX_VALUES + 1


def test_a_training_without_ray_serves_its_numbers() -> None:
    told: list[str] = []
    tracker = PrometheusTracker("alone", 1000, 0, told.append)
    try:
        line = {"agent_steps_per_second": 50.0, "share/environment": 0.5, "share/other": 0.1, "losses/entropy": 0.7}
        tracker.log(1, 100, line)
        tracker.log(2, 250, {**line, "env_episode/return": 3.0})
        [text] = told
        page = urllib.request.urlopen(text.removeprefix("metrics: "), timeout=10).read().decode()
    finally:
        tracker.close()

    assert 'metta_agent_steps_trained_total{role="trainer",run="alone"} 150.0' in page
    assert 'metta_progress_agent_steps{role="trainer",run="alone"} 250.0' in page
    assert 'metta_episode_reward{role="trainer",run="alone"} 3.0' in page
    assert 'metta_time_share_ratio{activity="environments",part="trainer",role="trainer",run="alone"} 0.5' in page
    assert 'metta_loss{loss="entropy",role="trainer",run="alone"} 0.7' in page


def test_a_port_that_is_taken_is_refused() -> None:
    first = PrometheusTracker("a", 1000, 0, lambda text: None)
    try:
        with pytest.raises(ConfigError, match=f"metrics_port={first.port}: .*in use.*; 0 takes a free one"):
            PrometheusTracker("b", 1000, first.port, lambda text: None)
    finally:
        first.close()
