"""The catalogue against everything that speaks of metrics: code, boards, rules, reference, control's own words."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from metta_ray.control import admission, ledger
from metta_ray.control.bottleneck import _WORKER_PARTS
from metta_ray.control.failure import Cause
from metta_ray.control.run_state import RunState
from metta_ray.metrics import boards, catalog, reference
from metta_ray.metrics.boards import BOARDS
from metta_ray.metrics.catalog import FOREIGN, METRICS

ROOT = Path(__file__).parents[3]
RULES = ROOT / "deploy/prometheus/rules/metta_ray.yml"
RUNBOOK = ROOT / "deploy/prometheus/RUNBOOK.md"


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def constants() -> dict[str, str]:
    """Names in the module → names of metrics."""
    return {name: value.name for name, value in vars(catalog).items() if isinstance(value, catalog.Metric)}


def used_in(paths: list[Path]) -> set[str]:
    """Metrics that code refers to as ``catalog.NAME``."""
    found = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            is_constant = isinstance(node, ast.Attribute) and ast.unparse(node.value) == "catalog"
            if is_constant and node.attr in constants():
                found.add(constants()[node.attr])
    return found


def test_names_follow_prometheus() -> None:
    units = {"s": "seconds", "bytes": "bytes", "ratio": "ratio"}
    for metric in METRICS.values():
        assert re.fullmatch(r"metta(_[a-z]+)+", metric.name), metric.name
        assert not metric.name.endswith("_total"), "exporters add it to counters"
        assert metric.name.endswith(units.get(metric.unit, "")), f"{metric.name} is in {metric.unit}"
        text = metric.name + metric.unit + metric.meaning
        assert text.isascii(), f"Ray takes nothing else: {metric.meaning}"
        assert metric.meaning


def test_every_constant_is_declared_once() -> None:
    assert sorted(constants().values()) == sorted(METRICS)


def test_labels_are_few_and_name_no_worker() -> None:
    for metric in METRICS.values():
        assert len(metric.labels) <= 2
        assert not {"worker", "pid", "node", "incarnation", *catalog.COMMON_LABELS} & metric.labels.keys()
        series = 1
        for values in metric.labels.values():
            series *= len(values) or catalog.MAX_VALUES
        assert series <= 40, metric.name


def test_every_metric_is_exported_and_shown() -> None:
    exporters = ["samples.py", "sink.py", "prometheus_exporter.py"]
    paths = [ROOT / "metta_ray/metrics" / name for name in exporters]
    exported = used_in([*paths, ROOT / "metta_ray/service/metrics_exporter.py"])

    assert set(METRICS) - exported == set()
    assert [name for name in METRICS if not boards.shown_on(name)] == []


def test_no_other_file_names_a_metric_by_itself() -> None:
    """A name that is spelt out somewhere else is not found by a search for the constant."""
    allowed = {"catalog.py", "boards.py"}
    spelt = [
        f"{path.relative_to(ROOT)}: {node.value}"
        for path in sorted((ROOT / "metta_ray").rglob("*.py"))
        if path.name not in allowed
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in METRICS
    ]

    assert spelt == []


def test_everything_that_boards_and_rules_ask_for_is_declared() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for board in BOARDS:
        for panel in board.panels:
            for query in panel.queries:
                assert boards.metrics_in(query.expr), query.expr
    for rule in rules():
        asked = boards.metrics_in(rule["expr"])
        used = set(re.findall(r"metta:[\w:]+", rule["expr"]))
        assert used <= recorded, rule
        assert asked or used, rule
        assert asked <= METRICS.keys() | FOREIGN.keys()


@pytest.mark.parametrize("name", ["metta_nothing", "ray_nothing"])
def test_a_metric_that_is_not_declared_is_found(name: str) -> None:
    with pytest.raises(KeyError, match="nothing"):
        boards.metrics_in(f"sum(rate({name}[1m]))")


def test_every_query_takes_a_metric_with_and_without_rays_prefix_and_never_hides_that_it_has_no_data() -> None:
    exprs = [query.expr for board in BOARDS for panel in board.panels for query in panel.queries]
    for expr in [*exprs, *(rule["expr"] for rule in rules())]:
        assert "vector(0)" not in expr
        ours = re.findall(r"(?<!:)\bmetta_\w+", expr)
        assert len(ours) == len(re.findall(r'__name__=~"\(ray_\)\?metta_\w+"', expr)), expr


def test_label_values_in_queries_are_declared() -> None:
    exprs = [query.expr for board in BOARDS for panel in board.panels for query in panel.queries]
    for expr in [*exprs, *(rule["expr"] for rule in rules())]:
        for name, text in re.findall(r'__name__=~"\(ray_\)\?(metta_\w+)",?([^}]*)', expr):
            metric = next(metric for metric in METRICS.values() if name in metric.series)
            for label, values in re.findall(r'(\w+)[=!]~?"([^"$]*)"', text):
                declared = metric.labels.get(label, catalog.ROLES if label == "role" else None)
                assert declared is not None, expr
                assert not declared or set(values.split("|")) <= set(declared), expr


def test_the_catalogues_words_are_those_of_the_decisions() -> None:
    assert tuple(cause.value for cause in Cause) == catalog.CAUSES
    assert tuple(state.value for state in RunState) == catalog.RUN_STATES
    assert {*admission.REASONS, ledger.MASKED} <= set(catalog.DROP_REASONS)
    assert {ledger.RESTART, ledger.ROLLED_BACK} <= set(catalog.LOSS_REASONS)
    assert set(catalog.BOTTLENECK.labels["part"]) == {*_WORKER_PARTS, "learner"}


def test_reasons_that_the_pipeline_gives_are_declared() -> None:
    """Reasons are words in the code that closes tickets."""
    for path in (ROOT / "metta_ray/service").glob("*.py"):
        text = path.read_text()
        for reason in re.findall(r'_lose\([^)]*?, "(\w+)"\)', text):
            assert reason in catalog.LOSS_REASONS, path
        for reason in re.findall(r"drop_queued\((.*)\)", text):
            assert set(re.findall(r'"(\w+)"', reason)) <= set(catalog.DROP_REASONS), path


def test_the_reference_is_current() -> None:
    assert (ROOT / "dashboards/METRICS.md").read_text() == reference.text(), (
        "python -m metta_ray.metrics.reference > dashboards/METRICS.md"
    )


def test_the_boards_files_are_current() -> None:
    files = {path.name: path.read_text() for path in (ROOT / "dashboards/grafana").glob("*.json")}

    assert files == {f"{board.name}.json": boards.text_of(board) for board in BOARDS}, (
        "python -m metta_ray.metrics.boards"
    )


def test_boards_are_sound() -> None:
    made = [json.loads(boards.text_of(board)) for board in BOARDS]

    assert len({board["uid"] for board in made}) == len(made) == 5
    for board in made:
        assert [variable["name"] for variable in board["templating"]["list"]] == ["datasource", "cluster", "run"]
        assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
        places: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            at = panel["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            assert not cells & places, f"{panel['title']} lies on another"
            assert max(x for x, _ in cells) < 24
            places |= cells
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert panel["description"]
            assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])


def test_every_alert_has_a_summary_a_severity_and_a_paragraph_in_the_runbook() -> None:
    headings = re.findall(r"^## (\w+)$", RUNBOOK.read_text(), flags=re.MULTILINE)
    alerts = [rule for rule in rules() if "alert" in rule]

    assert [alert["alert"] for alert in alerts] == headings
    for alert in alerts:
        assert alert["labels"]["severity"] in ("page", "warning")
        assert alert["annotations"]["summary"]
        assert alert["annotations"]["runbook"] == f"deploy/prometheus/RUNBOOK.md#{alert['alert'].lower()}"


def test_every_alert_has_a_test_in_which_it_fires() -> None:
    tests = yaml.safe_load((ROOT / "deploy/prometheus/tests/metta_ray.yml").read_text())["tests"]
    fired = {case["alertname"] for test in tests for case in test.get("alert_rule_test", ()) if case["exp_alerts"]}

    assert fired == {rule["alert"] for rule in rules() if "alert" in rule}
