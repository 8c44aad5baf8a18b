"""The rules of the curricula against calculations by hand."""

import math
from pathlib import Path

import numpy as np
import pytest

from metta_ray.common.errors import CheckpointError, ConfigError, UsageError
from metta_ray.common.util.state_directory import load_tree, save_tree
from metta_ray.mettagrid.curriculum.core import Curriculum, RandomCurriculum, SingleTaskCurriculum
from metta_ray.mettagrid.curriculum.nested import NestedCurriculum
from metta_ray.mettagrid.curriculum.pool import TaskGenerator, TaskPoolConfig, TaskPoolCurriculum
from metta_ray.mettagrid.curriculum.prioritize_regressed import PrioritizeRegressedConfig, PrioritizeRegressedCurriculum
from metta_ray.mettagrid.curriculum.progressive import (
    GrowingMapConfig,
    GrowingMapCurriculum,
    ProgressiveConfig,
    ProgressiveCurriculum,
)
from metta_ray.mettagrid.curriculum.sequential_trials import SequentialTrialsConfig, SequentialTrialsCurriculum
from metta_ray.mettagrid.task_spec import FixedTask, TaskSpec


def tasks(*names: str) -> list[FixedTask]:
    return [FixedTask(TaskSpec(altars=index + 1), name) for index, name in enumerate(names)]


def probabilities(curriculum: Curriculum) -> list[float]:
    return list(curriculum.get_task_probs().values())


# ---- fixed weights, and what the tables show ----


def test_weights_are_made_shares():
    assert probabilities(RandomCurriculum(tasks("a", "b", "c"), [5, 3, 2])) == [0.5, 0.3, 0.2]
    assert probabilities(RandomCurriculum(tasks("a", "b"))) == [0.5, 0.5]


@pytest.mark.parametrize("weights", [[1], [1, -1], [0, 0], [1, math.inf]])
def test_weights_that_are_no_shares_are_refused(weights):
    with pytest.raises(ConfigError, match="weights="):
        RandomCurriculum(tasks("a", "b"), weights)


def test_rows_tell_attempts_and_mean_and_recent_scores():
    curriculum = RandomCurriculum(tasks("a", "b"), [3, 1])
    for score in [0.0] * 10 + [1.0] * 15 + [0.6] * 5:  # the last 20: 15 ones and 5 of 0.6
        curriculum.complete_task("a", score)

    first, second = curriculum.task_rows()

    assert first == {
        "task": "a",
        "probability": 0.75,
        "attempts": 30,
        "score": pytest.approx(18 / 30),
        "recent_score": pytest.approx(18 / 20),
        "learning_progress": None,
    }
    assert second == {
        "task": "b",
        "probability": 0.25,
        "attempts": 0,
        "score": None,
        "recent_score": None,
        "learning_progress": None,
    }


# ---- prioritise what regressed ----


def test_what_fell_below_its_best_is_drawn_more():
    curriculum = PrioritizeRegressedCurriculum(
        tasks("a", "b", "c"), PrioritizeRegressedConfig(moving_average_decay=0.5)
    )

    curriculum.complete_task("a", 1.0)  # average 0.5, best 1: weight 2; the others 1e-6
    assert probabilities(curriculum) == pytest.approx([1, 0, 0], abs=1e-5)

    curriculum.complete_task("a", 0.0)  # average 0.25, best 1: weight 4
    curriculum.complete_task("b", 0.5)  # average 0.25, best 0.5: weight 2
    assert probabilities(curriculum) == pytest.approx([4 / 6, 2 / 6, 0], abs=1e-5)
    assert [row["learning_progress"] for row in curriculum.task_rows()] == [0.75, 0.25, 0.0]


def test_a_uniform_share_keeps_tasks_that_were_never_tried():
    config = PrioritizeRegressedConfig(uniform_share=0.3)
    curriculum = PrioritizeRegressedCurriculum(tasks("a", "b", "c"), config)
    curriculum.complete_task("a", 1.0)
    assert probabilities(curriculum) == pytest.approx([0.8, 0.1, 0.1], abs=1e-4)


# ---- from easy to hard ----


def progressive(count: int = 3, **settings) -> ProgressiveCurriculum:
    config = ProgressiveConfig(
        **{
            "blending": "linear",
            "smoothing": 0.5,
            "performance_threshold": 0.7,
            "progression_rate": 0.25,
            **settings,
        }
    )
    return ProgressiveCurriculum(tasks(*"abcdefgh"[:count]), config)


def test_the_window_moves_when_the_smoothed_score_is_good():
    curriculum = progressive()
    assert probabilities(curriculum) == [1, 0, 0]

    curriculum.complete_task("a", 1.0)  # smoothed 0.5
    assert probabilities(curriculum) == [1, 0, 0]

    curriculum.complete_task("a", 1.0)  # 0.75: progress 0.25, centre 0.5, half way between two tasks
    assert probabilities(curriculum) == [0.5, 0.5, 0]

    curriculum.complete_task("a", 1.0)  # 0.875: centre 1
    assert probabilities(curriculum) == [0, 1, 0]

    curriculum.complete_task("b", 0.0)  # 0.4375: stays
    assert probabilities(curriculum) == [0, 1, 0]


def test_in_time_mode_every_episode_counts_until_the_last_task():
    curriculum = progressive(mode="time")
    for _ in range(7):
        curriculum.complete_task("a", 0.0)
    assert curriculum.progress == 1.0
    assert probabilities(curriculum) == [0, 0, 1]


def test_a_logistic_window_has_soft_edges():
    # K = 2, centre 0, smoothness 0.5, σ the logistic function:
    #   a  σ(0.5 / 0.5) σ(0.5 / 0.5)   = 0.731059² = 0.534447
    #   b  σ(-0.5 / 0.5) σ(1.5 / 0.5)  = 0.268941 · 0.952574 = 0.256187
    assert probabilities(progressive(2, blending="logistic")) == pytest.approx([0.675970, 0.324030], abs=1e-5)


def test_rooms_grow_with_success_up_to_the_largest():
    curriculum = GrowingMapCurriculum(TaskSpec(), GrowingMapConfig())
    assert curriculum.task_ids == ("side=10", "side=20", "side=40", "side=80", "side=100")
    spec = curriculum.get_task().env_cfg()
    assert (spec.width, spec.height) == (10, 10)

    curriculum.complete_task("side=10", 0.5)  # not above
    assert curriculum.stage == 0
    curriculum.complete_task("side=10", 0.6)
    curriculum.complete_task("side=10", 0.6)  # an episode that was still under way: no second step
    assert probabilities(curriculum) == [0, 1, 0, 0, 0]
    for side in (20, 40, 80, 100, 100):
        curriculum.complete_task(f"side={side}", 1.0)
    assert probabilities(curriculum) == [0, 0, 0, 0, 1]


def test_sizes_that_shrink_are_refused():
    with pytest.raises(ConfigError, match="largest_side=10 is below first_side=20"):
        GrowingMapCurriculum(TaskSpec(), GrowingMapConfig(first_side=20, largest_side=10))


# ---- trials ----


def trials(**settings) -> SequentialTrialsCurriculum:
    config = SequentialTrialsConfig(regression_threshold=0.2, **settings)
    return SequentialTrialsCurriculum(TaskSpec(), [{"altars": 1}, {"altars": [2, 3]}, {"altars": 4}], config)


def test_trials_advance_fall_back_and_end_with_the_sum_of_their_scores():
    curriculum = trials()
    path = []
    for score in (0.6, 0.1, 0.9, 0.4, 0.7, 0.5):
        curriculum.complete_task(f"trial={curriculum.trial}", score)
        path.append(curriculum.trial)

    assert path == [1, 0, 1, 1, 2, 0]  # 0.4 is neither; 0.5 passes the last trial
    assert curriculum.course_scores == [pytest.approx(0.6 + 0.1 + 0.9 + 0.4 + 0.7 + 0.5)]
    assert probabilities(curriculum) == [1, 0, 0]


def test_a_course_ends_after_max_trials():
    curriculum = trials(max_trials=2)
    for score in (0.3, 0.4):
        curriculum.complete_task("trial=0", score)
    assert curriculum.course_scores == [pytest.approx(0.7)]


def test_a_trial_may_take_several_episodes_and_ignores_those_of_other_trials():
    curriculum = trials(episodes_per_trial=2)
    curriculum.complete_task("trial=0", 1.0)
    curriculum.complete_task("trial=2", 1.0)
    assert curriculum.trial == 0
    curriculum.complete_task("trial=0", 0.0)  # mean 0.5
    assert curriculum.trial == 1
    assert curriculum.get_task().env_cfg().altars in (2, 3)


def test_thresholds_in_the_wrong_order_are_refused():
    with pytest.raises(ConfigError, match=r"regression_threshold=0\.2 is above advancement_threshold=0\.1"):
        trials(advancement_threshold=0.1)


# ---- curricula of curricula ----


def nested() -> NestedCurriculum:
    inner = ProgressiveCurriculum(
        tasks("x", "y"), ProgressiveConfig(blending="linear", mode="time", progression_rate=1.0)
    )
    outer = PrioritizeRegressedCurriculum(tasks("one", "two"), PrioritizeRegressedConfig(moving_average_decay=0.5))
    return NestedCurriculum(outer, {"one": inner, "two": SingleTaskCurriculum("z", TaskSpec())})


def test_a_result_moves_the_child_and_the_choice_among_children():
    curriculum = nested()
    assert curriculum.task_ids == ("one/x", "one/y", "two/z")
    assert probabilities(curriculum) == [0.5, 0, 0.5]

    curriculum.complete_task("one/x", 1.0)  # weight of one: 1 / 0.5, of two: 1e-6; one's progress is 1: y
    assert probabilities(curriculum) == pytest.approx([0, 1, 0], abs=1e-5)

    curriculum.complete_task("two/z", 1.0)
    assert probabilities(curriculum) == pytest.approx([0, 0.5, 0.5], abs=1e-5)
    assert curriculum.task_table().version == 2
    assert [row["attempts"] for row in curriculum.task_rows()] == [1, 0, 1]


def test_children_must_be_those_of_the_chooser_and_no_pools():
    with pytest.raises(ConfigError, match="are not the children"):
        NestedCurriculum(RandomCurriculum(tasks("a")), {"b": RandomCurriculum(tasks("x"))})
    with pytest.raises(ConfigError, match="'a' is a pool"):
        NestedCurriculum(RandomCurriculum(tasks("a")), {"a": pool()})


# ---- the pool ----


def pool(*, fixed_maps: bool = False, seed: int = 0, **settings) -> TaskPoolCurriculum:
    config = TaskPoolConfig(
        **{
            "num_active_tasks": 3,
            "ema_timescale": 0.5,
            "recompute_every": 4,
            "min_attempts": 2,
            "success_bonus": 0.0,
            "least_score": 0.01,
            **settings,
        }
    )
    generator = TaskGenerator(tasks("few", "many"), [1, 3], seed=seed, fixed_maps=fixed_maps)
    return TaskPoolCurriculum(generator, config)


def numbered(curriculum: TaskPoolCurriculum) -> dict[int, str]:
    return {int(task_id.rpartition("#")[2]): task_id for task_id in curriculum.task_ids}


def test_the_task_of_least_progress_leaves_and_the_others_are_drawn_by_theirs():
    # ε = 0.05, α = 0.5:
    #   #0  0.2, 0.6   fast 0.4, slow 0.2 + 0.1 · 0.4 = 0.24
    #                  w = .95 p / (.05 + .9 p): 0.38 / 0.41 = 0.926829, 0.228 / 0.266 = 0.857143; score 0.069686
    #   #1  0, 0       score 0.01        leaves: 2 attempts, and the lowest with the least number
    #   #2  not tried  score 0.01
    #   z of (0.069686, 0.01, 0.01): (1.414214, -0.707107, -0.707107); σ 0.804430, 0.330241, 0.330241
    curriculum = pool()
    names = numbered(curriculum)
    for number, score in ((0, 0.2), (1, 0.0), (0, 0.6)):
        curriculum.complete_task(names[number], score)
    assert curriculum.task_table().version == 0
    assert probabilities(curriculum) == pytest.approx([1 / 3] * 3)

    curriculum.complete_task(names[1], 0.0)

    assert list(numbered(curriculum)) == [0, 3, 2]
    assert probabilities(curriculum) == pytest.approx([0.549121, 0.225440, 0.225440], abs=1e-4)
    assert curriculum.task_table().weights.numbers.tolist() == [0, 3, 2]
    assert [row["attempts"] for row in curriculum.task_rows()] == [2, 0, 0]
    assert curriculum.task_rows()[0]["learning_progress"] == pytest.approx(0.069686, abs=1e-5)


def test_results_of_tasks_that_left_are_counted_and_of_tasks_that_never_were_refused():
    curriculum = pool()
    gone = numbered(curriculum)[1]
    for _ in range(4):
        curriculum.complete_task(gone, 0.0)
    assert gone not in curriculum.task_ids

    curriculum.complete_task(gone, 1.0)

    assert curriculum.get_curriculum_stats()["pool/late"] == 1
    with pytest.raises(UsageError, match="is not of this curriculum"):
        curriculum.complete_task("few#4", 1.0)


def test_tasks_never_run_out_and_every_process_makes_the_same():
    curriculum, other = pool(fixed_maps=True), pool(fixed_maps=True).task_table()
    for _ in range(400):
        curriculum.complete_task(curriculum.get_task().id(), 0.0)

    other = other.with_weights(curriculum.task_table().weights)

    assert curriculum.generated > 50
    assert [t.task_id for t in other.templates] == list(curriculum.task_ids)
    assert [t.spec for t in other.templates] == [t.spec for t in curriculum.task_table().templates]
    assert len({t.spec.map_seed for t in other.templates}) == 3
    assert (
        pool(seed=1, fixed_maps=True).task_table().templates[0].spec
        != pool(fixed_maps=True).task_table().templates[0].spec
    )


def test_families_are_drawn_by_their_weights():
    generator = TaskGenerator(tasks("few", "many"), [1, 3])
    names = [task.task_id.partition("#")[0] for task in generator.tasks(np.arange(2000))]
    assert abs(names.count("many") / 2000 - 0.75) < 0.04  # four standard errors


def test_a_restored_pool_continues_bit_for_bit(tmp_path: Path):
    def play(curriculum: TaskPoolCurriculum, episodes: int) -> list[str]:
        drawn = []
        for episode in range(episodes):
            task = curriculum.get_task()
            drawn.append(task.id())
            task.complete_trial((int(task.id().rpartition("#")[2]) * 7 + episode) % 11 / 10)
        return drawn

    original = pool()
    play(original, 101)
    save_tree(tmp_path, "curriculum", original.state_dict())
    restored = pool()
    restored.load_state_dict(load_tree(tmp_path, "curriculum"))

    assert restored.task_rows() == original.task_rows()
    assert restored.task_table().weights.version == original.task_table().weights.version
    assert play(restored, 100) == play(original, 100)
    assert restored.get_curriculum_stats() == original.get_curriculum_stats()


def test_the_state_of_another_pool_is_refused():
    with pytest.raises(CheckpointError, match="no pool of 3 tasks"):
        pool().load_state_dict(pool(num_active_tasks=4).state_dict())
    with pytest.raises(CheckpointError, match="no pool of 3 tasks"):
        pool().load_state_dict(RandomCurriculum(tasks("a")).state_dict())
