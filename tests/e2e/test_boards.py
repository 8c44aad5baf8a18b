"""Every panel and every rule is asked of a real Prometheus that watched real trainings: one in a cluster, which is kept
in an object store and evaluated, and in which a worker is killed and another one added, and one without Ray."""

from __future__ import annotations

import html
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from metta_ray.metrics import boards, catalog
from metta_ray.metrics.board_picture import Prometheus, filled, page
from metta_ray.metrics.boards import BOARDS, Board, Panel
from tests.e2e.small_runs import SMALL_CARTPOLE
from tests.ray.harness import ROOT, Lab, Run, Session, free_port, wait_until
from tests.s3_server import BUCKET, s3_server

pytestmark = pytest.mark.chaos  # a worker is killed

RULES = ROOT / "deploy/prometheus/rules/metta_ray.yml"
RATE_INTERVAL = "20s"
RUN = [
    *("--preset", "smoke", "--env", "/env/mettagrid/curriculum/navigation/bucketed", "--evaluate", "false"),
    *("--workers", 1, "--rollout.num-cpus", 0.5, "--learner.num-cpus", 0.5, "--cluster.measure", "true"),
    *("--trainer.checkpoint.checkpoint-interval", 3, "--total-timesteps", 100_000_000),
]
NEEDS = {"GPU"}
"""What this test does not have, and so does not see the panels of."""


class Watched:
    """Two trainings, and the Prometheus that sees them. before, killed, scaled: what panels said at each point."""

    def __init__(self, lab: Lab, prometheus: Prometheus, run: Run) -> None:
        self.lab = lab
        self.prometheus = prometheus
        self.run = run
        self.before: dict[str, float] = {}
        self.killed: dict[str, float] = {}
        self.scaled: dict[str, float] = {}

    def ask(self, expr: str) -> list[dict[str, Any]]:
        return self.prometheus.now(filled(expr, rate_interval=RATE_INTERVAL))

    def value(self, expr: str, **labels: str) -> float:
        """Of the only series with these labels."""
        found = [one for one in self.ask(expr) if labels.items() <= one["metric"].items()]
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else float("nan")

    def look(self) -> dict[str, float]:
        watched = {"run": "watched"}
        return {
            "failures": self.value(query_of("elasticity", "Failures of rollout workers"), **watched, cause="crash"),
            "restarts": self.value(query_of("elasticity", "Restarts"), **watched, of="rollout"),
            "started": self.value(query_of("elasticity", "Workers started"), **watched),
            "wanted": self.value(query_of("overview", "Rollout workers"), **watched, state="wanted"),
            "ready": self.value(query_of("overview", "Rollout workers"), **watched, state="ready"),
        }

    def wait_until_seen(self, **values: float) -> dict[str, float]:
        seen: dict[str, float] = {}

        def is_seen() -> bool:
            seen.update(self.look())
            return values.items() <= seen.items()

        try:
            wait_until(is_seen, 60.0, f"the panels show {values}", every_s=0.5)
        except AssertionError as error:
            raise AssertionError(f"{error}; they show {seen}") from None
        return seen


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    if shutil.which("prometheus") is None:
        pytest.skip("needs prometheus and promtool: apt-get install prometheus")
    lab = Lab(tmp_path_factory.mktemp("boards"))
    started: list[Session] = []
    store = ExitStack()
    try:
        s3 = store.enter_context(s3_server())
        lab.variables = {**s3.environment, "METTA_RAY_WORK_DIR": str(lab.directory / "work")}
        head = lab.head(dashboard=True, env={"RAY_metrics_report_interval_ms": "2000"})
        port, library_port = free_port(), free_port()
        configuration = configured(lab, head.temp_dir / "prom_metrics_service_discovery.json", library_port)
        command = ["prometheus", f"--config.file={configuration}", f"--web.listen-address=127.0.0.1:{port}"]
        command += [f"--storage.tsdb.path={lab.directory / 'tsdb'}"]
        started.append(Session(command, cwd=lab.directory, env=lab.environment(), log=lab.log("prometheus")))
        copy = lab.directory / "work" / "s3" / BUCKET / "runs"
        run = lab.train(*RUN, "--data-dir", f"s3://{BUCKET}/runs", run="watched", head=head, data_dir=copy)
        library = [sys.executable, str(ROOT / "run.py"), *SMALL_CARTPOLE, "--run", "alone", "--evaluate", "false"]
        library += ["--metrics-port", str(library_port), "--total-timesteps", "100000000"]
        library += ["--data-dir", str(lab.data_dir)]
        run.wait_for_version(3)
        nice = ["nice", "-n", "15"]  # it is only there to be seen
        started.append(Session([*nice, *library], cwd=lab.directory, env=lab.environment(), log=lab.log("alone")))
        watched = Watched(lab, Prometheus(f"http://127.0.0.1:{port}"), run)

        watched.before = watched.wait_until_seen(failures=0.0, started=1.0, wanted=1.0, ready=1.0)
        os.kill(run.pid_of("rollout-0"), signal.SIGKILL)
        watched.killed = watched.wait_until_seen(failures=1.0, ready=1.0, started=2.0)
        assert run.ask("scale", "2")["ok"]
        watched.scaled = watched.wait_until_seen(wanted=2.0, ready=2.0)
        run.wait_for_version(run.version + 4)  # the checkpoint after
        assert run.ask("evaluate", "smoke", None, 2, 0)["ok"]
        wait_until(lambda: watched.ask(query_of("curriculum", "Evaluation")), 90.0, "an evaluation", every_s=0.5)
        yield watched
    finally:
        for session in started:
            session.end()
        lab.end()
        store.close()


def configured(lab: Lab, discovery: Path, library_port: int) -> Path:
    """deploy/prometheus/prometheus.yml with the places of this test, and its clock a tenth as slow."""
    text = (ROOT / "deploy/prometheus/prometheus.yml").read_text()
    for old, new in {
        "/tmp/ray/prom_metrics_service_discovery.json": str(discovery),
        "127.0.0.1:9100": f"127.0.0.1:{library_port}",
        "rules/metta_ray.yml": str(RULES),
        "interval: 10s": "interval: 1s",
    }.items():
        assert old in text, old
        text = text.replace(old, new)
    path = lab.directory / "prometheus.yml"
    path.write_text(text)
    return path


def query_of(board: str, title: str) -> str:
    [panel] = [panel for panel in panels_of(board) if panel.title == title]
    return panel.queries[0].expr


def panels_of(name: str) -> tuple[Panel, ...]:
    [board] = [board for board in BOARDS if board.name == name]
    return board.panels


def every_panel() -> Iterator[tuple[Board, Panel]]:
    for board in BOARDS:
        for panel in board.panels:
            yield board, panel


def recorded() -> list[dict[str, Any]]:
    return [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"] if "record" in rule
    ]


def shown(result: list[dict[str, Any]]) -> str:
    values = [f"{float(one['value'][1]):.4g}" for one in result]
    return f"{len(result)} series: {', '.join(values[:6])}{' …' if len(values) > 6 else ''}"


def test_a_killed_worker_moves_its_panels_by_one(watched: Watched) -> None:
    before, after = watched.before, watched.killed

    assert after["failures"] == before["failures"] + 1
    assert after["restarts"] == before["restarts"] + 1
    assert after["started"] == before["started"] + 1
    assert after["wanted"] == before["wanted"]


def test_a_scale_up_moves_its_own_and_no_other(watched: Watched) -> None:
    before, after = watched.killed, watched.scaled

    assert after["wanted"] == before["wanted"] + 1
    assert after["ready"] == before["ready"] + 1
    assert after["started"] == before["started"] + 1
    assert after["failures"] == before["failures"]


def test_every_query_of_every_panel_has_data(watched: Watched) -> None:
    empty, rows = [], []
    for board, panel in every_panel():
        for query in panel.queries:
            result = watched.ask(query.expr)
            needs = boards.needs_of(panel)
            rows.append(f"{board.name:<11} {panel.title:<32} {query.legend:<28} {shown(result)}")
            if not result and needs not in NEEDS:
                empty.append(f"{board.name} / {panel.title}: {query.expr}")

    print("\n" + "\n".join(rows))
    assert empty == []


def test_every_number_that_rules_record_has_data(watched: Watched) -> None:
    results: dict[str, list[dict[str, Any]]] = {}

    def all_have_data() -> bool:
        results.update({rule["record"]: watched.prometheus.now(rule["record"]) for rule in recorded()})
        return all(results.values())

    with suppress(AssertionError):  # Prometheus computes them in turns, after it has seen what they are made of
        wait_until(all_have_data, 30.0, every_s=0.5)
    print("\n" + "\n".join(f"{name:<42} {shown(result)}" for name, result in results.items()))
    assert [name for name, result in results.items() if not result] == []


def test_no_alert_fires_for_one_crash_and_one_scale_up(watched: Watched) -> None:
    assert watched.prometheus.now('ALERTS{alertstate="firing"}') == []


def test_what_is_exported_is_what_is_declared(watched: Watched) -> None:
    """Both ways, but for what needs a device or an evaluation."""
    series = {name: metric.name for metric in catalog.METRICS.values() for name in metric.series}
    found = watched.prometheus.now('count by (__name__) ({__name__=~"(ray_)?metta_.+"})')
    names = {one["metric"]["__name__"].removeprefix("ray_") for one in found}
    names = {name for name in names if not re.search(r"_created$", name)}  # prometheus_client says when it began

    assert names - series.keys() == set()
    missing = set(catalog.METRICS) - {series[name] for name in names}
    assert {name for name in missing if catalog.METRICS[name].needs not in NEEDS} == set()


def test_labels_are_bounded_and_name_no_worker(watched: Watched) -> None:
    ours = {"run", "role", "cluster", "instance", "job", "le", "__name__"}
    rays = {"Component", "NodeAddress", "SessionName", "Version", "WorkerId"}
    for one in watched.prometheus.now('{__name__=~"(ray_)?metta_.+"}'):
        name = one["metric"]["__name__"].removeprefix("ray_")
        metric = next(m for m in catalog.METRICS.values() if name in (*m.series, f"{m.name}_created"))
        added = {label for label in one["metric"] if label.startswith("otel_scope_")}
        assert one["metric"].keys() - ours - rays - added == metric.labels.keys(), one["metric"]
        for label, values in metric.labels.items():
            assert not values or one["metric"][label] in (*values, catalog.OTHER), one["metric"]


def test_exporting_costs_less_than_a_hundredth_of_the_processor_time(watched: Watched) -> None:
    """A share of what coordinator and learners take; the workers take at least as much again."""
    shares = {one["metric"]["run"]: float(one["value"][1]) for one in watched.ask(COST_OF_METRICS)}

    print(shares)
    assert shares["watched"] < 0.01


COST_OF_METRICS = query_of("throughput", "Cost of these metrics")


def test_the_overview_as_a_page(watched: Watched) -> None:
    text = page(
        boards.to_json(boards.OVERVIEW), watched.prometheus, minutes=2, run="watched", rate_interval=RATE_INTERVAL
    )
    path = watched.lab.directory / "overview.html"
    path.write_text(text)
    kept = os.environ.get("METTA_RAY_KEEP_PICTURES")
    if kept:
        for board in BOARDS:
            drawn = page(boards.to_json(board), watched.prometheus, minutes=2, rate_interval=RATE_INTERVAL)
            (Path(kept) / f"{board.name}.html").write_text(drawn)

    for panel in boards.OVERVIEW.panels:
        assert html.escape(panel.title) in text
    assert text.count("no data") == sum(boards.needs_of(panel) in NEEDS for panel in boards.OVERVIEW.panels)
    assert "running" in text


@pytest.mark.parametrize("command", [["check", "rules", str(RULES)], ["test", "rules", "metta_ray.yml"]])
def test_promtool_accepts_the_rules(command: list[str]) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool: apt-get install prometheus")
    result = subprocess.run(
        ["promtool", *command], cwd=ROOT / "deploy/prometheus/tests", capture_output=True, text=True, timeout=60
    )

    assert result.returncode == 0, result.stdout + result.stderr
    assert "SUCCESS" in result.stdout
