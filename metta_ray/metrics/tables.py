"""Tables for people: with lines and colours on a terminal, aligned plain text in a pipe or a log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TextIO

Rows = Sequence[Sequence[Any]]


def print_table(headers: Sequence[str], rows: Rows, stream: TextIO, title: str = "") -> None:
    """Numbers are right-aligned, with thousands separated; None is a dash."""
    if stream.isatty():
        _print_rich(headers, rows, stream, title)
    else:
        if title:
            print(title, file=stream)
        for line in plain_table(headers, rows):
            print(line, file=stream)


def plain_table(headers: Sequence[str], rows: Rows) -> list[str]:
    """Lines of equal columns, two blanks apart."""
    texts = [list(headers), *([shown(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(headers))]
    is_right = _right_aligned(headers, rows)
    return [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, is_right, strict=True)
        ).rstrip()
        for row in texts
    ]


def print_facts(facts: Sequence[tuple[str, Any]], stream: TextIO) -> None:
    """``name  value`` lines; those without a value are left out."""
    kept = [(name, shown(value)) for name, value in facts if value not in (None, "")]
    width = max((len(name) for name, _ in kept), default=0)
    for name, value in kept:
        print(f"{name.ljust(width)}  {value}", file=stream)


def shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def age(seconds: float) -> str:
    """``12 s``, ``5 min``, ``3 h``, ``2 d``."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _right_aligned(headers: Sequence[str], rows: Rows) -> list[bool]:
    columns = [[row[column] for row in rows] for column in range(len(headers))]
    return [
        bool(cells)
        and all(cell is None or (isinstance(cell, int | float) and not isinstance(cell, bool)) for cell in cells)
        for cells in columns
    ]


def _print_rich(headers: Sequence[str], rows: Rows, stream: TextIO, title: str) -> None:
    # Loaded here: a tenth of a second that most commands need not spend.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left")
    for header, right in zip(headers, _right_aligned(headers, rows), strict=True):
        table.add_column(header, justify="right" if right else "left")
    for row in rows:
        table.add_row(*(Text(shown(cell)) for cell in row))
    Console(file=stream).print(table)
