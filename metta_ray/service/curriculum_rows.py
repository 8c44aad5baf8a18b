"""How the tasks of a run's curriculum stand, as plain values; also for a run that has ended, from its journal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metta_ray.common.errors import ConfigError
from metta_ray.envs.tasks import Curriculum
from metta_ray.rl.vecenv import training_factory
from metta_ray.service.audit import JOURNAL
from metta_ray.service.books import Books
from metta_ray.service.run_config import RunConfig
from metta_ray.state.journal import read_records

Reply = dict[str, Any]


def task_table(curriculum: Curriculum | None) -> Reply:
    """{"ok", "rows": one per task: task, probability, attempts, score, recent_score, learning_progress}."""
    if curriculum is None:
        return {"ok": False, "message": "the run trains in one environment, without a curriculum"}
    rows = getattr(curriculum, "task_rows", None)
    if rows is not None:
        return {"ok": True, "rows": [dict(row) for row in rows()]}
    table = curriculum.task_table()  # one of a user's own need not tell more
    names = [template.task_id for template in table.templates]
    return {
        "ok": True,
        "rows": [
            {"task": name, "probability": float(share)} for name, share in zip(names, table.probabilities, strict=True)
        ],
    }


def task_table_of_journal(run_dir: str | Path, config: dict[str, Any]) -> Reply:
    """As the coordinator would answer if it lived. JournalError without a readable journal."""
    trainer = RunConfig.model_validate(config).trainer
    books = Books.of_records(read_records(Path(run_dir) / JOURNAL), training_factory(trainer).curriculum())
    if books.is_new:
        raise ConfigError(f"the journal in {run_dir} is empty")
    return {**task_table(books.curriculum), "epoch": books.ledger.version, "agent_step": books.ledger.agent_step}
