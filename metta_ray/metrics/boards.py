"""The Grafana boards: what each panel shows and asks, and the JSON of dashboards/grafana made from it.

    python -m metta_ray.metrics.boards            # writes the files anew after a change here

Queries take a metric with and without Ray's prefix. Gauges are folded by ``max``, since a restarted process goes on as
another series while the old one fades; what counters counted is summed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from metta_ray.metrics import catalog
from metta_ray.metrics.catalog import METRICS, RAY_PREFIX, Metric

FOLDER = "metta_ray"
TAG = "metta_ray"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, HEIGHT = 24, 8
STEPS_PER_SECOND, STEPS = "suffix: agent steps/s", "suffix: agent steps"
_SCOPE = 'cluster=~"$cluster",run=~"$run"'

PanelKind = Literal["timeseries", "stat", "state-timeline", "heatmap"]


@dataclass(frozen=True)
class Query:
    """legend: with Grafana's {{label}}."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """unit: Grafana's name of it. needs: without what the panel is empty, beside what its metrics need."""

    title: str
    unit: str
    queries: tuple[Query, ...]
    description: str
    kind: PanelKind = "timeseries"
    width: int = 8
    is_stacked: bool = False
    needs: str = ""


@dataclass(frozen=True)
class Board:
    name: str
    title: str
    description: str
    panels: tuple[Panel, ...]


def selector(metric: Metric, ending: str = "", **labels: str) -> str:
    """All series of a metric within the board's choice of clusters and runs."""
    chosen = "".join(f',{name}="{value}"' for name, value in labels.items())
    return f'{{__name__=~"({RAY_PREFIX})?{metric.exported}{ending}",{_SCOPE}{chosen}}}'


def newest(metric: Metric, *by: str, **labels: str) -> str:
    """A gauge."""
    return f"max by ({', '.join(('run', *by))}) ({selector(metric, **labels)})"


def counted(metric: Metric, *by: str, **labels: str) -> str:
    """A counter, as it stands."""
    return f"sum by ({', '.join(('run', *by))}) ({selector(metric, **labels)})"


def rate(metric: Metric, *by: str, ending: str = "", **labels: str) -> str:
    """A counter, or a part of a histogram, per second."""
    return f"sum by ({', '.join(('run', *by))}) (rate({selector(metric, ending, **labels)}[$__rate_interval]))"


def quantile(share: float, metric: Metric) -> str:
    return f"histogram_quantile({share}, {rate(metric, 'le', ending='_bucket')})"


def mean(metric: Metric) -> str:
    return f"{rate(metric, ending='_sum')} / {rate(metric, ending='_count')}"


def _gauges(metric: Metric, label: str) -> tuple[Query, ...]:
    return (Query(newest(metric, label), f"{{{{run}}}} {{{{{label}}}}}"),)


def _by_run(expr: str, what: str = "") -> tuple[Query, ...]:
    return (Query(expr, f"{{{{run}}}} {what}".strip()),)


def _durations(metric: Metric) -> tuple[Query, ...]:
    return (
        Query(quantile(0.5, metric), "{{run}} median"),
        Query(quantile(0.95, metric), "{{run}} 95 %"),
        Query(mean(metric), "{{run}} mean"),
    )


def _loss(name: str, title: str, meaning: str) -> Panel:
    return Panel(title, "short", _by_run(newest(catalog.LOSS, loss=name)), meaning)


_STATE = Panel(
    "State",
    "none",
    (Query(f"{newest(catalog.RUN_STATE, 'state')} == 1", "{{run}} {{state}}"),),
    "What the run is doing; waiting means for resources of the cluster.",
    "state-timeline",
)
_LIMITED_BY = Panel(
    "Limited by",
    "none",
    (Query(f"{newest(catalog.BOTTLENECK, 'part')} == 1", "{{run}} {{part}}"),),
    "The part that the others wait for. metta-ray status says in words what to change first.",
    "state-timeline",
)
_THROUGHPUT = Panel(
    "Throughput",
    STEPS_PER_SECOND,
    _by_run(newest(catalog.THROUGHPUT)),
    "Trained agent steps per second, of the last update.",
)
_REWARD = Panel(
    "Reward",
    "short",
    _by_run(newest(catalog.REWARD)),
    "Mean return per agent of the latest episodes, exploration included.",
)
_WORKERS = Panel(
    "Rollout workers",
    "short",
    _gauges(catalog.WORKERS, "state"),
    "Wanted is what was asked for (scale, or the automatic number); more than useful would have nothing to do.",
)
_FAILURES = Panel(
    "Failures of rollout workers",
    "short",
    (Query(counted(catalog.WORKER_FAILURES, "cause"), "{{run}} {{cause}}"),),
    "How many ended unasked since the run was started, by cause. Each step is one worker.",
)
_CHECKPOINT_AGE = Panel(
    "Age of the newest checkpoint",
    "s",
    _by_run(f"time() - {newest(catalog.CHECKPOINT_TIME)}"),
    "What would be lost, in time, if all learners were lost at once.",
)
_STALENESS = Panel(
    "Staleness",
    "suffix: versions",
    (
        Query(mean(catalog.STALENESS), "{{run}} mean"),
        Query(newest(catalog.STALENESS_MAX), "{{run}} oldest"),
        Query(newest(catalog.STALENESS_BOUND), "{{run}} bound"),
    ),
    "How many policy versions behind the learner the data is; at the bound, fragments are dropped.",
)

OVERVIEW = Board(
    "overview",
    "metta_ray / Run overview",
    "How a run is doing, at one glance.",
    (
        _STATE,
        Panel(
            "Progress",
            "percentunit",
            _by_run(f"{newest(catalog.PROGRESS_STEPS)} / {newest(catalog.PROGRESS_TARGET)}"),
            "Trained agent steps, of those the run ends with.",
            "stat",
            4,
        ),
        Panel(
            "Time left",
            "s",
            _by_run(
                f"({newest(catalog.PROGRESS_TARGET)} - {newest(catalog.PROGRESS_STEPS)}) / {newest(catalog.THROUGHPUT)}"
            ),
            "At the present throughput.",
            "stat",
            4,
        ),
        _LIMITED_BY,
        _REWARD,
        _THROUGHPUT,
        _WORKERS,
        Panel(
            "Share of the machine's floor",
            "percentunit",
            _by_run(newest(catalog.EFFICIENCY)),
            "Throughput over what the cores in use could do with perfect overlap.",
        ),
        _STALENESS,
        _FAILURES,
        Panel(
            "Entropy of the policy",
            "short",
            _by_run(newest(catalog.LOSS, loss="entropy")),
            "Mean entropy per decision; a fall to 0 early in training means that exploration has ended.",
        ),
        _CHECKPOINT_AGE,
        Panel(
            "Agent steps dropped and lost",
            STEPS_PER_SECOND,
            (
                Query(rate(catalog.STEPS_DROPPED), "{{run}} dropped"),
                Query(rate(catalog.STEPS_LOST), "{{run}} lost"),
            ),
            "Work that was not trained on: refused when it came, or never came.",
        ),
    ),
)

THROUGHPUT = Board(
    "throughput",
    "metta_ray / Throughput and bottleneck",
    "Where the time goes, and what to change first.",
    (
        _THROUGHPUT,
        _LIMITED_BY,
        Panel(
            "Agent steps by where they went",
            STEPS_PER_SECOND,
            (
                Query(rate(catalog.STEPS_ISSUED), "{{run}} issued"),
                Query(rate(catalog.STEPS_TRAINED), "{{run}} trained"),
                Query(rate(catalog.STEPS_DROPPED), "{{run}} dropped"),
                Query(rate(catalog.STEPS_LOST), "{{run}} lost"),
            ),
            "Issued and trained are alike in a healthy run.",
        ),
        Panel(
            "Time of rollout workers",
            "percentunit",
            (Query(newest(catalog.TIME_SHARE, "activity", part="worker"), "{{run}} {{activity}}"),),
            "Waiting here: the learner is the limit, or there are too many workers.",
            is_stacked=True,
        ),
        Panel(
            "Time of learners",
            "percentunit",
            (Query(newest(catalog.TIME_SHARE, "activity", part="learner"), "{{run}} {{activity}}"),),
            "Waiting here: more rollout workers would be of use.",
            is_stacked=True,
        ),
        Panel(
            "Time of a training without Ray",
            "percentunit",
            (Query(newest(catalog.TIME_SHARE, "activity", part="trainer"), "{{run}} {{activity}}"),),
            "run.py takes turns: environments, inference, training.",
            is_stacked=True,
            needs="a run.py with --metrics-port",
        ),
        Panel("From commit to commit", "s", _durations(catalog.EPOCH_SECONDS), "Wall time of one epoch."),
        Panel("Updates", "s", _durations(catalog.UPDATE_SECONDS), "From an update's order to its answer."),
        Panel(
            "Under way",
            STEPS,
            _gauges(catalog.STEPS_OPEN, "state"),
            "Ordered and not yet ended. Bounded by (target_staleness + 1) batches.",
        ),
        Panel(
            "Waiting for a batch",
            "suffix: updates",
            _by_run(newest(catalog.QUEUE_AGE)),
            "How many updates a fragment waited in the queue.",
        ),
        Panel(
            "Fragments against their budget",
            "bytes",
            (
                Query(newest(catalog.FRAGMENT_BYTES), "{{run}} outstanding"),
                Query(newest(catalog.FRAGMENT_BUDGET), "{{run}} budget"),
            ),
            "At the budget nothing more is ordered: so nothing spills.",
        ),
        Panel(
            "Object store",
            "bytes",
            (Query('sum by (Location) (ray_object_store_memory{cluster=~"$cluster"})', "{{Location}}"),),
            "Of the whole cluster, by where objects lie. SPILLED should stay 0.",
        ),
        Panel(
            "Publishing weights",
            "s",
            _durations(catalog.PUBLISH_SECONDS),
            "Packing weights and optimiser state after each update.",
        ),
        Panel(
            "Published weights", "bytes", _by_run(newest(catalog.PUBLISH_BYTES)), "What each node fetches per update."
        ),
        Panel(
            "Resident memory",
            "bytes",
            _gauges(catalog.RESIDENT_BYTES, "of"),
            "All processes of a kind together; a slope that does not end is a leak.",
        ),
        Panel(
            "Processor time",
            "suffix: cores",
            (Query(rate(catalog.CPU_SECONDS, "role"), "{{run}} {{role}}"),),
            "Of coordinator and learners. A coordinator near 1 would be a limit of its own.",
        ),
        Panel(
            "Cost of these metrics",
            "percentunit",
            _by_run(f"{rate(catalog.METRICS_CPU)} / {rate(catalog.CPU_SECONDS)}"),
            "Processor time that exporting takes, of all that coordinator and learners take.",
        ),
        Panel("GPU memory", "bytes", _gauges(catalog.DEVICE_BYTES, "state"), "Of a learner: by tensors, and reserved."),
        Panel(
            "GPU utilisation",
            "percentunit",
            _by_run(newest(catalog.DEVICE_UTILISATION)),
            "Share of time in which a kernel ran on a learner's GPU.",
        ),
    ),
)

LEARNING = Board(
    "learning",
    "metta_ray / Learning",
    "Whether the policy learns, and the numbers by which PPO is judged.",
    (
        _REWARD,
        Panel(
            "Task score",
            "short",
            _by_run(newest(catalog.EPISODE_SCORE)),
            "Mean score of the episodes that ended in an update; what the curriculum learns from.",
        ),
        Panel(
            "Episode length",
            "suffix: env steps",
            _by_run(newest(catalog.EPISODE_LENGTH)),
            "Mean over episodes that ended in an update.",
        ),
        _loss("policy_loss", "Policy loss", "The clipped surrogate; its sign says little, jumps say something."),
        _loss("value_loss", "Value loss", "Half the squared error of the critic."),
        _loss("entropy", "Entropy", "Falls as the policy decides; to 0 early means that exploration has ended."),
        _loss("approx_kl", "Approximate KL", "How far an update moves the policy; above 0.05 steps are too large."),
        _loss("clipfrac", "Clip fraction", "Share of samples at the clip; above 0.3 steps are too large."),
        _loss("explained_variance", "Explained variance", "Of the critic: 1 perfect, 0 as good as a constant."),
        _loss("importance", "Importance ratio", "Mean of new over old probabilities; stays near 1."),
        Panel(
            "Hyperparameters",
            "short",
            _gauges(catalog.HYPERPARAMETER, "hyperparameter"),
            "As schedules and metta-ray set have them now.",
        ),
        Panel(
            "Policy version",
            "suffix: updates",
            _by_run(newest(catalog.POLICY_VERSION)),
            "Committed updates; falls only where a run went back to a checkpoint.",
        ),
        _STALENESS,
        Panel(
            "Staleness of trained fragments",
            "suffix: fragments/s",
            (Query(rate(catalog.STALENESS, "le", ending="_bucket"), "{{le}}"),),
            "How many fragments of which age were trained on.",
            "heatmap",
        ),
        Panel(
            "Skipped gradient steps",
            "short",
            _by_run(counted(catalog.UPDATES_SKIPPED)),
            "Left out because a number was not finite; three updates of them in a row end the run.",
        ),
    ),
)

ELASTICITY = Board(
    "elasticity",
    "metta_ray / Elasticity and failures",
    "Who came and went, why, and what it cost.",
    (
        _STATE,
        _WORKERS,
        _FAILURES,
        Panel(
            "Workers started",
            "short",
            _by_run(counted(catalog.WORKERS_STARTED)),
            "Since the run was started: scale-ups and replacements.",
        ),
        Panel(
            "Restarts",
            "short",
            (Query(counted(catalog.RESTARTS, "of"), "{{run}} {{of}}"),),
            "Processes put in the place of lost ones, and learner groups formed anew.",
        ),
        Panel(
            "Learner replicas",
            "short",
            _gauges(catalog.REPLICAS, "state"),
            "Members below wanted: the others are starting, or a batch cannot be shared among so many.",
        ),
        Panel(
            "Agent steps lost",
            STEPS,
            (Query(counted(catalog.STEPS_LOST, "reason"), "{{run}} {{reason}}"),),
            "Ordered, and never trained on because a process or its data went.",
        ),
        Panel(
            "Agent steps dropped",
            STEPS,
            (Query(counted(catalog.STEPS_DROPPED, "reason"), "{{run}} {{reason}}"),),
            "Came, and were refused. Stale: collecting runs too far ahead.",
        ),
        Panel(
            "Imbalance of the ledger",
            STEPS,
            _by_run(newest(catalog.LEDGER_IMBALANCE)),
            "Anything but 0 is a fault of this program.",
        ),
        Panel(
            "Updates begun again",
            "short",
            _by_run(counted(catalog.UPDATES_REPEATED)),
            "Because a learner replica was lost in the middle.",
        ),
        Panel(
            "Generation", "short", _by_run(newest(catalog.RUN_GENERATION)), "Coordinator starts in the life of the run."
        ),
        Panel(
            "Up for",
            "s",
            _by_run(f"time() - {newest(catalog.RUN_START_TIME)}"),
            "Since this start of the run; small after the coordinator was restarted.",
            "stat",
        ),
        _CHECKPOINT_AGE,
        Panel(
            "Writing a checkpoint",
            "s",
            _by_run(newest(catalog.CHECKPOINT_SECONDS)),
            "By the leading learner, beside training.",
        ),
        Panel(
            "Size of a checkpoint", "bytes", _by_run(newest(catalog.CHECKPOINT_BYTES)), "The newest one, on the disk."
        ),
        Panel(
            "Failed checkpoints",
            "short",
            _by_run(counted(catalog.CHECKPOINT_FAILURES)),
            "Each is tried again after 10 s; training goes on.",
        ),
        Panel(
            "Behind the object store",
            "s",
            _by_run(newest(catalog.UPLOAD_BEHIND)),
            "How long the oldest checkpoint that is not there has been waiting; a lost machine would take it along.",
        ),
        Panel(
            "Uploading",
            "s",
            _by_run(newest(catalog.UPLOAD_SECONDS)),
            "The newest upload, with all that had changed. Training does not wait for it.",
        ),
        Panel(
            "Failed uploads",
            "short",
            _by_run(counted(catalog.UPLOAD_FAILURES)),
            "Each is tried again, after up to a minute; metta-ray status says why it failed.",
        ),
        Panel(
            "State store",
            "s",
            _durations(catalog.STORE_SECONDS),
            "Writing one record or event. Nothing in training waits for it.",
        ),
        Panel(
            "Errors of the state store",
            "short",
            _by_run(counted(catalog.STORE_ERRORS)),
            "metta-ray status and runs may be out of date; training is not touched.",
        ),
    ),
)

CURRICULUM = Board(
    "curriculum",
    "metta_ray / Curriculum and evaluation",
    "What is practised, and what was learned of it.",
    (
        Panel(
            "Entropy of the curriculum",
            "percentunit",
            _by_run(newest(catalog.CURRICULUM_ENTROPY)),
            "1: all tasks alike. Falls as the curriculum concentrates on what is being learned.",
        ),
        Panel(
            "Coverage",
            "percentunit",
            _by_run(newest(catalog.CURRICULUM_COVERAGE)),
            "Share of tasks of which an episode has ended.",
        ),
        Panel("Tasks", "short", _by_run(newest(catalog.CURRICULUM_TASKS)), "That episodes are drawn from.", "stat"),
        Panel(
            "Task score",
            "short",
            _by_run(newest(catalog.EPISODE_SCORE)),
            "Mean score of training episodes, over the tasks as the curriculum draws them.",
        ),
        Panel(
            "Evaluation",
            "short",
            (Query(newest(catalog.EVALUATION_SCORE, "suite"), "{{run}} {{suite}}"),),
            "Score of the newest evaluated policy, by suite.",
            width=16,
        ),
        Panel(
            "Evaluated version",
            "suffix: updates",
            (
                Query(newest(catalog.EVALUATION_VERSION), "{{run}} evaluated"),
                Query(newest(catalog.POLICY_VERSION), "{{run}} newest"),
            ),
            "How far evaluation is behind training.",
        ),
        Panel(
            "Lost evaluators",
            "short",
            (Query(counted(catalog.EVALUATOR_FAILURES, "cause"), "{{run}} {{cause}}"),),
            "Ended without being asked to. After failure.evaluator.per_run of them nothing is evaluated any more.",
        ),
    ),
)

BOARDS = (OVERVIEW, THROUGHPUT, LEARNING, ELASTICITY, CURRICULUM)


# The JSON.


def to_json(board: Board) -> dict[str, Any]:
    return {
        "uid": _uid(board),
        "title": board.title,
        "description": board.description,
        "tags": [TAG],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [{"type": "dashboards", "title": "Boards", "tags": [TAG], "asDropdown": True, "keepTime": True}],
        "templating": {"list": list(_variables())},
        "panels": list(_panels(board.panels)),
    }


def _uid(board: Board) -> str:
    return f"metta-ray-{board.name}"


def _variables() -> Iterator[dict[str, Any]]:
    yield {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
    series = f'{{__name__=~"({RAY_PREFIX})?{catalog.RUN_STATE.name}"'
    for name, scope in (("cluster", ""), ("run", ',cluster=~"$cluster"')):
        yield {
            "name": name,
            "label": name.capitalize(),
            "type": "query",
            "datasource": DATASOURCE,
            "query": {"query": f"label_values({series}{scope}}}, {name})", "refId": name},
            "refresh": 2,
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",  # also what has no such label
            "current": {"text": "All", "value": "$__all"},
        }


def _panels(panels: Sequence[Panel]) -> Iterator[dict[str, Any]]:
    x = y = 0
    for number, panel in enumerate(panels, start=1):
        if x + panel.width > WIDTH:
            x, y = 0, y + HEIGHT
        yield {
            "id": number,
            "type": panel.kind,
            "title": panel.title,
            "description": panel.description,
            "datasource": DATASOURCE,
            "gridPos": {"x": x, "y": y, "w": panel.width, "h": HEIGHT},
            "fieldConfig": {"defaults": {"unit": panel.unit, "custom": _custom(panel)}, "overrides": []},
            "options": _options(panel),
            "targets": [
                {
                    "refId": chr(ord("A") + index),
                    "expr": query.expr,
                    "legendFormat": query.legend,
                    "datasource": DATASOURCE,
                    **({"format": "heatmap"} if panel.kind == "heatmap" else {}),
                }
                for index, query in enumerate(panel.queries)
            ],
        }
        x += panel.width


def _custom(panel: Panel) -> dict[str, Any]:
    if panel.kind != "timeseries":
        return {}
    stacking = {"stacking": {"mode": "normal", "group": "A"}, "fillOpacity": 40} if panel.is_stacked else {}
    return {"drawStyle": "line", "lineWidth": 1, "showPoints": "never", **stacking}


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "timeseries":
        return {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}
    if panel.kind == "stat":
        return {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "none"}
    if panel.kind == "heatmap":
        return {"calculate": False, "color": {"mode": "scheme", "scheme": "Blues"}, "yAxis": {"unit": panel.unit}}
    return {"showValue": "never", "mergeValues": True}


# Which metrics a query uses.


def metrics_in(expr: str) -> set[str]:
    """Names of declared metrics, ours and Ray's; KeyError for one that is not declared."""
    import re

    series = {name: metric.name for metric in METRICS.values() for name in metric.series}
    names = re.findall(rf"(?<![\w:])(?:\({RAY_PREFIX}\)\?)?(metta_\w+|{RAY_PREFIX}(?!\))\w+)", expr)
    return {series[name] if name.startswith("metta_") else catalog.FOREIGN[name].name for name in names}


def address(board: Board, grafana: str, run: str) -> str:
    """Of a board in a Grafana that has our boards, opened for one run."""
    return f"{grafana.rstrip('/')}/d/{_uid(board)}?var-run={quote(run)}"


def needs_of(panel: Panel) -> str:
    """Without what a panel is empty; '' for one that every run of the service fills."""
    names = {name for query in panel.queries for name in metrics_in(query.expr)}
    declared = [METRICS[name].needs if name in METRICS else catalog.FOREIGN[name].needs for name in names]
    return panel.needs or next(filter(None, sorted(declared)), "")


def shown_on(metric: str) -> list[str]:
    """Names of the boards that show it."""
    return [
        board.name
        for board in BOARDS
        if any(metric in metrics_in(query.expr) for panel in board.panels for query in panel.queries)
    ]


def write(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for board in BOARDS:
        (directory / f"{board.name}.json").write_text(text_of(board))


def text_of(board: Board) -> str:
    return json.dumps(to_json(board), indent=2) + "\n"


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "dashboards/grafana"))
