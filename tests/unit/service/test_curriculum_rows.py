"""How tasks stand, of a run that lives and of one that has ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from metta_ray.rl.vecenv import training_factory
from metta_ray.service.books import Books
from metta_ray.service.curriculum_rows import task_table, task_table_of_journal
from metta_ray.service.run_config import load_run_config


def test_an_ended_run_answers_what_its_coordinator_would_have(tmp_path: Path):
    config = load_run_config(None, {"preset": "navigation"})
    curriculum: Any = training_factory(config.trainer).curriculum()
    books = Books(tmp_path, curriculum)
    task = curriculum.task_ids[0]
    for number, score in enumerate((0.25, 0.75)):
        books.record({"kind": "issue", "ticket": number, "worker": 0, "steps": 64})
        outcomes = [[task, score]]
        books.record({"kind": "deliver", "ticket": number, "version": 0, "counted": 64, "outcomes": outcomes})
        books.compact() if number == 0 else None

    answer = task_table_of_journal(tmp_path, config.record())

    assert answer["rows"] == task_table(curriculum)["rows"]
    [row] = [row for row in answer["rows"] if row["task"] == task]
    assert (row["attempts"], row["score"]) == (2, pytest.approx(0.5))
    assert sum(row["probability"] for row in answer["rows"]) == pytest.approx(1.0)


def test_a_run_without_a_curriculum_says_so():
    assert "without a curriculum" in task_table(None)["message"]
