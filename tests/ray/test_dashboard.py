"""What a person sees of a run in Ray's dashboard, asked as its pages ask, and looked at with a browser."""

from __future__ import annotations

import http.server
import json
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ray.harness import Head, Lab, Run, Session, wait_until

TOKEN = "0123456789abcdef" * 4
AUTH = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
RUN = [
    *("--preset", "cartpole", "--evaluate", "false", "--workers", 1, "--total-timesteps", 100_000_000),
    *("--rollout.num-cpus", 0.1, "--learner.num-cpus", 0.1, "--learner.replicas", 1),
]
GRAFANA = "http://grafana.example:3000"
PAGE_MS = 10_000
"""Of the page's own clock: long enough for what it loads."""


class SubmittedRun(Run):
    """Known by its files alone: what asks a run otherwise has no token."""

    def require_driver(self) -> None:
        return


@pytest.fixture(scope="module")
def head(shared_lab: Lab) -> Head:
    return shared_lab.head(dashboard=True, env={**AUTH, "RAY_GRAFANA_HOST": GRAFANA})


@pytest.fixture(scope="module")
def run(shared_lab: Lab, head: Head) -> Run:
    command = ["metta-ray", "submit", "--run", "seen", "--address", head.dashboard_url, *map(str, RUN)]
    command += ["--data-dir", str(shared_lab.data_dir)]
    place = shared_lab.directory / "project"
    place.mkdir()
    session = Session(command, cwd=place, env=shared_lab.environment(AUTH), log=shared_lab.log("submit"))
    assert session.process.wait(60.0) == 0, session.output
    run = SubmittedRun(shared_lab, "seen", shared_lab.data_dir, head, session)
    run.wait_for_version(2)
    return run


def test_nobody_is_let_in_without_the_token(head: Head) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{head.dashboard_url}/api/jobs/", timeout=10.0)


def test_actors_are_listed_by_run_and_role(head: Head, run: Run) -> None:
    answer = asked(head, "/api/v0/actors?detail=1&filter_keys=state&filter_predicates=%3D&filter_values=ALIVE")

    actors = {actor["name"]: actor for actor in answer["data"]["result"]["result"]}
    seen = {name: (actors[name]["class_name"], actors[name]["repr_name"]) for name in actors if "metta/" in name}
    assert seen == {
        "metta/seen/coordinator": ("Coordinator", "coordinator(run=seen)"),
        "metta/seen/learner-0": ("LearnerActor", "learner-0(run=seen)"),
        "metta/seen/rollout-0": ("RolloutWorkerActor", "rollout-0(run=seen)"),
    }
    assert {actors[name]["ray_namespace"] for name in seen} == {"metta-seen"}


def test_the_job_has_the_name_of_the_run_and_says_who_and_what(head: Head, run: Run) -> None:
    [job] = [job for job in asked(head, "/api/jobs/") if job["type"] == "SUBMISSION"]

    assert job["submission_id"].startswith("metta-seen-")
    assert job["status"] == "RUNNING"
    metadata = job["metadata"]
    assert metadata["job_name"] == metadata["run"] == "seen"
    assert metadata["owner"]
    assert len(metadata["config_hash"]) == 12


def test_status_says_where_boards_and_metrics_are(shared_lab: Lab, head: Head, run: Run) -> None:
    def status(*options: str) -> str:
        command = ["metta-ray", "status", "seen", "--data-dir", str(run.data_dir), *options]
        env = shared_lab.environment(AUTH)
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60.0, check=True).stdout

    facts = json.loads(status("--json"))
    assert facts["dashboard_url"] == head.dashboard_url
    assert facts["grafana_url"] == f"{GRAFANA}/d/metta-ray-overview?var-run=seen"
    shown = status()
    assert all(facts[name] in shown for name in ("dashboard_url", "grafana_url", "metrics_url"))

    def metrics() -> str:
        with urllib.request.urlopen(facts["metrics_url"], timeout=10.0) as answer:
            return str(answer.read().decode())

    wait_until(lambda: "ray_metta_run_state{" in metrics(), 60.0, "metrics where the status says", every_s=0.5)


def test_the_pages_show_it(head: Head, run: Run, tmp_path: Path, doorman: str) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("needs chromium: apt-get install chromium")

    actors = looked_at(browser, f"{doorman}/#/actors", tmp_path / "actors")
    jobs = looked_at(browser, f"{doorman}/#/jobs", tmp_path / "jobs")

    print("screenshots:", *sorted(tmp_path.glob("*.png")))
    for text in ("metta/seen/rollout-0", "metta/seen/learner-0", "metta/seen/coordinator", "rollout-0(run=seen)"):
        assert text in actors
    assert ">seen<" in jobs
    assert "metta-seen-" in jobs


@pytest.fixture
def doorman(head: Head) -> Iterator[str]:
    """An address that sends a browser on to the dashboard, with the cookie that the dashboard gives for the token."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Set-Cookie", f"ray-authentication-token={TOKEN}; Path=/; HttpOnly; SameSite=Strict")
            self.send_header("Location", head.dashboard_url)  # a browser keeps the part behind "#"
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def asked(head: Head, path: str) -> Any:
    request = urllib.request.Request(head.dashboard_url + path, headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=30.0) as answer:
        return json.load(answer)


def looked_at(browser: str, url: str, path: Path) -> str:
    """What the page consists of in the end; a picture of it lies beside ``path``."""
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1700,900", f"--user-data-dir={path}"]
    options += [f"--virtual-time-budget={PAGE_MS}", f"--screenshot={path}.png", "--dump-dom"]
    page = subprocess.run([browser, *options, url], capture_output=True, text=True, timeout=120.0, check=True)
    assert path.with_suffix(".png").exists(), page.stderr
    return page.stdout
