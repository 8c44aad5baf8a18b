"""What a rollout's episodes are drawn from does not depend on when the curriculum hears of others."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest

from metta_ray.envs.registry import MettaGridFactory
from metta_ray.envs.tasks import TaskTable
from metta_ray.mettagrid.task_spec import FixedTask, TaskSpec
from metta_ray.rl.vecenv import make_vecenv


class RecordedTable(TaskTable):
    drawn: ClassVar[list[int]] = []

    def draw(self, rng: np.random.Generator, env_index: int = 0, episode: int = 0) -> tuple[str, Any]:
        RecordedTable.drawn.append(self.version)
        return super().draw(rng, env_index, episode)


class Restless:
    """Changes its table with every episode."""

    def __init__(self) -> None:
        self.version = 0

    def task_table(self) -> TaskTable:
        spec = TaskSpec(kind="smoke", max_steps=5)
        return RecordedTable(self.version, (FixedTask(spec, "smoke"),), np.ones(1))

    def complete_task(self, task_id: str, score: float) -> None:
        self.version += 1


@pytest.mark.parametrize("pins", [True, False])
def test_a_rollout_draws_from_the_table_as_it_was_at_its_start(pins: bool):
    RecordedTable.drawn = []
    curriculum: Any = Restless()
    factory = MettaGridFactory("mettagrid:smoke", table=curriculum.task_table())
    vecenv = make_vecenv(factory, "serial", 2, 2, 1, curriculum=curriculum, is_training=False)
    vecenv.async_reset(0)

    def roll_out(steps: int) -> set[int]:
        if pins:
            vecenv.pin_tasks()
        RecordedTable.drawn = []
        for _ in range(steps):
            received = vecenv.recv()
            vecenv.send(np.zeros(len(received.rewards), np.int32))
        return set(RecordedTable.drawn)

    roll_out(6)
    before = curriculum.version
    drawn = roll_out(12)
    vecenv.close()

    assert before > 0
    assert drawn == {before} if pins else len(drawn) > 1
