"""Tables of runs, status and ledger."""

from __future__ import annotations

import io
from typing import Any

from metta_ray.metrics.run_tables import print_ledger, print_runs, print_status, print_worker_totals
from metta_ray.metrics.tables import age, plain_table, print_table, shown

STATUS: dict[str, Any] = {
    "run": "nav-7",
    "state": "running",
    "message": "",
    "generation": 2,
    "agent_step": 500,
    "total_timesteps": 1000,
    "epoch": 5,
    "reward": 0.5,
    "agent_steps_per_second": 12_345.6,
    "staleness": {"mean": 0.8, "max": 2, "histogram": {"0": 1}},
    "workers": {
        "wanted": 2,
        "ready": 1,
        "starting": 1,
        "list": [{"stream": 0, "slot": 0, "state": "ready", "pid": 12345, "node": "n", "tickets": 2, "fragments": 9}],
    },
    "learners": [{"name": "metta/nav-7/learner-0", "rank": 0, "state": "ready", "pid": 2345, "node": "n"}],
    "ledger": {
        "issued": 1000,
        "trained": 500,
        "dropped": {"stale": 100},
        "lost": {"crash": 100},
        "in_flight": 200,
        "queued": 100,
    },
    "bottleneck": "limited by environments",
    "failures": {"crash": 1, "hang": 0},
    "checkpoint": {"path": "/runs/nav-7/checkpoints/model_0004", "epoch": 4, "age_s": 300.0},
    "waiting_for": "1 CPU",
    "events": [{"kind": "replace", "text": "crash: first failure of slot 0"}],
}


def printed(write: Any, *arguments: Any) -> str:
    stream = io.StringIO()
    write(*arguments, stream)
    return stream.getvalue()


def test_columns_are_aligned_numbers_to_the_right():
    assert plain_table(("name", "steps"), [["a", 1_234_567], ["bcdef", None]]) == [
        "name       steps",
        "a      1,234,567",
        "bcdef          -",
    ]


def test_values_are_shown_for_people():
    assert [shown(value) for value in (None, True, 1234, 0.12345, 12_345.6, "x")] == [
        "-",
        "yes",
        "1,234",
        "0.123",
        "12,346",
        "x",
    ]
    assert [age(seconds) for seconds in (-1, 5, 300, 10_000, 200_000)] == ["0 s", "5 s", "5 min", "3 h", "2 d"]


def test_status_says_what_a_person_asks_first():
    text = printed(print_status, STATUS)

    for part in (
        "nav-7",
        "500 of 1,000 (50%)",
        "2 wanted, 1 ready, 1 starting",
        "1 CPU",
        "mean 0.80, max 2",
        "crash 1",
        "model_0004 (epoch 4, 5 min old)",
        "dropped: stale",
        "metta/nav-7/learner-0",
        "replace: crash: first failure",
    ):
        assert part in text
    assert "12345" in text  # a process id is no amount
    assert "hang" not in text


def test_a_status_without_sections_is_only_facts():
    assert printed(print_status, {"run": "a", "state": "starting"}).splitlines() == ["run    a", "state  starting"]


def test_lost_evaluators_are_told_by_cause_and_why_there_are_no_more():
    evaluations = {"done": 3, "failures": {"crash": 2, "hang": 1}, "given_up": None}
    lines = printed(print_status, STATUS | {"evaluations": evaluations}).splitlines()
    assert [line.split() for line in lines if line.startswith("lost evaluators")] == [
        ["lost", "evaluators", "crash", "2,", "hang", "1"]
    ]

    text = printed(print_status, STATUS | {"evaluations": evaluations | {"given_up": "9 evaluators lost in 300 s"}})
    assert "crash 2, hang 1; given up: 9 evaluators lost in 300 s" in text


def test_every_agent_step_has_its_row_and_share():
    lines = printed(print_ledger, STATUS["ledger"]).splitlines()

    assert [line.split()[-1] for line in lines] == ["share", "50.0%", "10.0%", "10.0%", "20.0%", "10.0%", "100.0%"]


def test_an_empty_ledger_has_no_shares():
    empty = {"issued": 0, "trained": 0, "dropped": {}, "lost": {}, "in_flight": 0, "queued": 0}

    assert printed(print_ledger, empty).splitlines()[-1].split() == ["issued", "0", "-"]


def test_runs_and_workers_are_listed():
    record = {
        "name": "a",
        "state": "done",
        "agent_step": 10,
        "total_timesteps": 10,
        "updated": 100.0,
        "run_dir": "/d/a",
    }
    worker = {"fragments": 1, "issued": 64, "trained": 64, "dropped": 0, "lost": 0, "open": 0}

    stream = io.StringIO()
    print_runs([record], 400.0, stream)

    assert "5 min ago" in stream.getvalue()
    assert printed(print_worker_totals, {3: worker}).splitlines()[1].split() == ["3", "1", "64", "64", "0", "0", "0"]


def test_a_terminal_gets_lines_around_the_same_table():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    print_table(("name", "steps"), [["[a]", 1234]], stream, "title")

    assert "[a]" in stream.getvalue()
    assert "1,234" in stream.getvalue()
    assert "┃" in stream.getvalue()
