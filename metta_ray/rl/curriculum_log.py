"""How a curriculum stood in the course of a run: ``curriculum.jsonl``, for pages and for people's own programs.

One line now and then, ``{"epoch": 12, "agent_step": 196608, "tasks": {"<task id>": [probability, attempts, recent
score, learning progress]}}``; null where nothing is known yet, or the curriculum measures no progress.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from metta_ray.common.util.ranks import is_master
from metta_ray.envs.tasks import Curriculum

CURRICULUM_FILE = "curriculum.jsonl"
LINES = 200
"""So many in a whole run: the file of the largest curriculum stays at a few megabytes."""


class CurriculumLog:
    """Appends to a run's file; ``note`` is called after every epoch and writes every ``1 / LINES`` of the run.

    Only rank 0 writes: under ``torchrun``, where each rank has a curriculum of its own, that is rank 0's.
    """

    def __init__(self, run_dir: str | Path, total_timesteps: int) -> None:
        self.path = Path(run_dir) / CURRICULUM_FILE
        self._every = max(1, total_timesteps // LINES)
        self._next = 0
        self._is_master = is_master()

    def note(self, epoch: int, agent_step: int, curriculum: Curriculum | None) -> None:
        """None: environments without tasks, of which nothing is written. OSError where the disk does not take it."""
        if curriculum is None or not self._is_master or agent_step < self._next:
            return
        self._next = (agent_step // self._every + 1) * self._every
        line = {"epoch": epoch, "agent_step": agent_step, "tasks": _tasks(curriculum)}
        with self.path.open("a") as file:
            file.write(json.dumps(line, separators=(",", ":")) + "\n")


def _tasks(curriculum: Curriculum) -> dict[str, list[float | None]]:
    """A user's own curriculum need not have rows: of any there is a table."""
    if not hasattr(curriculum, "task_rows"):
        table = curriculum.task_table()
        return {
            template.task_id: [_short(probability), None, None, None]
            for template, probability in zip(table.templates, table.probabilities, strict=True)
        }
    names = ("probability", "attempts", "recent_score", "learning_progress")
    return {row["task"]: [_short(row[name]) for name in names] for row in curriculum.task_rows()}


def _short(number: Any) -> float | None:
    return None if number is None else float(f"{number:.5g}")
