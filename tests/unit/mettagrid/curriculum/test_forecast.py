"""Whether a curriculum will move at all, told beforehand."""

from __future__ import annotations

import numpy as np
import pytest

from metta_ray.mettagrid.curriculum.forecast import curriculum_note
from metta_ray.mettagrid.curriculum.resolve import resolve_curriculum

BUCKETED = "/env/mettagrid/curriculum/navigation/bucketed"


def test_a_run_in_which_few_episodes_end_is_told_what_it_lacks():
    note = curriculum_note(resolve_curriculum(BUCKETED), 1_000_000, agents_per_env=4)

    # 1,000,000 / (4 × 1000) episodes; 10 outcomes of each of 64 tasks are 640 episodes of 390 or 4 × 1000 agent steps.
    assert note is not None
    assert "at most 250 episodes end, 3.9 of each task" in note
    assert "after 10 of one" in note
    assert "--trainer.env-overrides.max_steps 390), or 2,560,000 agent steps" in note


def test_what_the_sentence_advises_silences_it():
    assert curriculum_note(resolve_curriculum(BUCKETED, max_steps=390), 1_000_000, agents_per_env=4) is None
    assert curriculum_note(resolve_curriculum(BUCKETED), 2_560_000, agents_per_env=4) is None


def test_a_run_that_is_shorter_than_any_episode_is_not_advised_to_shorten_them():
    note = curriculum_note(resolve_curriculum(BUCKETED), 1000, agents_per_env=4)

    assert note is not None
    assert "max_steps" not in note


@pytest.mark.parametrize("name", ["navigation/random", "navigation/progressive", "navigation/pool", "simple"])
def test_curricula_that_move_with_every_outcome_or_never_are_not_commented_on(name: str):
    assert curriculum_note(resolve_curriculum(f"/env/mettagrid/curriculum/{name}"), 1000, agents_per_env=4) is None


def test_one_that_has_moved_is_not_commented_on():
    curriculum = resolve_curriculum(BUCKETED)
    task = curriculum.task_ids[0]
    for score in np.linspace(0.0, 1.0, 10):
        curriculum.complete_task(task, float(score))

    assert curriculum_note(curriculum, 1_000_000, agents_per_env=4) is None


def test_no_curriculum_and_one_of_another_kind_are_not_commented_on():
    assert curriculum_note(None, 1000, agents_per_env=4) is None
    assert curriculum_note(object(), 1000, agents_per_env=4) is None
