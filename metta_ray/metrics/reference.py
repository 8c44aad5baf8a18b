"""The reference of all metrics, made from the catalogue.

python -m metta_ray.metrics.reference > dashboards/METRICS.md
"""

from __future__ import annotations

from collections.abc import Iterator

from metta_ray.metrics.boards import shown_on
from metta_ray.metrics.catalog import COMMON_LABELS, FOREIGN, METRICS, RAY_PREFIX, Metric

INTRODUCTION = f"""\
# Metrics

Made by `python -m metta_ray.metrics.reference` from `metta_ray/metrics/catalog.py`; a test holds the two together.

On Ray every name has the prefix `{RAY_PREFIX}`, in `run.py --metrics-port` it has none. All have the labels
{" and ".join(f"`{label}`" for label in COMMON_LABELS)}; labels below come on top, and have no other values than these
(`…`: known when the run begins, at most 32). Boards are those of `dashboards/grafana`.

| metric | kind | unit | labels | meaning | boards |
| --- | --- | --- | --- | --- | --- |
"""
FOREIGN_INTRODUCTION = """
Of Ray's own metrics, boards and rules use these:

| metric | unit | meaning |
| --- | --- | --- |
"""


def text() -> str:
    foreign = [f"| `{m.name}` | {m.unit} | {m.meaning}{_needs(m.needs)} |" for m in FOREIGN.values()]
    rows = [_row(metric) for metric in METRICS.values()]
    return INTRODUCTION + "\n".join(rows) + "\n" + FOREIGN_INTRODUCTION + "\n".join(foreign) + "\n"


def _row(metric: Metric) -> str:
    cells = (
        f"`{metric.exported}`",
        metric.kind,
        metric.unit,
        "<br>".join(_labels(metric)),
        metric.meaning + _needs(metric.needs),
        ", ".join(shown_on(metric.name)),
    )
    return f"| {' | '.join(cells)} |"


def _labels(metric: Metric) -> Iterator[str]:
    for name, values in metric.labels.items():
        yield f"`{name}`: {', '.join(values) or '…'}"


def _needs(needs: str) -> str:
    return f" (only with: {needs})" if needs else ""


if __name__ == "__main__":
    print(text(), end="")
