"""What a run says is kept in its directory too."""

import json
import logging

from metta_ray.service.announcer import EVENTS_FILE, Announcer
from metta_ray.state.publisher import Publisher
from metta_ray.state.sqlite_store import SqliteStore


def test_events_are_kept_in_the_runs_directory_once_there_is_one(tmp_path):
    announcer = Announcer("r")
    announcer.event("early", "before there is a directory")
    announcer.events_file = tmp_path / EVENTS_FILE

    announcer.event("crash", "rollout-0 died\nwith a traceback")
    announcer.event("resize", "2 workers wanted")

    lines = [json.loads(line) for line in announcer.events_file.read_text().splitlines()]
    assert [(line["kind"], line["text"]) for line in lines] == [
        ("crash", "rollout-0 died\nwith a traceback"),
        ("resize", "2 workers wanted"),
    ]
    assert lines[0]["at"] <= lines[1]["at"]


def test_a_disk_that_does_not_take_them_is_a_warning_and_the_store_has_them(tmp_path, caplog):
    announcer = Announcer("r")
    announcer.publisher = Publisher(SqliteStore(tmp_path / "runs.sqlite"), "r", announcer.note)
    announcer.events_file = tmp_path / "missing" / EVENTS_FILE

    with caplog.at_level(logging.WARNING):
        announcer.event("crash", "rollout-0 died")

    assert "event not written" in caplog.text
    assert "rollout-0 died" in announcer.events[-1]
    announcer.close(10.0)
    store = SqliteStore(tmp_path / "runs.sqlite")
    assert [event.text for event in store.events("r")] == ["rollout-0 died"]
    store.close()
