"""All that a run's directory tells of it, read for its page. What is missing is None or empty, and why is in ``notes``.

config.yaml        settings, versions, revision
metrics.jsonl      one line per epoch
events.jsonl       one line per event: {"at": unix seconds, "kind": …, "text": …}
curriculum.jsonl   now and then: see ``metta_ray.rl.curriculum_log``
journal.log        the ledger
checkpoints/*      policy.json, scores.json
stats/*.sqlite     evaluations
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from metta_ray.common.errors import ConfigError, JournalError, StatsDBError
from metta_ray.common.util import places
from metta_ray.report.evaluations import Evaluation, read_evaluations
from metta_ray.rl.curriculum_log import CURRICULUM_FILE
from metta_ray.service.announcer import EVENTS_FILE
from metta_ray.service.audit import JOURNAL, audit_run

CONFIG, METRICS = "config.yaml", "metrics.jsonl"
FILES = (CONFIG, METRICS, EVENTS_FILE, CURRICULUM_FILE, JOURNAL, "checkpoints/*.json", "stats/*")
"""What the page reads of a directory."""
POINTS = 1000
"""A longer run's epochs are averaged, so many points at most."""
HEAT_COLUMNS = 200
PLAYED_COLUMNS = 40
"""Fewer: an epoch sees the ends of a few episodes only."""
HEAT_TASKS = 150
COUNT_PREFIX = "staleness/count/"
PROBABILITY = "env_task_completions/"

Columns = dict[str, list[float | None]]


@dataclass(frozen=True)
class Heat:
    """Per-task shares over time. rows: one per task, ``values[task][column]``; None where nothing is known.

    is_recorded: probabilities as the curriculum had them; else shares among the episodes that ended.
    """

    agent_steps: list[float]
    tasks: list[str]
    values: list[list[float | None]]
    is_recorded: bool
    left_out: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """written: unix seconds. score: of its evaluation, where there was one."""

    name: str
    epoch: int
    agent_step: int
    written: float
    bytes: int
    score: float | None
    is_final: bool


@dataclass(frozen=True)
class RunData:
    """columns: per epoch (or mean of ``epochs_per_point``), all of one length; ``time_h`` is training time in hours."""

    name: str
    place: str
    columns: Columns
    epochs: int
    epochs_per_point: int
    config: dict[str, Any] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    heat: Heat | None = None
    staleness: dict[str, int] = field(default_factory=dict)
    ledger: dict[str, Any] | None = None
    workers: dict[int, dict[str, int]] = field(default_factory=dict)
    evaluations: list[Evaluation] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_run(name: str, place: str) -> RunData:
    """ConfigError for a place that is no run's, or a run that has not finished an epoch yet."""
    try:
        with places.as_directory(place, FILES) as directory:
            return _read(name, place, directory)
    except FileNotFoundError as error:
        raise ConfigError(f"run {name}: {error}; give the name of a run, its directory, or the URL of one") from None


def _read(name: str, place: str, directory: Path) -> RunData:
    notes: list[str] = []
    lines = _json_lines(directory / METRICS, notes)
    if not lines:
        seen = sorted(entry.name for entry in directory.iterdir())
        what = f"it has {', '.join(seen[:6])}" if seen else "it is empty"
        is_run = (directory / CONFIG).exists() or (directory / METRICS).exists()
        remedy = "wait until an epoch is trained" if is_run else "is it the directory of a run?"
        raise ConfigError(f"run {name} at {place} has no epoch in {METRICS} yet ({what}); {remedy}")
    lines = _last_of_each_epoch(lines)
    ledger, workers = _ledger(directory, notes)
    columns = _columns(lines)
    return RunData(
        name=name,
        place=place,
        columns=_thinned(columns, POINTS),
        epochs=len(lines),
        epochs_per_point=-(-len(lines) // POINTS),
        config=_config(directory / CONFIG, notes),
        events=_events(directory / EVENTS_FILE, lines, notes),
        heat=_recorded_heat(directory / CURRICULUM_FILE, notes) or _played_heat(lines),
        staleness=_staleness(lines),
        ledger=ledger,
        workers=workers,
        evaluations=_evaluations(directory / "stats", notes),
        checkpoints=_checkpoints(directory / "checkpoints"),
        notes=notes,
    )


# --- metrics ---------------------------------------------------------------------------------------------


def _json_lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; damaged ones (the writer died in the middle) are counted in a note."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return []
    found, damaged = [], 0
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            damaged += 1
            continue
        if isinstance(value, dict):
            found.append(value)
    if damaged:
        notes.append(f"{path.name}: {damaged} damaged line(s) were passed over")
    return found


def _last_of_each_epoch(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """After a restart some epochs may have been trained, and written, again."""
    by_epoch = {int(line["epoch"]): line for line in lines if "epoch" in line and "agent_step" in line}
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def _columns(lines: list[dict[str, Any]]) -> Columns:
    names = dict.fromkeys(name for line in lines for name, value in line.items() if _is_number(value))
    columns: Columns = {name: [_number(line.get(name)) for line in lines] for name in names}
    total, hours = 0.0, []
    for line in lines:
        total += _number(line.get("epoch_seconds")) or 0.0
        hours.append(total / 3600)
    return {**columns, "time_h": [*hours]}


def _thinned(columns: Columns, most: int) -> Columns:
    """Means of equally many neighbours, so that at most ``most`` points are left."""
    count = len(columns["epoch"])
    per_point = -(-count // most)
    if per_point == 1:
        return columns
    starts = range(0, count, per_point)
    return {
        name: [_mean(values[start : start + per_point]) for start in starts] for name, values in columns.items()
    } | {name: [columns[name][min(start + per_point, count) - 1] for start in starts] for name in _COUNTERS}


_COUNTERS = ("epoch", "agent_step", "time_h")


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _staleness(lines: list[dict[str, Any]]) -> dict[str, int]:
    """Fragments by staleness, over the whole run."""
    counts: dict[int, int] = {}
    for line in lines:
        for name, value in line.items():
            if name.startswith(COUNT_PREFIX) and _is_number(value):
                staleness = int(name.removeprefix(COUNT_PREFIX))
                counts[staleness] = counts.get(staleness, 0) + int(value)
    return {str(staleness): counts[staleness] for staleness in sorted(counts)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> float | None:
    return value if _is_number(value) else None


# --- events ----------------------------------------------------------------------------------------------


def _events(path: Path, lines: list[dict[str, Any]], notes: list[str]) -> list[dict[str, Any]]:
    """Each with the agent step at which it happened, where the epochs' times tell."""
    times = [(float(line["time"]), float(line["agent_step"])) for line in lines if _is_number(line.get("time"))]
    found = []
    for event in _json_lines(path, notes):
        if _is_number(event.get("at")):
            found.append(
                {
                    "at": event["at"],
                    "kind": str(event.get("kind", "")),
                    "text": str(event.get("text", "")),
                    "agent_step": _step_at(event["at"], times),
                }
            )
    return sorted(found, key=lambda event: float(event["at"]))


def _step_at(at: float, times: list[tuple[float, float]]) -> float | None:
    """Between the epochs before and after, in proportion."""
    if not times:
        return None
    if at <= times[0][0]:
        return 0.0
    for (before, step), (after, next_step) in pairwise(times):
        if at <= after:
            part = (at - before) / (after - before) if after > before else 1.0
            return step + part * (next_step - step)
    return times[-1][1]


# --- curriculum ------------------------------------------------------------------------------------------


def _recorded_heat(path: Path, notes: list[str]) -> Heat | None:
    told = [line for line in _json_lines(path, notes) if isinstance(line.get("tasks"), dict)]
    lines = _spread(_last_of_each_epoch(told), HEAT_COLUMNS)
    if not lines:
        return None
    shares = [{task: _probability(row) for task, row in line["tasks"].items()} for line in lines]
    return _heat([float(line["agent_step"]) for line in lines], shares, is_recorded=True)


def _probability(row: Any) -> float | None:
    return _number(row[0]) if isinstance(row, list) and row else None


def _played_heat(lines: list[dict[str, Any]]) -> Heat | None:
    """Which tasks the finished episodes were of, averaged over neighbouring epochs."""
    told = [
        {name.removeprefix(PROBABILITY): value for name, value in line.items() if name.startswith(PROBABILITY)}
        for line in lines
    ]
    if len({task for one in told for task in one}) < 2:
        return None
    per_column = -(-len(lines) // PLAYED_COLUMNS)
    steps, shares = [], []
    for start in range(0, len(lines), per_column):
        block = [one for one in told[start : start + per_column] if one]
        steps.append(float(lines[min(start + per_column, len(lines)) - 1]["agent_step"]))
        totals: dict[str, float] = {}
        for one in block:
            for task, share in one.items():
                totals[task] = totals.get(task, 0.0) + float(share or 0.0)
        whole = sum(totals.values())
        shares.append({task: total / whole for task, total in totals.items()} if whole else {})
    return _heat(steps, shares, is_recorded=False)


def _heat(steps: list[float], shares: Sequence[Mapping[str, float | None]], *, is_recorded: bool) -> Heat:
    """Tasks by name, numbers in them by size; the rarest are left out where there are too many."""
    tasks = sorted({task for one in shares for task in one}, key=_by_numbers)
    weight = {task: sum(one.get(task) or 0.0 for one in shares) for task in tasks}
    kept = set(sorted(tasks, key=lambda task: -weight[task])[:HEAT_TASKS])
    tasks_kept = [task for task in tasks if task in kept]
    absent = None if is_recorded else 0.0
    values = [[one.get(task, absent) if one else None for one in shares] for task in tasks_kept]
    return Heat(steps, tasks_kept, values, is_recorded, left_out=len(tasks) - len(tasks_kept))


def _by_numbers(text: str) -> list[tuple[bool, int, str]]:
    """``altar=[6,10)`` before ``altar=[10,14)``."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", text)]


def _spread(lines: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most ``most`` of them, evenly, with the last."""
    if len(lines) <= most:
        return lines
    return [lines[round(index * (len(lines) - 1) / (most - 1))] for index in range(most)]


# --- the rest --------------------------------------------------------------------------------------------


def _config(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        notes.append(f"{CONFIG} is missing: settings are not known")
        return {}
    except (OSError, yaml.YAMLError) as error:
        notes.append(f"{CONFIG} cannot be read: {error}")
        return {}
    return dict(_flat(settings)) if isinstance(settings, dict) else {}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _ledger(directory: Path, notes: list[str]) -> tuple[dict[str, Any] | None, dict[int, dict[str, int]]]:
    if not (directory / JOURNAL).exists():
        return None, {}
    try:
        audit = audit_run(directory)
    except JournalError as error:
        notes.append(f"the ledger cannot be shown: {error}")
        return None, {}
    if audit.fault:
        notes.append(f"the ledger has a fault: {audit.fault}")
    return audit.totals, audit.workers


def _evaluations(folder: Path, notes: list[str]) -> list[Evaluation]:
    found: list[Evaluation] = []
    for file in sorted(folder.glob("*.sqlite")):
        try:
            found += read_evaluations(file)
        except StatsDBError as error:
            notes.append(f"evaluations cannot be shown: {error}")
    return found


def _checkpoints(folder: Path) -> list[Checkpoint]:
    found = []
    for file in sorted(folder.glob("*/policy.json")):
        try:
            metadata = json.loads(file.read_text())["metadata"]
            found.append(
                Checkpoint(
                    name=file.parent.name,
                    epoch=int(metadata.get("epoch", 0)),
                    agent_step=int(metadata.get("agent_step", 0)),
                    written=file.stat().st_mtime,
                    bytes=_size(file.parent),
                    score=_score(file.parent / "scores.json"),
                    is_final=bool(metadata.get("final")),
                )
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # being written, or damaged: training itself says so
    return sorted(found, key=lambda checkpoint: checkpoint.epoch)


def _size(checkpoint: Path) -> int:
    """Of all its files, as its manifest says: of a run in an object store not all of them are here."""
    try:
        listed = json.loads((checkpoint / "manifest.json").read_text())["files"]
        return sum(int(file["size"]) for file in listed.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return sum(file.stat().st_size for file in checkpoint.iterdir())


def _score(path: Path) -> float | None:
    try:
        return _number(json.loads(path.read_text()).get("score"))
    except (OSError, ValueError, AttributeError):
        return None
