"""Whether a curriculum will move at all, told beforehand."""

from __future__ import annotations

import numpy as np
import pytest

from metta_ray.mettagrid.curriculum.forecast import curriculum_note
from metta_ray.mettagrid.curriculum.resolve import resolve_curriculum

BUCKETED = "/env/mettagrid/curriculum/navigation/bucketed"


def test_a_run_in_which_few_episodes_end_is_told_what_it_lacks():
    note = curriculum_note(resolve_curriculum(BUCKETED), 1_000_000, agents_per_env=4)

    # 1,000,000 / (4 × 1000) episodes; 20 outcomes of each of 64 tasks are 1280 episodes of 4 × 195 or 4 × 1000 steps.
    assert note is not None
    assert "at most 250 episodes end, 3.9 of each task" in note
    assert "about 10 of each" in note
    assert "--trainer.env-overrides.max_steps 195), or 5,120,000 agent steps" in note


def test_what_the_sentence_advises_silences_it():
    assert curriculum_note(resolve_curriculum(BUCKETED, max_steps=195), 1_000_000, agents_per_env=4) is None
    assert curriculum_note(resolve_curriculum(BUCKETED), 5_120_000, agents_per_env=4) is None


def test_with_what_it_advises_the_weights_do_move_and_with_a_third_of_what_it_needs_they_do_not():
    def moved(outcomes_per_task: int) -> bool:
        curriculum, rng = resolve_curriculum(BUCKETED), np.random.default_rng(0)
        for _ in range(outcomes_per_task * len(curriculum.task_ids)):
            task = rng.choice(curriculum.task_ids, p=curriculum.task_table().probabilities)
            curriculum.complete_task(task, rng.uniform(0.1, 0.9))
        return bool(np.ptp(curriculum.task_table().probabilities) > 0)

    assert not moved(3)
    assert moved(20)


def test_a_run_that_is_shorter_than_any_episode_is_not_advised_to_shorten_them():
    note = curriculum_note(resolve_curriculum(BUCKETED), 1000, agents_per_env=4)

    assert note is not None
    assert "max_steps" not in note


@pytest.mark.parametrize("name", ["navigation/random", "navigation/progressive", "navigation/pool", "simple"])
def test_curricula_that_move_with_every_outcome_or_never_are_not_commented_on(name: str):
    assert curriculum_note(resolve_curriculum(f"/env/mettagrid/curriculum/{name}"), 1000, agents_per_env=4) is None


def test_one_that_has_moved_is_not_commented_on():
    curriculum = resolve_curriculum(BUCKETED)
    for task in curriculum.task_ids:
        for score in np.linspace(0.1, 1.0, 10):
            curriculum.complete_task(task, float(score))

    assert curriculum_note(curriculum, 1_000_000, agents_per_env=4) is None


def test_no_curriculum_and_one_of_another_kind_are_not_commented_on():
    assert curriculum_note(None, 1000, agents_per_env=4) is None
    assert curriculum_note(object(), 1000, agents_per_env=4) is None
