"""What is sent to Ray for a job. Without Ray."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from metta_ray.common.errors import ConfigError, RunUnreachableError
from metta_ray.jobs.client import (
    Jobs,
    config_hash,
    is_this_machine,
    job_address,
    plan_job,
    refreshed,
    travelling_data_dir,
)
from metta_ray.service.run_config import load_run_config
from metta_ray.state.records import RunRecord


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "project" / "runs").mkdir(parents=True)
    (tmp_path / "project" / "runs" / "a b.yaml").write_text("preset: smoke\n")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def test_the_entry_command_trains_the_same_in_the_job(project: Path):
    words = {"trainer.ppo.clip_coef": "0.2", "env_overrides": "--x y", "new": "true"}

    plan = plan_job(str(project / "runs" / "a b.yaml"), words, load_run_config(None, {"run": "nav-7"}), now=0)

    assert shlex.split(plan.entrypoint) == [
        "python",
        "-m",
        "metta_ray",
        "train",
        "runs/a b.yaml",
        "--trainer.ppo.clip-coef=0.2",
        "--env-overrides=--x y",
        "--new=true",
        "--run=nav-7",
    ]


def test_the_dashboard_can_name_the_job(project: Path):
    plan = plan_job(None, {}, load_run_config(None, {"run": "nav-7"}), now=0)

    assert plan.submission_id.startswith("metta-nav-7-")
    assert set(plan.metadata) == {"job_name", "run", "owner", "config_hash"}
    assert plan.metadata["job_name"] == plan.metadata["run"] == "nav-7"
    assert all(isinstance(value, str) for value in plan.metadata.values())


def test_the_working_directory_goes_along_without_what_is_large_or_private(project: Path):
    environment = plan_job(None, {}, load_run_config(None, {"run": "a"})).runtime_env

    assert environment["working_dir"] == str(project)
    assert {".git", ".venv", "train_dir"} <= set(environment["excludes"])
    assert int(environment["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) >= 60


def test_a_file_that_the_job_would_not_have_is_refused(project: Path):
    outside = project.parent / "other.yaml"
    outside.write_text("")

    with pytest.raises(ConfigError, match="lies outside of the working directory"):
        plan_job(str(outside), {}, load_run_config(None, {"run": "a"}))


def test_the_hash_is_of_the_settings_only():
    one = config_hash(load_run_config(None, {"run": "a"}))

    assert one == config_hash(load_run_config(None, {"run": "a", "new": "true"}))
    assert one != config_hash(load_run_config(None, {"run": "a", "trainer.seed": "1"}))


def test_a_variable_that_ray_would_obey_instead_is_refused():
    with pytest.raises(ConfigError, match="name different clusters"):
        job_address("http://a:8265", {"RAY_API_SERVER_ADDRESS": "http://b:8265"})
    assert job_address("http://a:8265", {"RAY_API_SERVER_ADDRESS": "http://a:8265/"}) == "http://a:8265"


def test_the_cluster_must_be_named():
    assert job_address(None, {"RAY_API_SERVER_ADDRESS": "http://b:1", "RAY_ADDRESS": "c:2"}) == "http://b:1"
    assert job_address(None, {"RAY_ADDRESS": "c:2"}) == "c:2"
    with pytest.raises(ConfigError, match="a job needs a cluster"):
        job_address(None, {})


@pytest.mark.parametrize(
    ("address", "here"),
    [
        ("http://127.0.0.1:8265", True),
        ("http://localhost:8265/", True),
        ("127.0.0.1:6379", True),
        ("http://head:8265", False),
        ("10.0.0.1:6379", False),
    ],
)
def test_paths_of_this_machine_travel_only_to_this_machine(address: str, here: bool):
    assert is_this_machine(address) is here
    assert travelling_data_dir("/d", is_given=False, address=address) == ("/d" if here else None)
    assert travelling_data_dir("/d", is_given=True, address=address) == "/d"


class Client:
    """Ray's client, with a log that grows and ends."""

    def __init__(self, error: Exception | None = None):
        self.error = error
        self.logs = iter(["a\n", "a\nb\n", "a\nb\nc\n"])
        self.states = iter(["RUNNING", "RUNNING", "SUCCEEDED"])

    def get_job_info(self, job: str) -> Any:
        if self.error:
            raise self.error
        return SimpleNamespace(status=SimpleNamespace(value=next(self.states)), message="", driver_exit_code=None)

    def get_job_logs(self, job: str) -> str:
        return next(self.logs)


def test_a_log_is_followed_until_the_job_has_ended():
    assert list(Jobs(Client(), "http://a:1").follow_logs("j", sleep=lambda _: None)) == ["a\n", "b\n", "c\n"]


@pytest.mark.parametrize("text", ["Request failed with status code 401: x", "Failed to connect to Ray", "Forbidden"])
def test_failures_that_a_token_may_cause_name_it(text: str):
    with pytest.raises(RunUnreachableError, match=r"http://a:1: .*; a missing or wrong token"):
        Jobs(Client(RuntimeError(f"{text}\nand pages more")), "http://a:1").status("j")


def test_other_failures_do_not():
    with pytest.raises(RunUnreachableError) as raised:
        Jobs(Client(RuntimeError("Job j does not exist.")), "http://a:1").status("j")

    assert str(raised.value) == "Ray's job API at http://a:1: Job j does not exist"


def test_a_run_that_never_spoke_is_known_by_its_job():
    client = Client()
    client.states = iter(["FAILED"])
    record = RunRecord(
        name="a", run_dir="/a", state="starting", generation=0, started=1.0, updated=1.0, job_id="metta-a"
    )

    newer = refreshed(record, Jobs(client, "http://a:1"), now=5.0)

    assert (newer.state, newer.updated, newer.message) == ("failed", 5.0, "job FAILED:")


def test_an_address_where_nothing_listens_is_told_as_that():
    with pytest.raises(
        RunUnreachableError, match=r"no job API answers at http://127\.0\.0\.1:1 \(Connection refused\)"
    ):
        Jobs.at("http://127.0.0.1:1")
