"""Sampling weights of the learning-progress curriculum against a calculation by hand."""

import numpy as np
import pytest

from metta_ray.mettagrid.curriculum.learning_progress import (
    LearningProgressConfig,
    LearningProgressCurriculum,
)
from metta_ray.mettagrid.task_spec import FixedTask, TaskSpec


def curriculum_of(*task_ids: str, **settings: float) -> LearningProgressCurriculum:
    templates = [FixedTask(TaskSpec(), task_id) for task_id in task_ids]
    return LearningProgressCurriculum(templates, LearningProgressConfig(**settings), seed=0)


def weights_of(curriculum: LearningProgressCurriculum) -> list[float]:
    return list(curriculum.get_task_probs().values())


def test_weights_follow_the_hand_calculation_for_a_scripted_sequence_of_scores():
    # α = 0.5, ε = 0.05, memory 2, recompute after 2 new scores of an active task. All draws of active tasks
    # are uniform, and 200 draws make all three tasks active every time.
    curriculum = curriculum_of(
        *("A", "B", "C"),
        ema_timescale=0.5,
        sample_threshold=2,
        memory=2,
        num_active_tasks=200,
        rand_task_rate=1.0,
    )
    assert weights_of(curriculum) == pytest.approx([1 / 3] * 3)

    # First recompute, at A's second score (1.5 counts as 1):
    #     s    = (0.3, 0.1, 1)
    #     b    = (0.3, 0.1, 0.75)
    #     q    = (0, 0, 0.25 / 0.25) = (0, 0, 1) = fast = slow;  true = s
    #     progress = 0 everywhere; true > 0 everywhere, so all are candidates with z = 0, sigmoid 0.5
    for task, score in [("A", 0.2), ("B", 0.1), ("C", 1.5), ("A", 0.4)]:
        curriculum.complete_task(task, score)
    assert curriculum.task_table().version == 1
    assert weights_of(curriculum) == pytest.approx([1 / 3] * 3)

    # Second recompute, again at A's second new score:
    #     stored scores   A .2 .4 .65 .65     B .1 .82        C 1 0
    #     s               0.475               0.46            0.5
    #     q               .175/.7 = 0.25      .36/.9 = 0.4    max(-.25, 0) = 0
    #     fast            0.125               0.2             0.5
    #     slow            0.0625              0.1             0.75
    #     w(p) = .95 p / (.05 + .9 p)
    #     w(fast)         .11875/.1625        .19/.23         .475/.5
    #                     = 0.730769          = 0.826087      = 0.95
    #     w(slow)         .059375/.10625      .095/.14        .7125/.725
    #                     = 0.558824          = 0.678571      = 0.982759
    #     progress        0.171946            0.147516        0.032759      mean 0.117407, deviation 0.060681
    #     z               0.89878             0.49619         -1.39497
    #     sigmoid         0.71070             0.62156         0.19862       sum 1.53088
    #     weight          0.46424             0.40602         0.12974
    for task, score in [("B", 0.82), ("C", -3.0), ("A", 0.65), ("A", 0.65)]:
        curriculum.complete_task(task, score)
    assert curriculum.task_table().version == 2
    assert weights_of(curriculum) == pytest.approx([0.46424, 0.40602, 0.12974], abs=2e-5)

    # Third: the two latest scores of each task were kept: A .65 .65, B .1 .82, C 1 0. Two more of A:
    #     s               (.65+.65+1+1)/4 = 0.825     0.46                0.5
    #     q               .525/.7 = 0.75              0.4                 0
    #     fast            .375 + .0625 = 0.4375       .2 + .1 = 0.3       0.25
    #     slow            .21875 + .03125 = 0.25      .15 + .05 = 0.2     .125 + .375 = 0.5
    #     w(fast)         .415625/.44375 = 0.936620   .285/.32 = 0.890625 .2375/.275 = 0.863636
    #     w(slow)         0.863636                    0.826087            0.95
    #     progress        0.072983                    0.064538            0.086364
    #     mean 0.074628, deviation 0.008985; z = (-0.18309, -1.12296, 1.30605)
    #     sigmoid         0.45435                     0.24546             0.78684   sum 1.48665
    curriculum.complete_task("A", 1.0)
    curriculum.complete_task("A", 1.0)
    assert weights_of(curriculum) == pytest.approx([0.30562, 0.16511, 0.52927], abs=1e-4)


def test_only_active_tasks_enter_the_averages():
    # First recompute: only A has scored, so A alone is a candidate, has all the weight, and (no uniform
    # draws) is the only active task.
    curriculum = curriculum_of("A", "B", ema_timescale=0.5, sample_threshold=1, rand_task_rate=0.0)
    curriculum.complete_task("A", 0.5)
    assert weights_of(curriculum) == [1.0, 0.0]

    # B is not active: its scores neither cause a recompute nor count in the next one, so B stays at 0.
    curriculum.complete_task("B", 1.0)
    assert curriculum.task_table().version == 1
    curriculum.complete_task("A", 0.5)
    assert curriculum.task_table().version == 2
    assert weights_of(curriculum) == [1.0, 0.0]


def test_without_candidates_all_tasks_are_equal():
    curriculum = curriculum_of("A", "B", "C", "D", sample_threshold=1)

    curriculum.complete_task("A", 0.0)

    assert curriculum.task_table().version == 1
    assert weights_of(curriculum) == [0.25] * 4


def test_a_uniform_share_is_mixed_into_the_weights():
    # Weights by progress (1, 0); 0.2 of the episodes uniform: 0.8 · (1, 0) + 0.2 · (½, ½).
    curriculum = curriculum_of("A", "B", sample_threshold=1, uniform_share=0.2)

    curriculum.complete_task("A", 0.5)

    assert weights_of(curriculum) == pytest.approx([0.9, 0.1])


def test_weights_always_sum_to_one():
    curriculum = curriculum_of(*"ABCDEFGH", ema_timescale=0.1, sample_threshold=3)
    rng = np.random.default_rng(0)

    for _ in range(500):
        curriculum.complete_task("ABCDEFGH"[rng.integers(8)], rng.random())
        assert sum(weights_of(curriculum)) == pytest.approx(1.0)
    assert curriculum.task_table().version > 20
