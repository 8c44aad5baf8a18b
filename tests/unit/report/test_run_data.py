"""What a run's directory tells, from files written by hand."""

import base64
import gzip
import json
import re

import fsspec
import pytest
import yaml

from metta_ray.common.errors import ConfigError, RunUnknownError
from metta_ray.eval.eval_stats_db import EvalStatsDB
from metta_ray.report import run_data
from metta_ray.report.commands import show_replay, show_report
from metta_ray.report.find_run import find_run
from metta_ray.report.run_data import read_run
from metta_ray.report.run_page import run_page
from metta_ray.service.connection import Where
from metta_ray.state.journal import Journal


def lines(path, *values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def epoch(number, **more):
    return {"epoch": number, "agent_step": 100 * number, "epoch_seconds": 36.0, **more}


@pytest.fixture
def run_dir(tmp_path):
    directory = tmp_path / "runs" / "first"
    lines(
        directory / "metrics.jsonl",
        epoch(1, time=1000.0, **{"staleness/count/0": 3, "reward": None}),
        epoch(2, time=1010.0, **{"staleness/count/0": 1, "staleness/count/1": 2, "reward": 2.0}),
    )
    (directory / "config.yaml").write_text(
        yaml.safe_dump({"run": "first", "trainer": {"seed": 3, "ppo": {"gamma": 0.9}}})
    )
    return directory


def test_columns_have_a_value_per_epoch_and_hours_of_training(run_dir):
    run = read_run("first", str(run_dir))

    assert run.columns["epoch"] == [1, 2]
    assert run.columns["agent_step"] == [100, 200]
    assert run.columns["time_h"] == pytest.approx([0.01, 0.02])
    assert run.columns["reward"] == [None, 2.0]
    assert run.staleness == {"0": 4, "1": 2}
    assert run.config == {"run": "first", "trainer.seed": 3, "trainer.ppo.gamma": 0.9}
    assert (run.epochs, run.epochs_per_point) == (2, 1)


def test_an_epoch_that_was_trained_again_counts_once(run_dir):
    lines(run_dir / "metrics.jsonl", epoch(1, reward=1.0), epoch(2, reward=2.0), epoch(2, reward=5.0))

    assert read_run("first", str(run_dir)).columns["reward"] == [1.0, 5.0]


def test_long_runs_are_averaged(run_dir, monkeypatch):
    monkeypatch.setattr(run_data, "POINTS", 2)
    lines(run_dir / "metrics.jsonl", *(epoch(number, reward=float(number)) for number in range(1, 6)))

    run = read_run("first", str(run_dir))

    assert run.columns["reward"] == [2.0, 4.5]
    assert run.columns["agent_step"] == [300, 500]
    assert (run.epochs, run.epochs_per_point) == (5, 3)


def test_events_are_placed_by_the_times_of_epochs(run_dir):
    lines(
        run_dir / "events.jsonl",
        {"at": 1005.0, "kind": "crash", "text": "rollout-0 died"},
        {"at": 900.0, "kind": "ready", "text": "rollout-0 is ready"},
        {"at": 2000.0, "kind": "left", "text": "rollout-0 left"},
    )

    events = read_run("first", str(run_dir)).events

    assert [(event["kind"], event["agent_step"]) for event in events] == [
        ("ready", 0.0),
        ("crash", 150.0),
        ("left", 200),
    ]


def test_the_curriculum_is_shown_as_recorded(run_dir):
    lines(
        run_dir / "curriculum.jsonl",
        {
            "epoch": 1,
            "agent_step": 100,
            "tasks": {"altar=[10,14)": [0.25, 1, None, None], "altar=[2,6)": [0.75, 0, None, None]},
        },
        {"epoch": 2, "agent_step": 200, "tasks": {"altar=[10,14)": [1.0, 5, 0.5, 0.1]}},
    )

    heat = read_run("first", str(run_dir)).heat

    assert heat.is_recorded
    assert heat.tasks == ["altar=[2,6)", "altar=[10,14)"]
    assert heat.values == [[0.75, None], [0.25, 1.0]]
    assert heat.agent_steps == [100, 200]


def test_without_a_recorded_curriculum_what_was_played_is_shown(run_dir):
    told = {"env_task_completions/a": 0.1, "env_task_completions/b": 0.3}
    lines(run_dir / "metrics.jsonl", epoch(1, **told), epoch(2))

    heat = read_run("first", str(run_dir)).heat

    assert not heat.is_recorded
    assert heat.tasks == ["a", "b"]
    assert heat.values == [[pytest.approx(0.25), None], [pytest.approx(0.75), None]]


def test_the_ledger_comes_from_the_journal(run_dir):
    journal, _ = Journal.open(run_dir / "journal.log")
    for event in (
        {"kind": "issue", "ticket": 0, "worker": 0, "steps": 64},
        {"kind": "issue", "ticket": 1, "worker": 1, "steps": 64},
        {"kind": "deliver", "ticket": 0, "version": 0, "counted": 60},
        {"kind": "commit", "version": 1, "tickets": [0]},
        {"kind": "lose", "ticket": 1, "reason": "crash"},
    ):
        journal.append(event)
    journal.close()

    run = read_run("first", str(run_dir))

    assert (run.ledger["issued"], run.ledger["trained"], run.ledger["imbalance"]) == (128, 60, 0)
    assert run.ledger["lost"] == {"crash": 64}
    assert run.workers[1]["lost"] == 64


def test_what_is_damaged_is_noted_and_the_rest_is_shown(run_dir):
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "agent_')
    (run_dir / "stats").mkdir()
    (run_dir / "stats" / "evaluations.sqlite").write_text("no database at all, and long enough to be taken for one")
    (run_dir / "config.yaml").write_text("{")

    run = read_run("first", str(run_dir))

    assert run.epochs == 2
    assert "metrics.jsonl: 1 damaged line(s) were passed over" in run.notes
    assert any("evaluations cannot be shown" in note for note in run.notes)
    assert any("config.yaml cannot be read" in note for note in run.notes)


def test_evaluations_of_another_version_are_noted_and_left_as_they_are(run_dir):
    path = run_dir / "stats" / "evaluations.sqlite"
    with EvalStatsDB(path) as database:
        database._db.execute("UPDATE schema_version SET version = 99")
    before = path.read_bytes()

    run = read_run("first", str(run_dir))

    assert run.evaluations == []
    assert any("has schema version 99" in note for note in run.notes)
    assert path.read_bytes() == before


def test_a_run_without_an_epoch_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("run: x")

    with pytest.raises(ConfigError, match=r"run x .* has no epoch in metrics.jsonl yet .* wait until an epoch"):
        read_run("x", str(tmp_path))
    with pytest.raises(ConfigError, match="there is no directory"):
        read_run("x", str(tmp_path / "missing"))


def test_a_run_in_an_object_store_reads_like_one_of_this_machine(run_dir):
    store = fsspec.filesystem("memory")
    store.put(str(run_dir), "/bucket/first", recursive=True)

    remote = read_run("first", "memory://bucket/first")

    local = read_run("first", str(run_dir))
    assert remote.columns == local.columns
    assert remote.config == local.config
    assert (
        show_report([("first", "memory://bucket/first")], out="memory://bucket/page.html")
        == "memory://bucket/page.html"
    )
    assert store.cat("/bucket/page.html").startswith(b"<!DOCTYPE html>")


def test_a_page_holds_its_data_and_asks_no_network(run_dir):
    html = run_page([read_run("first", str(run_dir))])

    packed = re.search(r'id="page-data"[^>]*>([^<]+)<', html).group(1)
    (run,) = json.loads(gzip.decompress(base64.b64decode(packed)))["runs"]
    assert run["columns"]["reward"] == [None, 2]
    assert run["staleness"] == {"0": 4, "1": 2}
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', html) == []
    assert "<title>Run first</title>" in html


def test_runs_are_found_by_name_directory_and_url(run_dir):
    where = Where(f"sqlite:///{run_dir.parent}/runs.sqlite")

    assert find_run("first", run_dir.parent, where) == ("first", str(run_dir))
    assert find_run(str(run_dir), "/elsewhere", where) == ("first", str(run_dir))
    assert find_run("s3://bucket/a/first/", "/elsewhere", where) == ("first", "s3://bucket/a/first/")
    with pytest.raises(RunUnknownError, match="did you mean 'first'"):
        find_run("frist", run_dir.parent, where)


def test_a_page_that_cannot_be_written_says_where(run_dir):
    (run_dir / "file").write_text("")

    with pytest.raises(ConfigError, match=r"--out .*file/page.html cannot be written"):
        show_report([("first", str(run_dir))], out=f"{run_dir}/file/page.html")


def test_a_store_that_nobody_knows_is_refused():
    with pytest.raises(ConfigError, match="nowhere://x cannot be reached"):
        read_run("x", "nowhere://x")
    with pytest.raises(ConfigError, match="cannot be reached"):
        show_replay("nowhere://x.json.z", out=None)
