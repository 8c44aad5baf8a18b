"""A board drawn from what Prometheus answers; here a server answers in its place."""

from __future__ import annotations

import http.server
import json
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metta_ray.common.errors import ConfigError
from metta_ray.metrics import boards
from metta_ray.metrics.board_picture import board_called, filled, main, shown


@pytest.fixture
def answering() -> Iterator[tuple[str, list[dict[str, list[str]]]]]:
    """(URL, what was asked): every query has one series of three points."""
    asked: list[dict[str, list[str]]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            question = urllib.parse.parse_qs(urllib.parse.urlparse(self.path).query)
            asked.append(question)
            now = time.time()
            points = [[now - 20, "1"], [now - 10, "2"], [now, "3.5"]]
            labels = {"run": "nav <1>", "state": "running", "part": "learner", "cause": "crash"}
            body = {"status": "success", "data": {"result": [{"metric": labels, "values": points}]}}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *args: Any) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


@pytest.mark.parametrize("board", [board.name for board in boards.BOARDS])
def test_every_panel_of_a_board_is_drawn(board: str, answering: tuple[str, Any], tmp_path: Path) -> None:
    url, asked = answering
    page = tmp_path / "board.html"

    assert main([url, board, str(page), "--run", "nav.*"]) == 0

    text = page.read_text()
    panels = board_called(board)["panels"]
    assert text.count("<section") == len(panels)
    assert "no data" not in text
    assert "nav &lt;1&gt;" in text
    assert "nav <1>" not in text
    assert len(asked) == sum(len(panel["targets"]) for panel in panels)
    assert not any("$" in question["query"][0] for question in asked)


def test_variables_are_replaced() -> None:
    expr = 'rate(x{run=~"$run",cluster=~"$cluster"}[$__rate_interval])'
    assert filled(expr, run="a") == 'rate(x{run=~"a",cluster=~".*"}[1m])'


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.456, "percentunit", "45.6 %"),
        (1.5e9, "bytes", "1.5GB"),
        (0.02, "s", "20 ms"),
        (7200, "s", "2 h"),
        (12_345, "suffix: agent steps/s", "12.3k agent steps/s"),
        (-0.5, "short", "-0.5"),
    ],
)
def test_numbers_have_their_units(value: float, unit: str, text: str) -> None:
    assert shown(value, unit) == text


def test_a_file_is_a_board_too_and_an_unknown_name_is_refused(repository: Path) -> None:
    assert board_called(str(repository / "dashboards/grafana/learning.json")) == board_called("learning")
    with pytest.raises(ConfigError, match="no board 'lerning': neither a file nor one of overview, throughput"):
        board_called("lerning")


def test_where_no_prometheus_is_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["http://127.0.0.1:9", "overview", str(tmp_path / "a.html")]) == 2
    assert "no Prometheus answers at http://127.0.0.1:9" in capsys.readouterr().err
