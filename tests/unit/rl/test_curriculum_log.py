"""curriculum.jsonl: how a curriculum stood, written now and then."""

import json

import numpy as np

from metta_ray.envs.tasks import TaskTable
from metta_ray.mettagrid.curriculum.core import RandomCurriculum
from metta_ray.mettagrid.task_spec import FixedTask, TaskSpec
from metta_ray.rl.curriculum_log import CURRICULUM_FILE, LINES, CurriculumLog


def lines_of(folder):
    return [json.loads(line) for line in (folder / CURRICULUM_FILE).read_text().splitlines()]


def test_a_line_has_probability_attempts_recent_score_and_progress_of_each_task(tmp_path):
    curriculum = RandomCurriculum([FixedTask(TaskSpec(), name) for name in "ab"], weights=[1, 3])
    curriculum.complete_task("a", 0.5)
    curriculum.complete_task("a", 0.25)

    CurriculumLog(tmp_path, total_timesteps=1000).note(1, 10, curriculum)

    assert lines_of(tmp_path) == [
        {"epoch": 1, "agent_step": 10, "tasks": {"a": [0.25, 2.0, 0.375, None], "b": [0.75, 0.0, None, None]}}
    ]


def test_a_run_has_a_line_for_each_part_of_its_steps_and_no_more(tmp_path):
    curriculum = RandomCurriculum([FixedTask(TaskSpec(), "a")])
    log = CurriculumLog(tmp_path, total_timesteps=LINES * 100)

    for epoch, step in enumerate((50, 99, 100, 150, 420, 430, 500), start=1):
        log.note(epoch, step, curriculum)

    assert [line["agent_step"] for line in lines_of(tmp_path)] == [50, 100, 420, 500]


def test_of_a_curriculum_without_rows_the_table_is_told(tmp_path):
    class Own:
        def task_table(self):
            return TaskTable(3, (FixedTask(TaskSpec(), "x"),), np.array([1.0]))

    CurriculumLog(tmp_path, 10).note(1, 1, Own())

    assert lines_of(tmp_path)[0]["tasks"] == {"x": [1.0, None, None, None]}


def test_nothing_is_written_without_a_curriculum_or_by_another_rank(tmp_path, monkeypatch):
    CurriculumLog(tmp_path, 10).note(1, 1, None)
    monkeypatch.setenv("RANK", "1")
    CurriculumLog(tmp_path, 10).note(1, 1, RandomCurriculum([FixedTask(TaskSpec(), "a")]))

    assert not (tmp_path / CURRICULUM_FILE).exists()
