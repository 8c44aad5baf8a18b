"""The table of ``metta-ray plan``: rows around the given counts, for any batch, from times in a file."""

from __future__ import annotations

import json

import pytest

from metta_ray import cli
from metta_ray.control.plan import Resources
from metta_ray.control.rates import Curve, ServiceTimes
from metta_ray.service.run_config import load_run_config
from metta_ray.service.what_if import what_if

TIMES = ServiceTimes(
    environment=Curve.of([(64, 20e-6)]),
    inference=Curve.of([(64, 40e-6), (256, 20e-6)]),
    training=Curve.of([(512, 45e-6), (1024, 40e-6)]),
    look_again=10e-6,
    advantage=1e-7,
    transport=1e-6,
    staging=1e-6,
    publish_s=2e-3,
    load_s=1e-3,
    step_bytes=800.0,
    weights_bytes=800_000,
)


def test_counts_around_those_that_were_asked_for():
    config = load_run_config(None, {"workers": "8", "learner.replicas": "2"})

    answers = what_if(config, TIMES, agents_per_env=4, resources=Resources(cores=None))

    counts = {(answer.layout.workers, answer.layout.replicas) for answer in answers}
    assert {(1, 1), (8, 2), (16, 2), (8, 4)} <= counts
    by_counts = {(a.layout.workers, a.layout.replicas): a.prediction.agent_steps_per_second for a in answers}
    assert by_counts[8, 2] > 1.5 * by_counts[1, 1]


def test_the_command_prints_the_table(tmp_path, capsys):
    file = tmp_path / "times.json"
    file.write_text(json.dumps(TIMES.to_json()))

    code = cli.main(["plan", "--preset", "cartpole", "--workers", "2", "--replicas", "2", "--measured", str(file)])

    printed = capsys.readouterr().out
    assert code == 0
    assert "a core of its own" in printed
    assert "limited by" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cores", "none"], "cores='none'"),
        (["--measured", "nowhere.json"], "nowhere.json"),
        (["--replicas", "7"], "replicas"),
    ],
)
def test_bad_words_are_refused(words, message, capsys, tmp_path):
    file = tmp_path / "times.json"
    file.write_text(json.dumps(TIMES.to_json()))
    rest = [] if "--measured" in words else ["--measured", str(file)]

    assert cli.main(["plan", "--preset", "cartpole", *words, *rest]) == 2

    assert message in capsys.readouterr().err
