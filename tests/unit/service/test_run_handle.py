"""What a run answers, and how its silence reads. Without Ray."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import pytest

from metta_ray.common.errors import ConfigError, RunUnknownError, RunUnreachableError
from metta_ray.metrics.console import PlainDisplay
from metta_ray.service.connection import (
    Where,
    auth_of,
    check_reachable,
    connected,
    find_run,
    put_record,
    record_as_status,
    recorded,
    records,
)
from metta_ray.service.following import follow
from metta_ray.service.run_handle import RunHandle, coordinator_gone, first_line
from metta_ray.service.run_log import keep_log, log_pieces
from metta_ray.service.stopping import force_stop, stop_run, wait_until_ended
from metta_ray.state.records import RunRecord


class Coordinator:
    """Answers from a list; an exception in it is raised."""

    def __init__(self, *answers: Any):
        self.answers = list(answers)
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, method: str, *arguments: Any, timeout_s: float) -> Any:
        self.calls.append((method, *arguments))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def where(tmp_path: Path, **named: Any) -> Where:
    return Where(store_url=f"sqlite:///{tmp_path}/runs.sqlite", **named)


def record(name: str = "nav-7", **changes: Any) -> RunRecord:
    facts: dict[str, Any] = {"run_dir": "/r", "state": "running", "generation": 1, "started": 1.0, "updated": 2.0}
    return RunRecord(name=name, **(facts | changes))


def test_every_command_is_the_coordinators_method():
    ok = {"ok": True, "message": ""}
    coordinator = Coordinator(*[ok] * 9)
    handle = RunHandle("nav-7", coordinator)

    handle.status()
    handle.scale("2:16")
    handle.pause()
    handle.unpause()
    handle.checkpoint()
    handle.set("trainer.ppo.clip_coef", "0.2")
    handle.stop()
    handle.progress(3, 0.5)
    handle.attach("driver", 1)

    assert coordinator.calls == [
        ("status",),
        ("scale", "2:16"),
        ("pause",),
        ("unpause",),
        ("checkpoint",),
        ("set", "trainer.ppo.clip_coef", "0.2"),
        ("stop", False),
        ("progress", 3, 0.5),
        ("attach", "driver", 1),
    ]


def test_following_shows_each_line_once_and_says_why_it_failed(capsys: pytest.CaptureFixture[str]):
    coordinator = Coordinator(
        {"lines": [{"number": 0, "text": "run nav-7 starts"}], "state": "starting"},
        {"lines": [{"number": 1, "epoch": 1, "agent_step": 64, "text": "epoch 1"}], "state": "running"},
        {"lines": [], "state": "failed", "result": {"text": "environment raised: no such map"}},
    )
    stream = io.StringIO()
    beats: list[int] = []

    code = follow(RunHandle("nav-7", coordinator), PlainDisplay(stream), beat=lambda: beats.append(1))

    assert code == 3
    assert stream.getvalue().splitlines() == ["run nav-7 starts", "epoch 1"]
    assert capsys.readouterr().err == "error: environment raised: no such map\n"
    assert [call[1] for call in coordinator.calls] == [-1, 0, 1]
    assert len(beats) == 2


@pytest.mark.parametrize(("state", "code"), [("done", 0), ("failed", 3), ("stopped", 130)])
def test_the_exit_code_says_how_a_run_ended(state: str, code: int):
    coordinator = Coordinator({"lines": [], "state": state})

    assert follow(RunHandle("a", coordinator), PlainDisplay(io.StringIO())) == code


def test_whoever_comes_late_sees_the_latest_lines_only():
    lines = [{"number": number, "text": f"line {number}"} for number in range(30)]
    coordinator = Coordinator({"lines": lines, "state": "running"}, {"lines": [], "state": "done"})
    stream = io.StringIO()

    follow(RunHandle("a", coordinator), PlainDisplay(stream), recent=2)

    assert stream.getvalue().splitlines() == ["line 28", "line 29"]
    assert coordinator.calls[1][1] == 29


def test_a_lost_coordinator_is_told_with_both_ways_on():
    text = str(coordinator_gone("nav-7", "its node died"))

    assert "coordinator of run nav-7 is gone (its node died)" in text
    assert "metta-ray train --run nav-7" in text
    assert "metta-ray stop nav-7 --force" in text


def test_of_pages_of_text_the_first_line_counts():
    assert first_line(ValueError("\n  broken.\nmore\n")) == "broken"
    assert first_line(ValueError()) == "ValueError"


def test_an_unknown_run_names_the_known_ones_and_asking_creates_no_store(tmp_path: Path):
    with pytest.raises(RunUnknownError, match=r"run 'nav-8' is unknown in sqlite.*there is none yet.*--address"):
        find_run(where(tmp_path), "nav-8")
    assert list(tmp_path.iterdir()) == []

    put_record(where(tmp_path), record())
    with pytest.raises(RunUnknownError, match=r"did you mean 'nav-7'"):
        find_run(where(tmp_path), "nav-8")
    with pytest.raises(RunUnknownError), connected(where(tmp_path), "nav-8"):
        pass


def test_records_are_found_by_name(tmp_path: Path):
    put_record(where(tmp_path), record())

    assert recorded(where(tmp_path), "nav-7") == record()
    assert recorded(where(tmp_path), "nav-8") is None
    assert [found.name for found in records(where(tmp_path))] == ["nav-7"]
    assert record_as_status(record())["run"] == "nav-7"


def test_where_comes_from_options_and_else_from_variables(tmp_path: Path):
    by_option = Where.of("/d", None, "h:1", {"RAY_ADDRESS": "h:2"})
    by_variable = Where.of(None, "sqlite:///x", None, {"RAY_ADDRESS": "h:2"})

    assert (by_option.store_url, by_option.address, by_option.is_explicit) == ("sqlite:////d/runs.sqlite", "h:1", True)
    assert (by_variable.store_url, by_variable.address, by_variable.is_explicit) == ("sqlite:///x", "h:2", False)


def test_a_run_whose_cluster_is_gone_is_told_at_once(tmp_path: Path):
    put_record(where(tmp_path), record(ray_address="127.0.0.1:1"))

    said = r"no Ray cluster answers at 127\.0\.0\.1:1.*--force"
    with pytest.raises(RunUnreachableError, match=said), connected(where(tmp_path), "nav-7"):
        pass


def test_a_submitted_run_that_has_not_said_where_it_is_is_waited_for(tmp_path: Path):
    put_record(where(tmp_path), record(job_id="metta-nav-7"))

    said = r"job metta-nav-7 .*wait until it runs"
    with pytest.raises(RunUnreachableError, match=said), connected(where(tmp_path), "nav-7"):
        pass


def test_a_dashboards_address_is_no_clusters():
    with pytest.raises(RunUnreachableError, match=r"dashboard.*host:port"):
        check_reachable("http://127.0.0.1:8265")


def test_only_an_embedded_cluster_is_known_by_its_record():
    assert auth_of(record(config={"cluster": {"auth": "token", "address": None}})) == "token"
    assert auth_of(record(config={"cluster": {"auth": "token", "address": "h:1"}})) is None
    assert auth_of(None) is None


def test_force_marks_a_run_stopped_whose_cluster_is_gone(tmp_path: Path):
    put_record(where(tmp_path), record(ray_address="127.0.0.1:1"))

    answer = force_stop(where(tmp_path), "nav-7")

    assert answer["ok"]
    assert "is gone" in answer["message"]
    found = recorded(where(tmp_path), "nav-7")
    assert found is not None
    assert found.state == "stopped"


def test_force_does_not_give_up_a_run_whose_process_lives(tmp_path: Path):
    import os

    put_record(where(tmp_path), record(ray_address="127.0.0.1:1", driver_pid=os.getpid()))

    with pytest.raises(RunUnreachableError):
        force_stop(where(tmp_path), "nav-7")


def test_stopping_a_run_that_has_ended_says_so(tmp_path: Path):
    put_record(where(tmp_path), record(state="done"))

    assert "has ended already: done" in stop_run(where(tmp_path), "nav-7")["message"]


def test_a_run_has_ended_when_it_says_so_or_its_coordinator_is_gone():
    wait_until_ended(RunHandle("a", Coordinator({"state": "draining"}, {"state": "stopped"})), sleep=lambda _: None)
    wait_until_ended(RunHandle("a", Coordinator(RunUnreachableError("gone"))), sleep=lambda _: None)
    endless = RunHandle("a", Coordinator(*[{"state": "draining"}] * 9))
    with pytest.raises(RunUnreachableError, match="has not ended after 1 s"):
        wait_until_ended(endless, timeout_s=1.0, sleep=lambda _: None)


def test_what_the_coordinator_refused_passes_through():
    with pytest.raises(ConfigError, match="unknown setting"):
        RunHandle("a", Coordinator(ConfigError("unknown setting"))).set("x", "1")


def test_a_log_is_followed_until_the_run_has_ended(tmp_path: Path):
    log = tmp_path / "run.log"
    log.write_text("one\n")
    ended = iter([False, True])

    def grow(_: float) -> None:
        log.write_text("one\ntwo\n")

    assert "".join(log_pieces(tmp_path, lambda: next(ended), sleep=grow)) == "one\ntwo\n"
    assert list(log_pieces(tmp_path)) == ["one\ntwo\n"]


def test_a_log_that_is_elsewhere_is_named(tmp_path: Path):
    with pytest.raises(RunUnknownError, match=r"run\.log cannot be read"):
        list(log_pieces(tmp_path / "none"))


def test_what_is_logged_is_in_the_runs_log(tmp_path: Path):
    handler = keep_log(tmp_path)
    logger = logging.getLogger("metta_ray.service.test")

    logger.warning("worker 3 is replaced")
    logging.getLogger("metta_ray").removeHandler(handler)
    handler.close()

    [line] = "".join(log_pieces(tmp_path)).splitlines()
    assert line.endswith("WARNING metta_ray.service.test: worker 3 is replaced")
