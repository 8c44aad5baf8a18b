"""The benchmark of curricula in miniature: real training, and what it says of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from metta_ray.bench import curriculum_bench
from metta_ray.bench.__main__ import main
from metta_ray.bench.curriculum_run import ARMS, HINDSIGHT, LEAST, MOST, PER_WORKER, CurriculumRun, Experiment
from metta_ray.common.errors import UsageError

TINY = Experiment(
    agent_steps=1024,
    workers=2,
    envs_per_worker=2,
    max_steps=16,
    terrains=("varied_terrain/sparse_small",),
    evaluations=1,
    maps=8,
    batch_size=1024,
    minibatch_size=512,
)


def test_each_worker_tells_its_own_curriculum_or_the_shared_one():
    assert len({id(one) for one in TINY.curricula(PER_WORKER, 0)}) == TINY.workers
    assert len({id(one) for one in TINY.curricula("shared", 0)}) == 1


def test_hindsight_draws_alike_from_the_quarter_that_gained_most_or_least():
    count = len(TINY.curriculum(0).task_ids)
    gains = np.arange(count) / count
    most, least = (TINY.curricula(arm, 0, gains)[0].task_table().probabilities for arm in (MOST, LEAST))

    quarter = max(1, count // 4)
    assert np.flatnonzero(most).tolist() == list(range(count - quarter, count))
    assert np.flatnonzero(least).tolist() == list(range(quarter))
    assert most.sum() == least.sum() == pytest.approx(1.0)


def test_hindsight_needs_to_be_told_the_gains():
    with pytest.raises(UsageError, match="'most gain' needs to be told"):
        TINY.curricula(MOST, 0)


def test_a_gain_is_the_last_third_less_the_first_and_0_where_one_of_them_is_missing():
    run = CurriculumRun("uniform", 0, ("a", "b"))
    run.outcomes = [(10, 0, 0, 0.1), (20, 1, 0, 0.3), (150, 0, 0, 9.0), (250, 0, 0, 0.5), (300, 1, 1, 0.7)]

    assert run.gains() == pytest.approx([0.3, 0.0])


def test_aim_compares_the_gain_of_what_was_drawn_with_that_of_all():
    run = CurriculumRun("shared", 0, ("a", "b"), probabilities=[[[0.5, 0.5]], [[1.0, 0.0]]])

    assert curriculum_bench.aim(run, np.array([0.3, 0.1])) == pytest.approx((1.0 + 1.5) / 2)


def test_without_any_gain_there_is_no_aim():
    assert curriculum_bench.aim(CurriculumRun("shared", 0, ("a",), probabilities=[[[1.0]]]), np.array([0.0])) is None


def test_a_run_in_which_no_episode_ended_is_refused():
    with pytest.raises(UsageError, match=r"no episode ended.*--agent-steps"):
        CurriculumRun("uniform", 0, ("a",)).gains()


def test_coverage_counts_what_all_and_what_one_worker_have_played():
    run = CurriculumRun("shared", 0, ("a", "b"), probabilities=[[[0.5, 0.5], [0.5, 0.5]]])
    run.outcomes = [(100 * number, number % 2, 0, 0.5) for number in range(10)] + [(2000, 0, 1, 0.5)]

    told = curriculum_bench.coverage(run)

    assert told["covered"] == 0.5
    assert told["covered_by_one_worker"] == 0.0
    assert told["all_seen_after"] == 2000
    assert told["entropy"]["mean"] == pytest.approx(1.0)


def test_a_difference_is_over_pairs_of_map_and_seed():
    runs = [
        CurriculumRun(arm, seed, ("a",), scores=[list(np.linspace(0, 1, 5) + gain)])
        for arm, gain in (("shared", 0.1), ("uniform", 0.0))
        for seed in range(2)
    ]

    told = curriculum_bench.difference(runs, "shared", "uniform")

    assert told["by_seed"] == pytest.approx([0.1, 0.1])
    assert (told["low"], told["high"]) == pytest.approx((0.1, 0.1))


def test_the_command_trains_all_arms_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(curriculum_bench, "Experiment", lambda agent_steps: TINY)

    words = ["curriculum", "--agent-steps", "1024", "--seeds", "1", "--hindsight"]
    assert main([*words, "--json", str(tmp_path / "bench.json")]) == 0

    result = json.loads((tmp_path / "bench.json").read_text())
    assert [row["arm"] for row in result["runs"]] == [*ARMS, *HINDSIGHT]
    assert all(row["outcomes"] for row in result["runs"])
    assert "difference of last scores" in capsys.readouterr().out


def test_no_seed_is_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["curriculum", "--seeds", "0"]) == 2
    assert "--seeds 0" in capsys.readouterr().err
