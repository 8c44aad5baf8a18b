"""From what a training knows to samples: pure functions over plain values, the same for service and library."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from metta_ray.metrics import catalog
from metta_ray.metrics.catalog import Metric
from metta_ray.metrics.sink import Sample

_GAUGES_OF_EPOCH = {
    "agent_steps_per_second": catalog.THROUGHPUT,
    "efficiency": catalog.EFFICIENCY,
    "reward": catalog.REWARD,
    "epoch": catalog.POLICY_VERSION,
    "queue_age": catalog.QUEUE_AGE,
}
_GAUGES_OF_EPISODES = {"env_episode/score": catalog.EPISODE_SCORE, "env_episode/length": catalog.EPISODE_LENGTH}
_SECONDS_OF_EPOCH = {"epoch_seconds": catalog.EPOCH_SECONDS, "update_seconds": catalog.UPDATE_SECONDS}
_PARTS = {
    "environments": ("worker", "environments"),
    "inference": ("worker", "inference"),
    "transport": ("worker", "transport"),
    "no_ticket": ("worker", "waiting"),
    "training": ("learner", "training"),
    "staging": ("learner", "staging"),
    "no_data": ("learner", "waiting"),
}
_TASKS = "env_task_completions/"


def of_epoch(record: Mapping[str, Any]) -> Iterator[Sample]:
    """Of the record of one update. What a kind of training does not know is left out."""
    for name, metric in (_GAUGES_OF_EPOCH | _SECONDS_OF_EPOCH).items():
        yield from _known(metric, record.get(name))
    metrics = record.get("metrics", {})
    for name, metric in _GAUGES_OF_EPISODES.items():
        yield from _known(metric, metrics.get(name))
    for name, value in record.get("losses", {}).items():
        yield from _known(catalog.LOSS, value, loss=name)
    for name, value in record.get("hyperparameters", {}).items():
        yield from _known(catalog.HYPERPARAMETER, value, hyperparameter=name)
    for name, share in record.get("shares", {}).items():
        part, activity = _PARTS[name]
        yield Sample(catalog.TIME_SHARE, share, {"part": part, "activity": activity})
    yield from _known(catalog.UPDATES_SKIPPED, record.get("skipped_updates"))
    if record.get("limited_by"):
        yield from _one_of(catalog.BOTTLENECK, "part", record["limited_by"])
    staleness = record.get("staleness")
    if staleness:
        yield Sample(catalog.STALENESS_MAX, staleness["max"])
        for versions, count in staleness["histogram"].items():
            yield from [Sample(catalog.STALENESS, float(versions))] * count


def of_status(status: Mapping[str, Any], now: float) -> Iterator[Sample]:
    """Of a run's status, as ``metta-ray status --json`` shows it. now: seconds since 1970."""
    yield from _one_of(catalog.RUN_STATE, "state", status["state"])
    yield Sample(catalog.PROGRESS_STEPS, status["agent_step"])
    yield Sample(catalog.PROGRESS_TARGET, status["total_timesteps"])
    for state in catalog.WORKERS.labels["state"]:
        yield Sample(catalog.WORKERS, status["workers"][state], {"state": state})
    if "ledger" not in status:
        return  # nothing is there yet
    yield Sample(catalog.RUN_GENERATION, status["generation"])
    yield Sample(catalog.POLICY_VERSION, status["policy_version"])
    yield from _of_ledger(status["ledger"])
    yield from _of_processes(status)
    yield Sample(catalog.FRAGMENT_BYTES, status["bytes_outstanding"])
    yield Sample(catalog.FRAGMENT_BUDGET, status["byte_budget"])
    yield from _of_checkpoint(status["checkpoint"], now)
    yield from _of_upload(status.get("upload", {}))
    evaluations = status.get("evaluations", {})
    yield from _of_evaluations(evaluations.get("list", ()))
    yield from _of_evaluators(evaluations.get("failures", {}))


def of_curriculum(probabilities: Sequence[float], num_seen: int) -> Iterator[Sample]:
    """probabilities: of the tasks. num_seen: of how many an episode has ended."""
    count = len(probabilities)
    entropy = -sum(p * math.log(p) for p in probabilities if p > 0)
    yield Sample(catalog.CURRICULUM_TASKS, count)
    yield Sample(catalog.CURRICULUM_ENTROPY, entropy / math.log(count) if count > 1 else 0.0)
    yield Sample(catalog.CURRICULUM_COVERAGE, min(1.0, num_seen / max(1, count)))


def tasks_in(record: Mapping[str, Any]) -> set[str]:
    """Ids of the tasks of which an episode ended in the update."""
    return {name.removeprefix(_TASKS) for name in record.get("metrics", {}) if name.startswith(_TASKS)}


def _of_ledger(ledger: Mapping[str, Any]) -> Iterator[Sample]:
    yield Sample(catalog.STEPS_TRAINED, ledger["trained"])
    yield Sample(catalog.STEPS_ISSUED, ledger["issued"])
    for metric, account in ((catalog.STEPS_DROPPED, "dropped"), (catalog.STEPS_LOST, "lost")):
        for reason, steps in ledger[account].items():
            yield Sample(metric, steps, {"reason": reason})
    for state in catalog.STEPS_OPEN.labels["state"]:
        yield Sample(catalog.STEPS_OPEN, ledger[state], {"state": state})
    yield Sample(catalog.LEDGER_IMBALANCE, ledger["imbalance"])


def _of_processes(status: Mapping[str, Any]) -> Iterator[Sample]:
    failures, workers, learners = status["failures"], status["workers"], status["learners"]
    by_cause = {cause: failures.get(cause, 0) for cause in catalog.CAUSES}
    for cause, count in by_cause.items():
        yield Sample(catalog.WORKER_FAILURES, count, {"cause": cause})
    yield Sample(catalog.RESTARTS, sum(by_cause.values()), {"of": "rollout"})
    yield Sample(catalog.RESTARTS, failures["learner"], {"of": "learner"})
    yield Sample(catalog.UPDATES_REPEATED, failures["repeated_updates"])
    yield Sample(catalog.WORKERS_STARTED, workers["started"])
    joining = sum(replica["state"] == "joining" for replica in learners)
    yield Sample(catalog.REPLICAS, len(learners) - joining, {"state": "member"})
    yield Sample(catalog.REPLICAS, joining, {"state": "joining"})
    resident = sum(worker["rss_bytes"] or 0 for worker in workers["list"])
    yield Sample(catalog.RESIDENT_BYTES, resident, {"of": "rollout"})


def _of_checkpoint(checkpoint: Mapping[str, Any], now: float) -> Iterator[Sample]:
    yield Sample(catalog.CHECKPOINT_FAILURES, checkpoint["all_failures"])
    if checkpoint["age_s"] is not None:
        yield Sample(catalog.CHECKPOINT_TIME, now - checkpoint["age_s"])
        yield from _known(catalog.CHECKPOINT_SECONDS, checkpoint["write_seconds"])
        yield from _known(catalog.CHECKPOINT_BYTES, checkpoint["size_bytes"])


def _of_upload(upload: Mapping[str, Any]) -> Iterator[Sample]:
    """Nothing for a run that is kept in a directory."""
    if upload:
        yield Sample(catalog.UPLOAD_BEHIND, upload["behind_s"])
        yield from _known(catalog.UPLOAD_SECONDS, upload["seconds"])
        yield Sample(catalog.UPLOAD_FAILURES, upload["all_failures"])


def _of_evaluators(failures: Mapping[str, int]) -> Iterator[Sample]:
    for cause in catalog.CAUSES:
        yield Sample(catalog.EVALUATOR_FAILURES, failures.get(cause, 0), {"cause": cause})


def _of_evaluations(evaluations: Sequence[Mapping[str, Any]]) -> Iterator[Sample]:
    """Of each suite the newest policy that was played."""
    newest: dict[str, Mapping[str, Any]] = {}
    for one in evaluations:
        if one["state"] == "done" and one["version"] >= newest.get(one["suite"], one)["version"]:
            newest[one["suite"]] = one
    for suite, one in newest.items():
        yield from _known(catalog.EVALUATION_SCORE, one["score"], suite=suite)
    if newest:
        yield Sample(catalog.EVALUATION_VERSION, max(one["version"] for one in newest.values()))


def _one_of(metric: Metric, label: str, value: str) -> Iterator[Sample]:
    """1 for the value, 0 for the others."""
    for possible in metric.labels[label]:
        yield Sample(metric, float(possible == value), {label: possible})


def _known(metric: Metric, value: float | None, **labels: str) -> Iterator[Sample]:
    if value is not None and math.isfinite(value):
        yield Sample(metric, value, labels)
