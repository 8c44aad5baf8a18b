"""The tables of a statistics file for other programs: CSV always, Parquet where pyarrow is installed."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path

from metta_ray.common.errors import ConfigError
from metta_ray.common.util import fs
from metta_ray.eval import score_tables
from metta_ray.eval.eval_stats_db import TABLES, EvalStatsDB
from metta_ray.eval.score_tables import Row

CSV, PARQUET = "csv", "parquet"


def formats() -> tuple[str, ...]:
    """Those that can be written here."""
    return (CSV, PARQUET) if importlib.util.find_spec("pyarrow") else (CSV,)


def export(db: EvalStatsDB, directory: str | Path, wanted: Sequence[str] | None = None) -> list[Path]:
    """Writes every table as it is stored, and ``suite_scores`` and ``simulation_scores`` as they are shown.

    wanted: formats; None: all that ``formats`` has. ConfigError for one that cannot be written here.
    """
    for name in wanted or ():
        if name not in formats():
            remedy = "install pyarrow" if name == PARQUET else f"known: {CSV}, {PARQUET}"
            raise ConfigError(f"format {name!r} cannot be written here; {remedy}")
    tables = {table: db.query(f"SELECT * FROM {table}") for table in TABLES}
    for name, rows_of in (
        ("suite_scores", score_tables.suite_scores),
        ("simulation_scores", score_tables.simulation_scores),
    ):
        tables[name] = [{"suite": suite, **row} for suite in score_tables.suites(db) for row in rows_of(db, suite)]
    written = []
    for name, rows in tables.items():
        for one in wanted or formats():
            path = Path(directory) / f"{name}.{one}"
            fs.atomic_write_bytes(path, _csv(rows) if one == CSV else _parquet(rows))
            written.append(path)
    return written


def _csv(rows: list[Row]) -> bytes:
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue().encode()


def _parquet(rows: list[Row]) -> bytes:
    arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    content = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist(rows), content)
    return content.getvalue()
