"""Curricula written down, of the user's own, and what holds for every one of them."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metta_ray.common.errors import ConfigError
from metta_ray.common.util.state_directory import tree_from_bytes, tree_to_bytes
from metta_ray.envs.registry import MettaGridFactory, resolve_env
from metta_ray.mettagrid.curriculum.core import Curriculum, RandomCurriculum
from metta_ray.mettagrid.curriculum.library import LIBRARY
from metta_ray.mettagrid.curriculum.resolve import known_curricula, resolve_curriculum
from metta_ray.mettagrid.task_spec import FixedTask, TaskSpec, num_tokens

SMALL = {"type": "single", "task": {"altars": 2}}
YAML = """
type: learning_progress
tasks:
  easy: /env/mettagrid/navigation
  hard:
    type: sampled
    task: {kind: navigation}
    params: {altars: {range: [2, 6], want_int: true}}
settings: {ema_timescale: 0.1, uniform_share: 0.5}
"""


class Mine(RandomCurriculum):
    """What a user's module holds."""

    def __init__(self, seed: int = 0, num_agents: int = 4) -> None:
        specs = [TaskSpec(altars=altars, num_agents=num_agents) for altars in (1, 2)]
        super().__init__([FixedTask(spec, f"altars={spec.altars}") for spec in specs], [1, 3], seed)


class NoCurriculum:
    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def task_table(self) -> None: ...


# ---- ways to name one ----


def test_a_yaml_file_and_its_mapping_mean_the_same_curriculum(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text(YAML)

    curriculum = resolve_curriculum(str(file), num_agents=2)

    assert curriculum.task_ids == ("easy", "hard")
    assert curriculum.learning_progress.config.ema_timescale == 0.1
    drawn = [curriculum.get_task().env_cfg() for _ in range(100)]
    assert {spec.altars for spec in drawn} == {2, 3, 4, 5, 8}
    assert {spec.num_agents for spec in drawn} == {2}
    assert resolve_env(str(file)).curriculum().task_ids == ("easy", "hard")


def test_a_class_of_the_users_own_is_a_curriculum_and_an_environment():
    name = f"{__name__}:Mine"

    curriculum = resolve_curriculum(name, num_agents=2)
    factory = resolve_env(name, num_agents=2)

    assert curriculum.get_task_probs() == {"altars=1": 0.25, "altars=2": 0.75}
    assert isinstance(factory, MettaGridFactory)
    assert factory.spec().agents_per_env == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:Mine", "no module named 'no_such_module'"),
        (f"{__name__}:Mien", "has no 'Mien'; did you mean 'Mine'"),
        (f"{__name__}:NoCurriculum", "lacks complete_task, state_dict, load_state_dict"),
        ("nowhere.yaml", "nowhere.yaml cannot be read"),
    ],
)
def test_what_is_no_curriculum_is_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        resolve_curriculum(name)


def test_settings_of_a_users_class_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"could not be made with seed and \{'window': 7\}"):
        resolve_curriculum(f"{__name__}:Mine", window=7)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"type": "randm", "tasks": {"a": SMALL}}, "random"),
        ({"type": "random"}, "needs tasks"),
        ({"type": "bucketed", "task": {}}, "needs buckets"),
        ({"type": "sequential_trials"}, "needs trials"),
        ({"type": "random", "tasks": {"a": SMALL}, "settings": {"x": 1}}, "has no settings"),
        ({"type": "pool", "tasks": {"a": SMALL}, "settings": {"num_activ_tasks": 1}}, "num_active_tasks"),
        ({"type": "random", "tasks": {"a": SMALL}, "weights": {"b": 1}}, "weights of b"),
        ({"type": "random", "tasks": {"a": "/env/mettagrid/smok"}}, "unknown curriculum"),
        ({"type": "sampled", "params": {"altar": 3}}, "no setting 'altar'; did you mean 'altars'"),
        (
            {"type": "random", "tasks": {"a": SMALL, "b": "arena"}},
            "b .24, 11, 256.; tasks of one curriculum must agree",
        ),
    ],
)
def test_what_is_written_wrongly_is_refused(written, message):
    with pytest.raises(ConfigError, match=message):
        resolve_curriculum(written)


# ---- those that have a name ----


@pytest.mark.parametrize("path", known_curricula())
def test_all_tasks_of_a_named_curriculum_fit_together(path: str):
    specs = [template.draw(np.random.default_rng(1)) for template in resolve_curriculum(path).task_table().templates]
    assert len({(spec.num_agents, spec.window, num_tokens(spec)) for spec in specs}) == 1


def test_the_mixture_of_all_is_five_to_three_to_two():
    probabilities = resolve_curriculum("curriculum/all").get_task_probs()
    shares = {
        child: sum(p for task, p in probabilities.items() if task.startswith(f"{child}/"))
        for child in ("arena", "navigation", "object_use")
    }
    assert shares == pytest.approx({"arena": 0.5, "navigation": 0.3, "object_use": 0.2})


# ---- what holds for every curriculum ----

_LEARNING = sorted(name for name, written in LIBRARY.items() if written["type"] != "single")


def _play(curriculum: Curriculum, scores: list[float]) -> list[str]:
    drawn = []
    for score in scores:
        task = curriculum.get_task()
        drawn.append(task.id())
        task.complete_trial(score)
    return drawn


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(_LEARNING),
    before=st.lists(st.floats(-1, 2), max_size=120),
    after=st.lists(st.floats(0, 1), max_size=40),
)
def test_weights_stay_shares_counts_add_up_and_a_restored_one_goes_on_alike(name, before, after):
    curriculum = resolve_curriculum(name)
    fresh = curriculum.task_table()

    _play(curriculum, before)

    table = curriculum.task_table()
    assert table.probabilities.min() >= 0
    assert table.probabilities.sum() == pytest.approx(1)
    assert (table.version == fresh.version) == (table is fresh)
    rows = curriculum.task_rows()
    assert [row["task"] for row in rows] == list(curriculum.task_ids)
    stats = curriculum.get_curriculum_stats()
    assert stats["completions"] + stats.get("pool/late", 0) == len(before)
    json.dumps(rows)

    restored = resolve_curriculum(name)
    restored.load_state_dict(tree_from_bytes(tree_to_bytes(curriculum.state_dict())))
    assert restored.task_rows() == rows
    assert _play(restored, after) == _play(curriculum, after)
    assert restored.task_rows() == curriculum.task_rows()

    received = fresh.with_weights(curriculum.task_table().weights)
    assert [t.task_id for t in received.templates] == list(curriculum.task_ids)
