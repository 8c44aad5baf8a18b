"""The page of one run, or of several side by side: the report's program with the runs' data in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from metta_ray.report.page import build_page
from metta_ray.report.run_data import RunData

DIGITS = 5
"""Of numbers in the page: more than a chart can show."""


def run_page(runs: Sequence[RunData]) -> str:
    """HTML."""
    names = ", ".join(run.name for run in runs)
    return build_page(
        f"{'Run' if len(runs) == 1 else 'Runs'} {names}",
        {"runs": [_short(asdict(run)) for run in runs]},
        body="run.html",
        scripts=("uplot.min.js", "common.js", "run.js"),
        styles=("uplot.min.css", "page.css"),
    )


def _short(value: Any) -> Any:
    """JSON values, floats of a few digits; what is not finite becomes None."""
    if isinstance(value, dict):
        return {str(name): _short(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_short(item) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        # Large ones are counts or times: their last digits mean something.
        return int(value) if value.is_integer() else (value if abs(value) > 1e6 else float(f"{value:.{DIGITS}g}"))
    return value if value is None or isinstance(value, bool | int | str) else str(value)
