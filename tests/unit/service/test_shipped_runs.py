"""The configurations in deploy/runs: each loads, fits together, and is what its name says."""

from __future__ import annotations

from pathlib import Path

import pytest

from metta_ray.service.run_config import RunConfig, load_run_config
from metta_ray.service.sizes import Sizes, advice, resolved_sizes

FILES = sorted((Path(__file__).parents[3] / "deploy" / "runs").glob("*.yaml"))
AGENTS = {"navigation": 4, "arena": 24, "smoke": 1, "tmaze": 1, "cartpole": 1}


def shipped(name: str) -> tuple[RunConfig, Sizes]:
    [path] = [path for path in FILES if path.stem == name]
    config = load_run_config(path, {})
    return config, resolved_sizes(config, AGENTS[config.preset])


def test_they_are_all_there():
    assert {path.stem for path in FILES} == {
        "arena",
        "cartpole",
        "elastic",
        "navigation",
        "smoke",
        "synchronous",
        "tmaze",
        "two_learners",
    }


@pytest.mark.parametrize("name", [path.stem for path in FILES])
def test_each_fits_together_and_leaves_no_worker_idle(name: str):
    config, sizes = shipped(name)

    assert advice(config, sizes) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_says_what_it_is_for(path: Path):
    assert path.read_text().startswith("# ")


def test_navigation_is_what_train_does_without_a_file():
    assert shipped("navigation")[0] == load_run_config(None, {})


def test_synchronous_trains_each_fragment_as_one_batch():
    config, sizes = shipped("synchronous")

    assert config.pacing.target_staleness == 0
    assert (sizes.fragments_per_batch, config.rollout.num_workers, config.learner.replicas) == (1, 1, 1)


def test_elastic_can_use_all_of_its_workers():
    config, sizes = shipped("elastic")

    assert config.rollout.is_automatic
    assert sizes.useful_workers == config.rollout.max_workers


def test_two_learners_share_the_minibatch():
    assert shipped("two_learners")[1].minibatch_steps == 512
