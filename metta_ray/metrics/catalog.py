"""Every metric once: its name, kind, unit, labels and meaning.

Code refers to the constants below; boards, rules, the reference (dashboards/METRICS.md) and the tests that hold them
together read ``METRICS``. Names follow Prometheus: ``metta_<area>_<what>_<unit>``. Counters are declared without
``_total``, which every exporter adds; Ray puts ``ray_`` before all of them.

Labels are bounded: each has the values listed here, and what is not among them is exported as ``other``. Where names
are only known when a run begins (losses, suites), at most ``MAX_VALUES`` of them are told apart. There is no
worker id: what a single worker does is in ``metta-ray status``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
Labels = Mapping[str, tuple[str, ...]]

RAY_PREFIX = "ray_"
COMMON_LABELS = ("run", "role")
"""Of every metric. role: which kind of process exports it."""
ROLES = ("coordinator", "learner", "rollout", "trainer")
"""trainer: a training without Ray, all in one process."""
MAX_VALUES = 32
OTHER = "other"
ANY: tuple[str, ...] = ()
"""Values that are known when a run begins."""

SECONDS_BUCKETS = (0.001, 0.0025, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0, 120.0)
STALENESS_BUCKETS = (0.5, 1.5, 2.5, 3.5, 4.5, 8.5, 16.5)
"""Between the whole numbers, so that a bucket's border is never a value (and Ray takes no border at 0)."""

# As control/ has them, which is a neighbour that nothing here may import; a test compares.
RUN_STATES = ("starting", "waiting", "running", "paused", "draining", "evaluating", "done", "failed", "stopped")
CAUSES = ("crash", "preempted", "out_of_memory", "environment", "hang", "node_lost", "drained")
DROP_REASONS = ("foreign", "invalid", "stale", "surplus", "stopped", "masked")
LOSS_REASONS = (*CAUSES, "data_lost", "rolled_back", "restart")


@dataclass(frozen=True)
class Metric:
    """labels: beside run and role, name → possible values. needs: without what there is no such series."""

    name: str
    kind: Kind
    unit: str
    meaning: str
    labels: Labels = field(default_factory=dict)
    buckets: tuple[float, ...] = ()
    needs: str = ""

    @property
    def exported(self) -> str:
        """Its name in Prometheus, without Ray's prefix; of a histogram, what its series' names begin with."""
        return f"{self.name}_total" if self.kind == "counter" else self.name

    @property
    def series(self) -> tuple[str, ...]:
        """Names of all its series in Prometheus, without Ray's prefix."""
        endings = ("_bucket", "_sum", "_count") if self.kind == "histogram" else ("",)
        return tuple(self.exported + ending for ending in endings)


METRICS: dict[str, Metric] = {}


def _declared(metric: Metric) -> Metric:
    assert metric.name not in METRICS, metric.name
    METRICS[metric.name] = metric
    return metric


def _counter(name: str, unit: str, meaning: str, labels: Labels | None = None, needs: str = "") -> Metric:
    return _declared(Metric(name, "counter", unit, meaning, labels or {}, needs=needs))


def _gauge(name: str, unit: str, meaning: str, labels: Labels | None = None, needs: str = "") -> Metric:
    return _declared(Metric(name, "gauge", unit, meaning, labels or {}, needs=needs))


def _histogram(name: str, unit: str, meaning: str, buckets: tuple[float, ...], needs: str = "") -> Metric:
    return _declared(Metric(name, "histogram", unit, meaning, {}, buckets, needs))


# The run.

RUN_STATE = _gauge(
    "metta_run_state",
    "0 or 1",
    "1 for the state that the run is in, 0 for the others",
    {"state": RUN_STATES},
)
RUN_START_TIME = _gauge("metta_run_start_time_seconds", "s", "when this start of the run began, in seconds since 1970")
RUN_GENERATION = _gauge("metta_run_generation", "starts", "number of coordinator starts in the life of the run")

# Agent steps.

STEPS_TRAINED = _counter("metta_agent_steps_trained", "agent steps", "trained since the coordinator began")
STEPS_ISSUED = _counter("metta_agent_steps_issued", "agent steps", "ordered from rollout workers")
STEPS_DROPPED = _counter(
    "metta_agent_steps_dropped",
    "agent steps",
    "collected and not trained on, by reason: too stale, invalid numbers, of a stranger, beyond the end of the run, "
    "stopped, masked",
    {"reason": DROP_REASONS},
)
STEPS_LOST = _counter(
    "metta_agent_steps_lost",
    "agent steps",
    "ordered and never delivered, or gone again, by reason: why their worker ended, data_lost with a node, "
    "rolled_back to a checkpoint, restart of the run",
    {"reason": LOSS_REASONS},
)
STEPS_OPEN = _gauge(
    "metta_agent_steps_open",
    "agent steps",
    "ordered and not yet ended: in flight at workers, or queued for (and in) training",
    {"state": ("in_flight", "queued")},
)
PROGRESS_STEPS = _gauge("metta_progress_agent_steps", "agent steps", "trained in the life of the run")
PROGRESS_TARGET = _gauge("metta_progress_target_agent_steps", "agent steps", "where the run ends")
LEDGER_IMBALANCE = _gauge(
    "metta_ledger_imbalance_agent_steps",
    "agent steps",
    "issued minus everything it went into; anything but 0 means that steps were counted twice or not at all",
)
THROUGHPUT = _gauge(
    "metta_throughput_agent_steps_per_second", "agent steps/s", "of the last update: trained agent steps per second"
)
EFFICIENCY = _gauge(
    "metta_efficiency_ratio",
    "ratio",
    "throughput as a share of what the cores in use could do with perfect overlap",
    needs="measured speed of the machine",
)

# Learning.

REWARD = _gauge("metta_episode_reward", "reward", "mean return per agent of the latest episodes")
EPISODE_SCORE = _gauge(
    "metta_episode_score",
    "score",
    "mean task score of episodes that ended in the update: 0 to 1; without tasks, the return",
)
EPISODE_LENGTH = _gauge("metta_episode_length_env_steps", "env steps", "mean length of episodes that ended")
LOSS = _gauge(
    "metta_loss",
    "1",
    "means over the minibatches of the last update, under their usual names: policy_loss, value_loss, entropy, "
    "approx_kl, clipfrac, importance, explained_variance and others",
    {"loss": ANY},
)
HYPERPARAMETER = _gauge(
    "metta_hyperparameter", "1", "as the schedules set it for the last update", {"hyperparameter": ANY}
)
POLICY_VERSION = _gauge("metta_policy_version", "updates", "version of the newest weights = committed updates")
UPDATES_SKIPPED = _counter("metta_updates_skipped", "gradient steps", "left out because a number was not finite")
STALENESS = _histogram(
    "metta_staleness_versions",
    "versions",
    "of each fragment trained on: learner's policy version minus the one that collected it",
    STALENESS_BUCKETS,
)
STALENESS_MAX = _gauge("metta_staleness_max_versions", "versions", "of the oldest fragment of the last update")
STALENESS_BOUND = _gauge("metta_staleness_bound_versions", "versions", "pacing.max_staleness: older ones are dropped")

# Where the time goes.

TIME_SHARE = _gauge(
    "metta_time_share_ratio",
    "ratio",
    "share of the time of rollout workers (part=worker), of learners (part=learner), or of a training without Ray "
    "(part=trainer) that went into an activity, over the last updates",
    {
        "part": ("worker", "learner", "trainer"),
        "activity": ("environments", "inference", "transport", "training", "staging", "waiting", OTHER),
    },
)
BOTTLENECK = _gauge(
    "metta_bottleneck_state",
    "0 or 1",
    "1 for what limits the training now, 0 for the others",
    {"part": ("environments", "inference", "transport", "learner")},
)
EPOCH_SECONDS = _histogram("metta_epoch_seconds", "s", "from one commit to the next", SECONDS_BUCKETS)
UPDATE_SECONDS = _histogram("metta_update_seconds", "s", "from an update's order to its answer", SECONDS_BUCKETS)
QUEUE_AGE = _gauge("metta_queue_age_updates", "updates", "how many updates fragments waited, mean over the last batch")

# Weights.

PUBLISH_SECONDS = _histogram(
    "metta_weights_publish_seconds",
    "s",
    "packing weights and optimiser state after an update, by the leading learner",
    SECONDS_BUCKETS,
)
PUBLISH_BYTES = _gauge("metta_weights_publish_bytes", "bytes", "weights that are handed out after each update")

# Memory.

FRAGMENT_BYTES = _gauge("metta_fragments_outstanding_bytes", "bytes", "fragments stored or on their way")
FRAGMENT_BUDGET = _gauge("metta_fragments_budget_bytes", "bytes", "what fragments may take; nothing more is ordered")
RESIDENT_BYTES = _gauge(
    "metta_process_resident_bytes", "bytes", "resident memory of all processes of a kind together", {"of": ROLES}
)
CPU_SECONDS = _counter("metta_process_cpu_seconds", "s", "processor time of the exporting process")
DEVICE_BYTES = _gauge(
    "metta_device_memory_bytes",
    "bytes",
    "GPU memory of a learner: allocated to tensors, and reserved from the device",
    {"state": ("allocated", "reserved")},
    needs="GPU",
)
DEVICE_UTILISATION = _gauge(
    "metta_device_utilisation_ratio", "ratio", "share of time in which a learner's GPU computed", needs="GPU"
)

# Processes.

WORKERS = _gauge(
    "metta_workers",
    "workers",
    "rollout workers: wanted, ready, starting, draining; useful: more than these would have nothing to do",
    {"state": ("wanted", "ready", "starting", "draining", "useful")},
)
WORKERS_STARTED = _counter("metta_workers_started", "workers", "rollout workers created, replacements included")
WORKER_FAILURES = _counter(
    "metta_worker_failures",
    "failures",
    "rollout workers that ended without being asked to, by cause",
    {"cause": CAUSES},
)
RESTARTS = _counter(
    "metta_restarts",
    "restarts",
    "processes put in the place of lost ones: rollout workers, learner groups formed anew, coordinators",
    {"of": ("rollout", "learner", "coordinator")},
)
UPDATES_REPEATED = _counter("metta_updates_repeated", "updates", "begun again because a learner replica was lost")
REPLICAS = _gauge(
    "metta_learner_replicas",
    "replicas",
    "learner replicas: wanted, in the group, joining it",
    {"state": ("wanted", "member", "joining")},
)

# Curriculum and evaluation.

CURRICULUM_TASKS = _gauge("metta_curriculum_tasks", "tasks", "tasks that episodes are drawn from")
CURRICULUM_ENTROPY = _gauge(
    "metta_curriculum_entropy_ratio",
    "ratio",
    "entropy of the task probabilities over that of a uniform choice: 1 all alike, 0 a single task",
)
CURRICULUM_COVERAGE = _gauge(
    "metta_curriculum_coverage_ratio",
    "ratio",
    "share of the tasks of which an episode has ended since this start",
)
EVALUATION_SCORE = _gauge(
    "metta_evaluation_score",
    "score",
    "score of the newest evaluated policy, by suite",
    {"suite": ANY},
    needs="an evaluation",
)
EVALUATION_VERSION = _gauge(
    "metta_evaluation_policy_version", "updates", "policy version that was evaluated last", needs="an evaluation"
)
EVALUATOR_FAILURES = _counter(
    "metta_evaluator_failures", "failures", "evaluators that ended without being asked to, by cause", {"cause": CAUSES}
)

# Checkpoints and the state store.

CHECKPOINT_TIME = _gauge(
    "metta_checkpoint_time_seconds", "s", "when the newest checkpoint was finished, in seconds since 1970"
)
CHECKPOINT_SECONDS = _gauge("metta_checkpoint_write_seconds", "s", "how long writing the newest checkpoint took")
CHECKPOINT_BYTES = _gauge("metta_checkpoint_size_bytes", "bytes", "size of the newest checkpoint")
CHECKPOINT_FAILURES = _counter("metta_checkpoint_failures", "failures", "checkpoints that could not be written")
UPLOAD_BEHIND = _gauge(
    "metta_upload_behind_seconds",
    "s",
    "how long the oldest checkpoint or policy that is not in the object store has been waiting; 0: all are there",
    needs="an object store",
)
UPLOAD_SECONDS = _gauge(
    "metta_upload_seconds",
    "s",
    "how long the newest upload took, with all that had changed",
    needs="an object store",
)
UPLOAD_FAILURES = _counter("metta_upload_failures", "failures", "uploads that the object store did not take")
STORE_SECONDS = _histogram("metta_state_store_call_seconds", "s", "one call of the state store", SECONDS_BUCKETS)
STORE_ERRORS = _counter("metta_state_store_errors", "calls", "calls of the state store that failed")
METRICS_CPU = _counter("metta_metrics_cpu_seconds", "s", "processor time that exporting all this took")


@dataclass(frozen=True)
class ForeignMetric:
    """A metric of Ray's own that boards and rules use. name: as it is in Prometheus."""

    name: str
    unit: str
    meaning: str
    needs: str = ""


FOREIGN: dict[str, ForeignMetric] = {
    metric.name: metric
    for metric in (
        ForeignMetric(
            "ray_object_store_memory", "bytes", "object store by Location: shared memory, spilled to disk and others"
        ),
        ForeignMetric("ray_resources", "units", "resources of the cluster by Name and State (USED, AVAILABLE)"),
        ForeignMetric("ray_node_gpus_utilization", "percent", "utilisation of each GPU", needs="GPU"),
        ForeignMetric("ray_node_gram_used", "MB", "memory in use of each GPU", needs="GPU"),
    )
}
