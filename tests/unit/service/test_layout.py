"""What a configuration leaves open, chosen once; and how fast a run could be."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from metta_ray.control.plan import Resources
from metta_ray.control.rates import Curve, ServiceTimes
from metta_ray.service.layout import NO_LEVER, Speed, chosen_layout, is_open, recorded_choices, with_formulation
from metta_ray.service.run_config import RunConfig, load_run_config
from metta_ray.service.sizes import resolved_sizes

AGENTS = 4


def times(**changes: object) -> ServiceTimes:
    """Collecting takes 20 µs per agent step, training 20 µs; whatever the size."""
    values = {
        "environment": Curve.of([(64, 10e-6)]),
        "inference": Curve.of([(64, 10e-6)]),
        "training": Curve.of([(1024, 20e-6)]),
        "look_again": 0.0,
        "advantage": 0.0,
        "transport": 0.0,
        "staging": 0.0,
        "publish_s": 0.0,
        "load_s": 0.0,
        "step_bytes": 100.0,
        "weights_bytes": 1_000_000,
    }
    return ServiceTimes(**(values | changes))  # type: ignore[arg-type]


def config_of(**words: object) -> RunConfig:
    settings = {"trainer.update_epochs": "1"} | {name.replace("__", "."): str(value) for name, value in words.items()}
    return load_run_config(None, settings)


def layout_of(config: RunConfig) -> tuple[int, int, int]:
    return config.rollout.num_workers, config.learner.replicas, config.rollout.num_envs


def test_balanced_work_on_two_cores_is_one_worker_and_one_learner() -> None:
    config = chosen_layout(config_of(), times(), AGENTS, Resources(cores=2), 3)

    assert layout_of(config)[:2] == (1, 1)
    assert not is_open(config)
    assert config.trainer.batch_size == config_of().trainer.batch_size, "the global batch is the user's"
    assert resolved_sizes(config, AGENTS).fragments_per_batch >= 2


def test_slow_environments_get_more_workers() -> None:
    slow = times(environment=Curve.of([(64, 100e-6)]))

    config = chosen_layout(config_of(), slow, AGENTS, Resources(cores=4), 5)

    assert config.rollout.num_workers >= 3
    assert config.learner.replicas == 1


def test_what_is_given_stays() -> None:
    given = config_of(rollout__num_workers=3, rollout__num_envs=8, learner__replicas=2)
    assert not is_open(given)

    half = config_of(rollout__num_workers=3, rollout__num_envs=8)

    assert layout_of(chosen_layout(half, times(), AGENTS, Resources(cores=2), 3))[::2] == (3, 8)


TEAM = {"training": Curve.of([(1024, 180e-6)]), "look_again": 40e-6, "thread_gains": ((1, 1.0), (2, 2.0))}
"""Training takes most of the time, stale data make it longer, and two threads halve it."""


def test_a_learner_of_two_threads_takes_turns_with_its_workers_where_they_share_two_cores() -> None:
    config = chosen_layout(config_of(), times(**TEAM), AGENTS, Resources(cores=2), 3)

    assert layout_of(config)[:2] == (2, 1)
    assert (config.learner.threads, config.pacing.target_staleness) == (2, 0)


def test_nothing_takes_turns_where_processes_have_cores_of_their_own_or_workers_come_and_go() -> None:
    in_a_cluster = chosen_layout(config_of(), times(**TEAM), AGENTS, Resources(cores=None), 8)
    between_bounds = chosen_layout(config_of(workers="1:8"), times(**TEAM), AGENTS, Resources(cores=2), 3)

    assert in_a_cluster.learner.threads == 1
    assert in_a_cluster.pacing.target_staleness == between_bounds.pacing.target_staleness == 1


def test_pacing_and_threads_that_the_user_set_stay_even_if_they_are_the_defaults() -> None:
    paced = chosen_layout(config_of(pacing__target_staleness=1), times(**TEAM), AGENTS, Resources(cores=2), 3)
    alone = chosen_layout(config_of(learner__threads=1), times(**TEAM), AGENTS, Resources(cores=2), 3)

    assert paced.pacing.target_staleness == 1
    assert alone.learner.threads == 1


def test_a_run_that_is_continued_keeps_its_pace_and_threads(tmp_path: Path) -> None:
    record = chosen_layout(config_of(), times(**TEAM), AGENTS, Resources(cores=2), 3)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(record.record()))

    continued = recorded_choices(config_of(), tmp_path)
    outright = recorded_choices(config_of(pacing__target_staleness=2), tmp_path)

    assert (continued.learner.threads, continued.pacing.target_staleness) == (2, 0)
    assert outright.pacing.target_staleness == 2


def test_fragments_stay_short_where_workers_may_become_more() -> None:
    usual = resolved_sizes(config_of(), AGENTS).num_envs

    in_a_cluster = chosen_layout(config_of(), times(), AGENTS, Resources(cores=None), 8)
    between_bounds = chosen_layout(config_of(workers="1:8"), times(), AGENTS, Resources(cores=2), 3)

    assert in_a_cluster.rollout.num_envs == between_bounds.rollout.num_envs == usual


def test_without_measured_times_the_layout_is_the_usual_one() -> None:
    assert layout_of(chosen_layout(config_of(), None, AGENTS, Resources(cores=2), 3)) == (2, 1, 0)


def test_a_run_that_is_continued_keeps_its_layout(tmp_path: Path) -> None:
    record = chosen_layout(config_of(), times(), AGENTS, Resources(cores=2), 3)
    record = record.model_copy(update={"rollout": record.rollout.model_copy(update={"num_workers": 3})})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(record.record()))

    continued = recorded_choices(config_of(), tmp_path)
    other_batch = recorded_choices(config_of(trainer__batch_size=32_768), tmp_path)

    assert layout_of(continued) == layout_of(record)
    assert layout_of(other_batch) == (3, 1, 0), "its fragments might not fit another batch"
    assert layout_of(recorded_choices(config_of(workers=5), tmp_path))[0] == 5


@pytest.mark.parametrize("text", [None, "", "[", "rollout: 3", "rollout: {num_workers: 2}"])
def test_without_a_sound_record_everything_stays_open(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)

    assert is_open(recorded_choices(config_of(), tmp_path))


def test_a_run_that_is_continued_computes_its_policy_as_before(tmp_path: Path) -> None:
    undecided = chosen_layout(config_of(trainer__autocast="auto"), None, AGENTS, Resources(cores=2), 3)
    record = with_formulation(undecided, "bf16", True)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(record.record()))

    continued = recorded_choices(config_of(trainer__autocast="auto"), tmp_path)
    outright = recorded_choices(config_of(trainer__autocast="none", agent__gather_conv="false"), tmp_path)

    assert (continued.trainer.autocast, continued.agent["gather_conv"]) == ("bf16", True)
    assert (outright.trainer.autocast, outright.agent["gather_conv"]) == ("none", False)


def test_efficiency_is_the_share_of_what_the_cores_could_do() -> None:
    config = chosen_layout(config_of(), times(), AGENTS, Resources(cores=2), 3)
    speed = Speed(config, resolved_sizes(config, AGENTS), times(), Resources(cores=2))

    # 40 µs per agent step on two cores: 50,000/s at the most.
    assert speed.efficiency(25_000.0, workers=1, replicas=1) == pytest.approx(0.5)
    assert speed.efficiency(25_000.0, workers=0, replicas=1) is None
    assert speed.next_lever(1, 1) == NO_LEVER


def test_the_lever_says_what_it_would_gain() -> None:
    slow = times(environment=Curve.of([(64, 30e-6)]))
    config = config_of(rollout__num_workers=1, learner__replicas=1, rollout__num_envs=16)
    speed = Speed(config, resolved_sizes(config, AGENTS), slow, Resources(cores=None))

    # Collecting takes 40 µs, training 20: a second worker doubles it, but for the pacing.
    lever = speed.next_lever(1, 1)

    assert lever is not None
    assert lever.startswith("+1 rollout worker: about +")


def test_nothing_is_said_where_nothing_was_measured() -> None:
    config = config_of(rollout__num_workers=1, learner__replicas=1)
    speed = Speed.of_session(config, resolved_sizes(config, AGENTS), {})

    assert speed.efficiency(1000.0, 1, 1) is None
    assert speed.next_lever(1, 1) is None
