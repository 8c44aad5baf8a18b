import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from metta_ray.common.errors import CheckpointError, ConfigError, UsageError
from metta_ray.common.util.state_directory import load_tree, save_tree
from metta_ray.mettagrid.curriculum.bucketed import BucketedCurriculum
from metta_ray.mettagrid.curriculum.core import (
    Curriculum,
    PreBuiltConfigCurriculum,
    SampledTaskCurriculum,
    SingleTaskCurriculum,
)
from metta_ray.mettagrid.curriculum.learning_progress import (
    LearningProgressConfig,
    LearningProgressCurriculum,
)
from metta_ray.mettagrid.curriculum.resolve import known_curricula, resolve_curriculum
from metta_ray.mettagrid.task_spec import TERRAINS, FixedTask, TaskSpec

BUCKETED = "/env/mettagrid/curriculum/navigation/bucketed"


def quick_learner(count: int = 4, **settings: float) -> LearningProgressCurriculum:
    templates = [FixedTask(TaskSpec(altars=index + 1), f"task{index}") for index in range(count)]
    config = LearningProgressConfig(ema_timescale=0.2, sample_threshold=3, memory=5, **settings)
    return LearningProgressCurriculum(templates, config, seed=1)


def test_a_single_task_is_always_drawn_and_its_handle_reports_once():
    spec = TaskSpec(kind="smoke", num_agents=1)
    curriculum = SingleTaskCurriculum("/env/mettagrid/smoke", spec)

    task = curriculum.get_task()

    assert (task.id(), task.short_name(), task.env_cfg()) == ("/env/mettagrid/smoke", "smoke", spec)
    assert not task.is_complete()
    assert task.complete_trial(3.0) is True
    assert task.is_complete()
    assert curriculum.get_completion_rates() == {"/env/mettagrid/smoke": 1.0}
    with pytest.raises(UsageError, match="complete already"):
        task.complete_trial(3.0)


def test_a_prebuilt_config_is_named_after_its_environment():
    curriculum = PreBuiltConfigCurriculum("navigation/terrain_small", TaskSpec(altars=3))
    assert curriculum.get_task_probs() == {"prebuilt(navigation/terrain_small)": 1.0}
    assert curriculum.get_task().env_cfg().altars == 3


def test_sampled_parameters_are_drawn_anew_for_every_episode():
    curriculum = SampledTaskCurriculum(
        "sampled",
        TaskSpec(),
        {
            "altars": {"range": (2, 6), "want_int": True},
            "terrain": ["varied_terrain/maze_small", "varied_terrain/dense_small"],
            "wrong_altar_reward": {"range": (-1.0, 0.0)},
            "max_steps": 77,
        },
    )

    specs = [curriculum.get_task().env_cfg() for _ in range(400)]

    assert Counter(spec.altars for spec in specs).keys() == {2, 3, 4, 5}
    assert {spec.terrain for spec in specs} == {"varied_terrain/maze_small", "varied_terrain/dense_small"}
    assert all(-1 <= spec.wrong_altar_reward < 0 for spec in specs)
    assert len({spec.wrong_altar_reward for spec in specs}) > 390
    assert {spec.max_steps for spec in specs} == {77}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"altar": 3}, "a task has no setting 'altar'; did you mean 'altars'"),
        ({"altars": {"range": (6, 2)}}, r"range=\(6, 2\) is empty"),
        ({"altars": {"rang": (2, 6)}}, "is not like"),
        ({"altars": []}, "empty"),
        ({"altars": 1000}, "altars=1000"),
    ],
)
def test_parameters_that_cannot_work_are_refused_at_once(params, message):
    with pytest.raises(ConfigError, match=message):
        SampledTaskCurriculum("sampled", TaskSpec(), params)


def test_buckets_are_the_product_with_integer_and_fractional_bins():
    curriculum = BucketedCurriculum(
        TaskSpec(),
        {"altars": {"range": (1, 5), "bins": 2}, "wrong_altar_reward": {"range": (-1.0, 0.0), "bins": 3}},
    )

    assert curriculum.task_ids[:3] == (
        "altars=[1,3);wrong_altar_reward=[-1,-0.667)",
        "altars=[1,3);wrong_altar_reward=[-0.667,-0.333)",
        "altars=[1,3);wrong_altar_reward=[-0.333,0)",
    )
    assert len(curriculum.task_ids) == 6
    template = curriculum.task_table().templates[1]
    specs = [template.draw(np.random.default_rng(seed)) for seed in range(100)]
    assert {spec.altars for spec in specs} == {1, 2}
    assert all(-2 / 3 <= spec.wrong_altar_reward < -1 / 3 for spec in specs)


@pytest.mark.parametrize(
    ("bucket", "message"),
    [
        ({"range": (2, 4), "bins": 3}, "bins=3 for 2 integers"),
        ({"range": (2, 4), "bins": 0}, "bins=0"),
        ({"rnge": (2, 4)}, "is not like"),
        ([], "neither a list of values"),
        (7, "neither a list of values"),
    ],
)
def test_buckets_that_cannot_work_are_refused(bucket, message):
    with pytest.raises(ConfigError, match=message):
        BucketedCurriculum(TaskSpec(), {"altars": bucket})


def test_navigation_has_64_buckets_of_16_terrains_and_2_to_17_altars():
    curriculum = resolve_curriculum(BUCKETED)

    assert len(curriculum.task_ids) == 64
    assert "terrain=varied_terrain/cylinder-world_large;altar=[14,18)" in curriculum.task_ids
    assert list(curriculum.get_task_probs().values()) == pytest.approx([1 / 64] * 64)
    drawn = [curriculum.get_task() for _ in range(3000)]
    assert {task.env_cfg().altars for task in drawn} == set(range(2, 18))
    assert {task.env_cfg().terrain for task in drawn} == set(TERRAINS)
    for task in drawn[:200]:
        low, high = task.id().split("altar=[")[1].rstrip(")").split(",")
        assert int(low) <= task.env_cfg().altars < int(high)
        assert task.id().startswith(f"terrain={task.env_cfg().terrain};")
    assert drawn[0].env_cfg().num_agents == 4
    assert drawn[0].env_cfg().max_steps == 1000


def test_overrides_reach_every_task():
    for path in (BUCKETED, "/env/mettagrid/navigation", "smoke"):
        curriculum = resolve_curriculum(path, num_agents=2, width=12, window=7, height=None)
        for template in curriculum.task_table().templates:
            spec = template.draw(np.random.default_rng(0))
            assert (spec.num_agents, spec.width, spec.height, spec.window) == (2, 12, None, 7)


@pytest.mark.parametrize("path", known_curricula())
def test_every_known_path_resolves_with_and_without_its_root(path: str):
    curriculum = resolve_curriculum(path)
    assert curriculum.task_ids == resolve_curriculum(path.removeprefix("/env/mettagrid/")).task_ids
    assert isinstance(curriculum.get_task().env_cfg(), TaskSpec)
    assert sum(curriculum.get_task_probs().values()) == pytest.approx(1.0)


def test_an_unknown_path_is_refused_with_the_nearest_and_all_known():
    with pytest.raises(ConfigError) as error:
        resolve_curriculum("/env/mettagrid/curriculum/navigation/bucketd")
    assert f"did you mean '{BUCKETED}'?" in str(error.value)
    assert all(path in str(error.value) for path in known_curricula())


@pytest.mark.parametrize(
    ("path", "overrides", "message"),
    [
        ("smoke", {"num_agnts": 3}, "a task has no setting 'num_agnts'; did you mean 'num_agents'"),
        ("smoke", {"num_agents": 0}, "num_agents=0"),
        (BUCKETED, {"altars": 3}, "altars=3 cannot be set for navigation/bucketed"),
        (BUCKETED, {"window": 4}, "window=4 has no centre cell"),
    ],
)
def test_overrides_that_do_not_fit_are_refused(path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        resolve_curriculum(path, **overrides)


def test_completion_rates_are_shares_of_the_last_500_episodes():
    curriculum = quick_learner(2)
    for _ in range(300):
        curriculum.complete_task("task0", 0.5)
    for _ in range(400):
        curriculum.complete_task("task1", 0.5)

    assert curriculum.get_completion_rates() == {"task0": 0.2, "task1": 0.8}
    assert curriculum.get_curriculum_stats()["completions"] == 700


def test_unknown_tasks_and_scores_that_are_no_numbers_are_refused():
    curriculum = quick_learner()
    with pytest.raises(UsageError, match="task 'task9' is not of this curriculum; did you mean"):
        curriculum.complete_task("task9", 0.5)
    with pytest.raises(UsageError, match="task 'task0' reports score=nan"):
        curriculum.complete_task("task0", float("nan"))
    assert curriculum.get_curriculum_stats()["completions"] == 0


def test_the_table_is_the_same_object_until_weights_are_recomputed():
    curriculum = quick_learner()
    table = curriculum.task_table()

    curriculum.complete_task("task0", 0.5)
    assert curriculum.task_table() is table

    curriculum.complete_task("task0", 0.5)
    curriculum.complete_task("task0", 0.5)
    assert curriculum.task_table().version == table.version + 1
    assert curriculum.task_table().templates is table.templates


def test_k17_results_of_two_workers_feed_one_curriculum():
    # Two workers hold the table they were given and draw from it on their own; a task needs 3 scores for a
    # recompute, and neither worker alone has them.
    curriculum = quick_learner(1)
    table = curriculum.task_table()
    workers = [np.random.default_rng(1), np.random.default_rng(2)]

    for rng in [*workers, workers[0]]:
        task_id, _ = table.draw(rng)
        curriculum.complete_task(task_id, 0.9)

    assert curriculum.get_curriculum_stats()["completions"] == 3
    assert curriculum.task_table().version == 1


def test_k18_draws_use_no_global_randomness():
    curricula = []
    for global_seed in (1, 2):
        np.random.seed(global_seed)
        random.seed(global_seed)
        curricula.append(resolve_curriculum(BUCKETED, seed=5))
    first, second = ([c.get_task().env_cfg() for _ in range(20)] for c in curricula)
    assert first == second
    assert first != [resolve_curriculum(BUCKETED, seed=6).get_task().env_cfg() for _ in range(20)]


def play(curriculum: Curriculum, episodes: int) -> list[tuple[str, TaskSpec]]:
    drawn = []
    for episode in range(episodes):
        task = curriculum.get_task()
        drawn.append((task.id(), task.env_cfg()))
        task.complete_trial((sum(task.id().encode()) % 97 + episode % 13) / 110)
    return drawn


@pytest.mark.parametrize("episodes", [0, 7, 400])
def test_a_restored_curriculum_continues_bit_for_bit(tmp_path: Path, episodes: int):
    def build() -> Curriculum:
        config = LearningProgressConfig(ema_timescale=0.1, sample_threshold=2, uniform_share=0.1)
        return BucketedCurriculum(
            TaskSpec(), {"terrain": list(TERRAINS), "altars": {"range": (2, 18), "bins": 4}}, config, seed=3
        )

    original = build()
    play(original, episodes)
    save_tree(tmp_path, "curriculum", original.state_dict())
    restored = build()
    restored.load_state_dict(load_tree(tmp_path, "curriculum"))

    assert play(restored, 300) == play(original, 300)
    assert restored.get_task_probs() == original.get_task_probs()
    assert restored.get_completion_rates() == original.get_completion_rates()
    assert restored.get_curriculum_stats() == original.get_curriculum_stats()
    assert restored.task_table().version == original.task_table().version


def test_the_state_of_other_tasks_is_refused():
    with pytest.raises(CheckpointError, match="the saved curriculum has 3 tasks"):
        quick_learner(4).load_state_dict(quick_learner(3).state_dict())


def test_k30_scores_are_bounded_when_no_recompute_comes():
    # No active task ever scores, so no recompute comes, however many scores the others report.
    curriculum = quick_learner(3, num_active_tasks=1, rand_task_rate=0.0)
    for _ in range(3):
        curriculum.complete_task("task0", 0.5)
    assert list(curriculum.get_task_probs().values()) == [1.0, 0.0, 0.0]

    for _ in range(1000):
        curriculum.complete_task("task1", 1.0)

    assert curriculum.task_table().version == 1
    assert curriculum.learning_progress.state_dict()["scores"].shape == (3, 40)
    assert curriculum.learning_progress.success_rates[1] == 1.0


def test_a_task_with_progress_is_drawn_more_than_one_that_stands_still():
    curriculum = quick_learner(4, num_active_tasks=100, rand_task_rate=1.0)
    for episode in range(200):
        for index in range(4):
            improving = min(episode / 150, 1.0)
            curriculum.complete_task(f"task{index}", improving if index == 2 else 0.5)
        if episode == 100:
            probabilities = curriculum.get_task_probs()
    assert max(probabilities, key=probabilities.__getitem__) == "task2"


def test_no_two_tasks_may_share_an_id():
    with pytest.raises(ConfigError, match="two tasks of the same id"):
        Curriculum([FixedTask(TaskSpec(), "a"), FixedTask(TaskSpec(), "a")])
    with pytest.raises(ConfigError, match="at least one task"):
        Curriculum([])
