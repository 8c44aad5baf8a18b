"""What a person sees of a training, on a terminal and in a log."""

from __future__ import annotations

import io
from typing import Any

import pytest

from metta_ray.metrics.console import LiveDisplay, PlainDisplay, progress_line, state_text, training_display

PROGRESS: dict[str, Any] = {
    "epoch": 1,
    "agent_step": 2048,
    "total_timesteps": 20_480,
    "agent_steps_per_second": 12_377.4,
    "reward": 0.333,
    "workers": {"wanted": 4, "ready": 3},
    "staleness": {"mean": 0.75, "max": 1},
    "bottleneck": "limited by environments (62 % of worker time): add rollout workers",
    "state": "running",
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_has_progress_speed_reward_workers_staleness_and_what_limits():
    assert progress_line(PROGRESS) == (
        "[##··················]  10% epoch 1 · 2,048 agent steps · 12,377/s · reward 0.33 · workers 3/4 · "
        "staleness 0.8 · limited by environments (62 % of worker time): add rollout workers"
    )


def test_what_is_not_known_yet_is_left_out():
    assert progress_line({"epoch": 1, "agent_step": 5, "reward": None}) == (
        "[····················]   0% epoch 1 · 5 agent steps"
    )


def test_a_log_gets_one_line_per_epoch_without_colour_codes():
    stream = io.StringIO()

    with PlainDisplay(stream) as display:
        display.note("run a")
        for epoch in (0, 1, 1, 2):
            display.show(PROGRESS | {"epoch": epoch})

    lines = stream.getvalue().splitlines()
    assert lines[0] == "run a"
    assert ["epoch 1" in line for line in lines[1:]] == [True, False]
    assert "\x1b" not in stream.getvalue()


def test_the_coordinators_own_text_goes_first():
    stream = io.StringIO()

    PlainDisplay(stream).show(PROGRESS | {"text": "epoch 1 as the coordinator says it"})

    assert stream.getvalue() == "epoch 1 as the coordinator says it\n"


def test_a_change_of_state_is_told_once():
    stream = io.StringIO()
    display = PlainDisplay(stream)

    for _ in range(2):
        display.show({"state": "waiting", "waiting_for": "1 CPU for rollout-3"})
    display.show({"state": "paused"})
    display.show({"state": "running"})

    assert stream.getvalue().splitlines() == ["waiting for 1 CPU for rollout-3", "paused"]
    assert state_text({"state": "done"}) == ""


def test_a_closed_stream_ends_no_training():
    stream = io.StringIO()
    stream.close()

    PlainDisplay(stream).note("nobody listens")


def test_the_stream_decides_which_display():
    assert isinstance(training_display(io.StringIO()), PlainDisplay)
    assert isinstance(training_display(Terminal()), LiveDisplay)


def test_a_terminal_shows_all_of_it_and_keeps_notes(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    stream = Terminal()

    with training_display(stream) as display:
        display.note("restored [weights]")
        display.show(PROGRESS | {"epoch": 1})
        display.show(PROGRESS | {"epoch": 2, "state": "paused"})

    for part in ("restored [weights]", "2,048 of 20,480", "epoch 2", "12,377/s", "workers 3/4", "paused", "limited by"):
        assert part in stream.getvalue()


def test_progress_fits_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "72")
    stream = Terminal()

    with LiveDisplay(stream) as display:
        display.show(PROGRESS | {"total_timesteps": 100_000_000})

    assert "2,048 of 100,000,000 agent steps · epoch 1" in stream.getvalue()


def test_a_note_is_wrapped_between_words_and_a_path_stays_whole(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "40")
    path = "/a/path/of" + "/many/directories" * 4
    stream = Terminal()

    with LiveDisplay(stream) as display:
        display.note(f"a sentence that is longer than a line of forty {path}")

    written = [line.rstrip() for line in stream.getvalue().replace("\r", "").split("\n")]
    assert any(line.endswith("a sentence that is longer than a line of") for line in written), written
    assert path in stream.getvalue()
