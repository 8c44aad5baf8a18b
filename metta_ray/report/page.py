"""A self-contained page: style, program and data in one HTML file that asks no network for anything."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

_ASSETS = files("metta_ray.report") / "assets"


def build_page(title: str, data: Any, *, body: str, scripts: Sequence[str], styles: Sequence[str]) -> str:
    """body, scripts, styles: names of assets. data: JSON values, compressed into the page; the program reads them
    with ``await pageData()``."""
    style = "\n".join(_asset(name) for name in styles)
    program = "\n".join(_asset(name) for name in scripts)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{style}
</style>
</head>
<body>
{_asset(body)}
<script id="page-data" type="application/octet-stream">{_packed(data)}</script>
<script>
{program}
</script>
</body>
</html>
"""


def _packed(data: Any) -> str:
    """The same data give the same text."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=9, mtime=0)).decode()


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")
