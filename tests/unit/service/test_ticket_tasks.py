"""Tasks that a ticket brings: the coordinator's curriculum as a worker sees it, also when its tasks come and go."""

import pickle

import numpy as np
import pytest

from metta_ray.common.util.state_directory import tree_from_bytes, tree_to_bytes
from metta_ray.mettagrid.curriculum.core import Curriculum
from metta_ray.mettagrid.curriculum.resolve import resolve_curriculum
from metta_ray.service.rollout_worker import TicketTasks


@pytest.mark.parametrize("path", ["curriculum/navigation/pool", "curriculum/navigation/bucketed", "curriculum/all"])
def test_a_worker_draws_what_the_coordinator_would_and_every_outcome_counts_once(path):
    coordinator, worker = resolve_curriculum(path), TicketTasks(resolve_curriculum(path).task_table())
    rng = np.random.default_rng(1)
    for ticket in range(40):
        worker.use(pickle.loads(pickle.dumps(coordinator.task_table().weights)))
        for _ in range(8):
            task_id, spec = worker.task_table().draw(rng)
            assert spec_of(coordinator, task_id, spec)
            worker.complete_task(task_id, ticket % 3 / 2)
        outcomes, worker.outcomes = worker.outcomes, []
        for task_id, score in outcomes:
            coordinator.complete_task(task_id, score)

    stats = coordinator.get_curriculum_stats()
    assert stats["completions"] + stats.get("pool/late", 0) == 320
    assert stats.get("pool/evicted", 1) > 0


def spec_of(curriculum: Curriculum, task_id: str, spec) -> bool:
    template = dict(zip(curriculum.task_ids, curriculum.task_table().templates, strict=True))[task_id]
    return type(template.draw(np.random.default_rng(0))) is type(spec)


def test_a_worker_that_is_restored_has_the_tasks_that_it_had():
    coordinator = resolve_curriculum("curriculum/navigation/pool")
    while coordinator.get_curriculum_stats()["pool/evicted"] < 3:
        coordinator.complete_task(coordinator.get_task().id(), 0.0)
    worker = TicketTasks(resolve_curriculum("curriculum/navigation/pool").task_table())
    worker.use(coordinator.task_table().weights)

    restored = TicketTasks(resolve_curriculum("curriculum/navigation/pool").task_table())
    restored.load_state_dict(tree_from_bytes(tree_to_bytes(worker.state_dict())))

    assert [t.task_id for t in restored.task_table().templates] == list(coordinator.task_ids)
    assert restored.task_table().version == coordinator.task_table().version
