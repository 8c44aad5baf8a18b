"""Draws a board from Prometheus as one page without scripts, where there is no Grafana.

    python -m metta_ray.metrics.board_picture http://127.0.0.1:9090 overview board.html --minutes 30

Also takes the path of a Grafana board, as in dashboards/grafana. Asks nothing but Prometheus.
"""

from __future__ import annotations

import argparse
import html
import json
import math
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metta_ray.common.errors import ConfigError
from metta_ray.metrics.boards import BOARDS, TAG, to_json

POINTS = 240
TIMEOUT_S = 20.0
COLOURS = ("#3274d9", "#e0752d", "#56a64b", "#a352cc", "#e02f44", "#f2cc0c", "#37872d", "#1f60c4", "#8f3bb8", "#5794f2")
CHART_WIDTH, CHART_HEIGHT, LEFT, BOTTOM = 480.0, 150.0, 56.0, 18.0
LEGEND_LINES = 8


@dataclass(frozen=True)
class Series:
    """points: (seconds since 1970, value), in order."""

    legend: str
    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]

    @property
    def last(self) -> float:
        return self.points[-1][1]


class Prometheus:
    """Its HTTP interface. ConfigError where it does not answer or refuses a query."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def now(self, expr: str) -> list[dict[str, Any]]:
        """The vector of an instant query."""
        return self._ask("query", {"query": expr})

    def range(self, expr: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        return self._ask("query_range", {"query": expr, "start": start, "end": end, "step": step})

    def _ask(self, what: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        url = f"{self._url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
                result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            raise ConfigError(f"Prometheus refuses {parameters['query']!r}: {error.read().decode()[:300]}") from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"no Prometheus answers at {self._url}: {error}") from None
        return result


def filled(expr: str, *, cluster: str = ".*", run: str = ".*", rate_interval: str = "1m") -> str:
    """The query of a board with its variables replaced."""
    values = {"$__rate_interval": rate_interval, "$cluster": cluster, "$run": run}
    for name, value in values.items():
        expr = expr.replace(name, value)
    return expr


def page(
    board: Mapping[str, Any], prometheus: Prometheus, *, minutes: float, run: str = ".*", rate_interval: str = "1m"
) -> str:
    """The board over the last ``minutes``, as HTML."""
    end = time.time()
    start = end - minutes * 60
    step = max(1.0, (end - start) / POINTS)
    panels = []
    for panel in board["panels"]:
        series = []
        for target in panel["targets"]:
            expr = filled(target["expr"], run=run, rate_interval=rate_interval)
            series += [_series(target["legendFormat"], found) for found in prometheus.range(expr, start, end, step)]
        panels.append(_panel(panel, series, start, end, step))
    began, ended = (time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) for at in (start, end))
    return _PAGE.format(
        title=html.escape(board["title"]),
        description=html.escape(board.get("description", "")),
        period=f"{began} – {ended}",
        panels="\n".join(panels),
    )


def _series(legend: str, found: Mapping[str, Any]) -> Series:
    text = legend
    for name, value in found["metric"].items():
        text = text.replace(f"{{{{{name}}}}}", value)
    points = ((float(at), float(value)) for at, value in found["values"])
    return Series(text, found["metric"], tuple((at, value) for at, value in points if math.isfinite(value)))


def _panel(panel: Mapping[str, Any], series: Sequence[Series], start: float, end: float, step: float) -> str:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    series = sorted((one for one in series if one.points), key=lambda one: one.legend)
    draw = {"stat": _stat, "state-timeline": _timeline}.get(panel["type"], _chart)
    if panel["type"] == "heatmap":
        series = sorted(series, key=lambda one: float(one.labels.get("le", "inf")))
    if panel["fieldConfig"]["defaults"]["custom"].get("stacking"):
        series = _stacked(series)
    body = draw(series, unit, start, end, step) if series else '<div class="empty">no data</div>'
    width = panel["gridPos"]["w"]
    tip = html.escape(panel["description"], quote=True)
    return (
        f'<section style="grid-column: span {width}" title="{tip}"><h2>{html.escape(panel["title"])}</h2>'
        f"{body}<p>{html.escape(panel['description'])}</p></section>"
    )


def _stacked(series: Sequence[Series]) -> list[Series]:
    """Each on top of those before it. Where one has no value it counts as 0."""
    sums: dict[float, float] = {}
    result = []
    for one in series:
        for at, value in one.points:
            sums[at] = sums.get(at, 0.0) + value
        result.append(
            Series(f"{one.legend}: {one.last:.0%}", one.labels, tuple((at, sums[at]) for at, _ in one.points))
        )
    return result


def _stat(series: Sequence[Series], unit: str, start: float, end: float, step: float) -> str:
    del start, end, step
    rows = "".join(
        f'<div class="stat"><b>{shown(one.last, unit)}</b> {html.escape(one.legend)}</div>' for one in series
    )
    return f'<div class="stats">{rows}</div>'


def _timeline(series: Sequence[Series], unit: str, start: float, end: float, step: float) -> str:
    """A bar per series, for as long as it had a value."""
    del unit
    rows, height = [], 14.0
    for row, one in enumerate(series):
        y = row * (height + 4)
        for run in _unbroken(one.points, step):
            left, right = _x(run[0][0], start, end), _x(run[-1][0] + step, start, end)
            size = f'width="{right - left:.1f}" height="{height}"'
            rows.append(f'<rect x="{left:.1f}" y="{y:.1f}" {size} fill="{_colour(row)}"/>')
    total = len(series) * (height + 4)
    return _svg("".join(rows) + _time_axis(start, end, total), total + BOTTOM) + _legend(series, [""] * len(series))


def _chart(series: Sequence[Series], unit: str, start: float, end: float, step: float) -> str:
    values = [value for one in series for _, value in one.points]
    low, high = min(0.0, *values), max(values)
    if all(value == values[0] for value in values) or high == low:
        high = max(high, low + (abs(high) or 1.0))

    def y(value: float) -> float:
        return 4 + (CHART_HEIGHT - 4) * (1 - (value - low) / (high - low))

    parts = []
    for tick in (low, (low + high) / 2, high):
        parts.append(f'<line x1="{LEFT}" x2="{CHART_WIDTH}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 4}" y="{y(tick) + 4:.1f}" class="tick">{shown(tick, unit, short=True)}</text>')
    for number, one in enumerate(series):
        colour = _colour(number)
        for run in _unbroken(one.points, step):
            path = " ".join(f"{_x(at, start, end):.1f},{y(value):.1f}" for at, value in run)
            dot = f'<circle cx="{_x(run[0][0], start, end):.1f}" cy="{y(run[0][1]):.1f}" r="1.5" fill="{colour}"/>'
            parts.append(f'<polyline points="{path}" stroke="{colour}"/>' if len(run) > 1 else dot)
    axis = _time_axis(start, end, CHART_HEIGHT)
    legend = _legend(series, [shown(one.last, unit) for one in series])
    return _svg("".join(parts) + axis, CHART_HEIGHT + BOTTOM) + legend


def _legend(series: Sequence[Series], values: Sequence[str]) -> str:
    entries = [
        f'<span><i style="background:{_colour(number)}"></i>{html.escape(one.legend)} <b>{value}</b></span>'
        for number, (one, value) in enumerate(zip(series[:LEGEND_LINES], values, strict=False))
    ]
    if len(series) > LEGEND_LINES:
        entries.append(f"<span>and {len(series) - LEGEND_LINES} more</span>")
    return f'<div class="legend">{"".join(entries)}</div>'


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _unbroken(points: Sequence[tuple[float, float]], step: float) -> list[list[tuple[float, float]]]:
    """Parted where values are missing."""
    runs: list[list[tuple[float, float]]] = []
    for point in points:
        if runs and point[0] - runs[-1][-1][0] < 1.5 * step:
            runs[-1].append(point)
        else:
            runs.append([point])
    return runs


def _x(at: float, start: float, end: float) -> float:
    return LEFT + (CHART_WIDTH - LEFT) * min(1.0, (at - start) / (end - start))


def _time_axis(start: float, end: float, y: float) -> str:
    words = []
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        at = start + share * (end - start)
        text = time.strftime("%H:%M:%S", time.localtime(at))
        words.append(
            f'<text x="{_x(at, start, end):.1f}" y="{y + 14:.1f}" class="time" text-anchor="{anchor}">{text}</text>'
        )
    return "".join(words)


def _svg(content: str, height: float) -> str:
    return f'<svg viewBox="0 0 {CHART_WIDTH:g} {height:g}" role="img">{content}</svg>'


def shown(value: float, unit: str, *, short: bool = False) -> str:
    """A number with its unit: ``12.3k agent steps/s``, ``45 %``, ``1.5 GB``, ``2 min``. short: without words."""
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "bytes":
        return f"{_scaled(value)}B"
    if unit == "s":
        return _duration(value)
    suffix = unit.removeprefix("suffix:") if unit.startswith("suffix:") and not short else ""
    return f"{_scaled(value)}{suffix}".strip()


def _scaled(value: float) -> str:
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{letter}"
    return f"{value:.3g}"


def _duration(seconds: float) -> str:
    for factor, name in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if abs(seconds) >= 1.5 * factor:
            return f"{seconds / factor:.3g} {name}"
    return f"{seconds:.3g} s" if abs(seconds) >= 0.1 or seconds == 0 else f"{1000 * seconds:.3g} ms"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 13px/1.4 system-ui, sans-serif; background: #f4f5f5; color: #24292e; margin: 16px; }}
header {{ margin-bottom: 12px; }} h1 {{ font-size: 18px; margin: 0; }} header span {{ color: #6e7681; }}
main {{ display: grid; grid-template-columns: repeat(24, 1fr); gap: 8px; }}
section {{ background: #fff; border: 1px solid #dce0e4; border-radius: 3px; padding: 8px; min-width: 0; }}
h2 {{ font-size: 13px; margin: 0 0 6px; }} section p {{ color: #6e7681; font-size: 11px; margin: 6px 0 0; }}
svg {{ width: 100%; display: block; }} polyline {{ fill: none; stroke-width: 1.5; }}
.grid {{ stroke: #e6e8ea; }} .tick {{ text-anchor: end; }} .tick, .time {{ font-size: 9px; fill: #6e7681; }}
.legend {{ font-size: 11px; display: flex; flex-wrap: wrap; gap: 2px 10px; }}
.legend i {{ display: inline-block; width: 10px; height: 3px; margin-right: 4px; vertical-align: middle; }}
.stats {{ padding: 24px 4px; }} .stat b {{ font-size: 24px; display: block; }}
.empty {{ color: #9aa0a6; padding: 40px 0; text-align: center; }}
</style></head><body><header><h1>{title}</h1><span>{description} {period}</span></header><main>
{panels}
</main></body></html>
"""


def board_called(name: str) -> dict[str, Any]:
    """The board of that name, or in that file. ConfigError if there is none."""
    if Path(name).is_file():
        board: dict[str, Any] = json.loads(Path(name).read_text())
        return board
    found = {board.name: board for board in BOARDS}
    if name not in found:
        raise ConfigError(f"no board {name!r}: neither a file nor one of {', '.join(found)}")
    return to_json(found[name])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="board_picture", description=f"Draws a board of {TAG} from Prometheus.")
    parser.add_argument("url", help="of Prometheus, e.g. http://127.0.0.1:9090")
    parser.add_argument("board", help=f"{', '.join(board.name for board in BOARDS)}, or the path of a Grafana board")
    parser.add_argument("page", type=Path, help="HTML file to write")
    parser.add_argument("--minutes", type=float, default=30.0, help="how far back")
    parser.add_argument("--run", default=".*", help="name of the run, or a regular expression")
    parser.add_argument("--rate-interval", default="1m", help="at least four times what Prometheus scrapes at")
    options = parser.parse_args(argv)
    try:
        text = page(
            board_called(options.board),
            Prometheus(options.url),
            minutes=options.minutes,
            run=options.run,
            rate_interval=options.rate_interval,
        )
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    options.page.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
