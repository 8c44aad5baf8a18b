"""Status of a run, the list of runs and the ledger, as text for people from the values that ``--json`` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from metta_ray.metrics.tables import age, print_facts, print_table

Status = Mapping[str, Any]


def print_status(status: Status, stream: TextIO) -> None:
    """Everything a person asks first; sections that the status lacks are left out."""
    print_facts(_facts(status), stream)
    workers = status.get("workers") or {}
    if workers.get("list"):
        print(file=stream)
        columns = ("stream", "slot", "state", "pid", "host", "node", "tickets", "fragments", "restarts")
        _print_rows("rollout workers", columns, workers["list"], stream)
    if status.get("learners"):
        print(file=stream)
        _print_rows("learners", ("name", "rank", "state", "pid", "host", "node"), status["learners"], stream)
    if (status.get("evaluations") or {}).get("evaluators"):
        print(file=stream)
        playing = ("name", "state", "evaluation", "pid", "node")
        _print_rows("evaluators", playing, status["evaluations"]["evaluators"], stream)
    if status.get("ledger"):
        print(file=stream)
        print_ledger(status["ledger"], stream)
    if status.get("events"):
        print("\nlatest events", file=stream)
        for event in list(status["events"])[-5:]:
            print(f"  {_event_text(event)}", file=stream)


def print_runs(records: Sequence[Mapping[str, Any]], now: float, stream: TextIO) -> None:
    rows = [
        [
            record["name"],
            record["state"],
            record.get("agent_step"),
            record.get("total_timesteps"),
            record.get("reward"),
            f"{age(now - record['updated'])} ago" if record.get("updated") else None,
            record.get("run_dir"),
        ]
        for record in records
    ]
    print_table(("run", "state", "agent steps", "of", "reward", "updated", "directory"), rows, stream)


def print_evaluations(status: Status, now: float, stream: TextIO) -> None:
    """The last evaluations of a run, oldest first, and its best policy."""
    rows = [
        [
            one["number"],
            one["policy"],
            one["suite"],
            one["asked_by"],
            one["state"],
            _score_text(one),
            one["episodes"],
            one["verdict"] or one["reason"],
            one["seconds"],
            f"{age(now - (one['ended_at'] or one['asked_at']))} ago",
        ]
        for one in (status.get("evaluations") or {}).get("list", ())
    ]
    if not rows:
        print(f"run {status.get('run')} has no evaluations yet; ask for one: metta-ray evaluate RUN", file=stream)
        return
    columns = ("number", "policy", "suite", "asked by", "state", "score", "episodes", "outcome", "seconds", "when")
    print_table(columns, rows, stream)
    print(f"\nbest: {_best_text(status.get('best')) or 'none yet'}", file=stream)


def print_curriculum(answer: Mapping[str, Any], stream: TextIO) -> None:
    """A row per task, the most probable first."""
    columns = ("task", "probability", "attempts", "score", "recent_score", "learning_progress")
    rows = sorted(answer["rows"], key=lambda row: -row["probability"])
    names = [name for name in columns if any(row.get(name) is not None for row in rows)]
    title = f"curriculum after epoch {answer['epoch']}, {answer['agent_step']:,} agent steps"
    print_table(
        [name.replace("_", " ") for name in names], [[row.get(name) for name in names] for row in rows], stream, title
    )


def print_ledger(totals: Mapping[str, Any], stream: TextIO) -> None:
    """Where every agent step went, one row each; the parts add up to what was issued."""
    issued = totals["issued"]
    rows: list[list[Any]] = [["trained", totals["trained"]]]
    rows += [[f"dropped: {reason}", steps] for reason, steps in sorted(totals["dropped"].items())]
    rows += [[f"lost: {reason}", steps] for reason, steps in sorted(totals["lost"].items())]
    rows += [["in flight", totals["in_flight"]], ["queued", totals["queued"]], ["issued", issued]]
    shares = [[*row, f"{row[1] / issued:.1%}" if issued else "-"] for row in rows]
    print_table(("ledger", "agent steps", "share"), shares, stream)


def print_worker_totals(totals: Mapping[int, Mapping[str, int]], stream: TextIO) -> None:
    """Per rollout worker (its stream number); ``totals`` has the same columns for each."""
    columns = ("fragments", "issued", "trained", "dropped", "lost", "open")
    rows = [[stream_number, *(worker[name] for name in columns)] for stream_number, worker in sorted(totals.items())]
    print_table(("worker", *columns), rows, stream)


def _facts(status: Status) -> list[tuple[str, Any]]:
    workers, staleness = status.get("workers") or {}, status.get("staleness") or {}
    checkpoint, failures = status.get("checkpoint") or {}, status.get("failures") or {}
    steps, total = status.get("agent_step"), status.get("total_timesteps")
    share = f" ({steps / total:.0%})" if steps is not None and total else ""
    return [
        ("run", status.get("run")),
        ("state", status.get("state")),
        ("message", status.get("message")),
        ("waiting for", status.get("waiting_for")),
        ("agent steps", f"{steps:,} of {total:,}{share}" if steps is not None and total else steps),
        ("epoch", status.get("epoch")),
        ("agent steps/s", status.get("agent_steps_per_second")),
        ("of the floor", f"{status['efficiency']:.0%}" if status.get("efficiency") is not None else ""),
        ("reward", status.get("reward")),
        ("workers", _worker_counts(workers)),
        (
            "staleness",
            f"mean {staleness['mean']:.2f}, max {staleness['max']}" if staleness.get("mean") is not None else "",
        ),
        ("bottleneck", status.get("bottleneck")),
        ("failures", _by_cause(failures)),
        ("checkpoint", _checkpoint_text(checkpoint)),
        ("uploaded", _upload_text(status.get("upload") or {})),
        ("best policy", _best_text(status.get("best"))),
        ("evaluations", _evaluation_counts(status.get("evaluations") or {})),
        ("lost evaluators", _lost_evaluators(status.get("evaluations") or {})),
        ("generation", status.get("generation")),
        ("directory", status.get("run_dir")),
        ("Ray dashboard", status.get("dashboard_url")),
        ("board", status.get("grafana_url")),
        ("metrics", status.get("metrics_url")),
        ("job", status.get("job_id")),
    ]


def _worker_counts(workers: Mapping[str, Any]) -> str:
    if "wanted" not in workers:
        return ""
    parts = [f"{workers['wanted']} wanted", f"{workers.get('ready', 0)} ready"]
    return ", ".join(parts + [f"{workers[name]} {name}" for name in ("starting", "draining") if workers.get(name)])


def _checkpoint_text(checkpoint: Mapping[str, Any]) -> str:
    if not checkpoint.get("path"):
        return ""
    seconds = checkpoint.get("age_s")
    when = f", {age(seconds)} old" if seconds is not None else ""
    return f"{checkpoint['path']} (epoch {checkpoint.get('epoch')}{when})"


def _upload_text(upload: Mapping[str, Any]) -> str:
    if not upload:
        return ""
    text = f"{upload['place']}: {upload['uploaded'] or 'no checkpoint yet'}"
    if upload["waiting"]:
        text += f", {upload['waiting']} waiting for {age(upload['behind_s'])}"
    return text + (f"; failing: {upload['error']}" if upload["error"] else "")


def _best_text(best: Mapping[str, Any] | None) -> str:
    return f"{best['path']} (epoch {best['version']}, score {_score_text(best)} in {best['suite']})" if best else ""


def _score_text(one: Mapping[str, Any]) -> str:
    value, low, high = one.get("score"), one.get("low"), one.get("high")
    if value is None:
        return "-"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _evaluation_counts(evaluations: Mapping[str, Any]) -> str:
    names = ("waiting", "running", "done", "failed")
    return ", ".join(f"{evaluations[name]} {name}" for name in names if evaluations.get(name))


def _lost_evaluators(evaluations: Mapping[str, Any]) -> str:
    reason = evaluations.get("given_up")
    return _by_cause(evaluations.get("failures") or {}) + (f"; given up: {reason}" if reason else "")


def _by_cause(failures: Mapping[str, int]) -> str:
    return ", ".join(f"{cause} {count}" for cause, count in failures.items() if count)


def _event_text(event: Any) -> str:
    return f"{event.get('kind', '')}: {event.get('text', '')}" if isinstance(event, Mapping) else str(event)


def _print_rows(title: str, columns: Sequence[str], entries: Sequence[Mapping[str, Any]], stream: TextIO) -> None:
    # Process ids and ranks are names, not amounts: no thousands separators.
    rows = [
        [
            str(entry[name]) if name in ("pid", "stream", "rank") and name in entry else entry.get(name)
            for name in columns
        ]
        for entry in entries
    ]
    print_table(columns, rows, stream, title)
