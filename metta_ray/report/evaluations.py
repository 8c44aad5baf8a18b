"""Evaluation results of one file, as rows of plain values. The file is left as it is, also one of an older version."""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from metta_ray.common.errors import StatsDBError
from metta_ray.eval.eval_stats_db import EvalStatsDB
from metta_ray.eval.score_tables import simulation_scores, suite_scores, suites


@dataclass(frozen=True)
class Evaluation:
    """One policy in one simulation, or in the whole suite (simulation None).

    measure: ``share`` of what is possible, or ``return`` per agent. low, high: of the 95 % interval; None where there
    are too few episodes to tell. incomplete: episodes that the time limit cut off.
    """

    suite: str
    simulation: str | None
    policy: str
    version: int
    agent_step: int | None
    measure: str
    score: float | None
    low: float | None
    high: float | None
    episodes: int
    incomplete: int


def read_evaluations(path: Path) -> list[Evaluation]:
    """Everything in a file of evaluations. StatsDBError for one that is damaged, or of another version."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        _copy(path, copy)
        with EvalStatsDB(copy) as database:
            rows = [
                (suite, row)
                for suite in suites(database)
                for row in (*suite_scores(database, suite), *simulation_scores(database, suite))
            ]
    names = (
        "simulation",
        "policy",
        "version",
        "agent_step",
        "measure",
        "score",
        "low",
        "high",
        "episodes",
        "incomplete",
    )
    return [Evaluation(suite, **{name: row[name] for name in names}) for suite, row in rows]


def _copy(path: Path, target: Path) -> None:
    """With what only the write-ahead log has yet."""
    try:
        with (
            closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(target)) as copy,
        ):
            source.backup(copy)
    except sqlite3.Error as error:
        raise StatsDBError(f"{path.name} cannot be read: {error}") from error
