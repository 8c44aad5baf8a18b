"""What the benchmark of an evaluation beside training makes of its epochs."""

from __future__ import annotations

import pytest

from metta_ray.bench import evaluation_bench
from metta_ray.bench.__main__ import main
from metta_ray.bench.evaluation_bench import Pair, summary


def test_the_ratio_is_within_pairs_so_a_machine_that_changes_its_speed_changes_nothing():
    told = summary([Pair(alone=speed, beside=0.99 * speed, busy=0.9) for speed in (1000.0, 3000.0, 500.0, 2000.0)])

    assert told["ratio"] == pytest.approx(0.99)
    assert (told["low"], told["high"]) == pytest.approx((0.99, 0.99))
    assert told["alone"] == 1500
    assert told["evaluator_busy"] == pytest.approx(0.9)


def test_the_interval_tells_how_much_pairs_differ():
    told = summary([Pair(1000.0, beside, 1.0) for beside in (900.0, 1000.0, 1000.0, 1100.0)])

    assert told["ratio"] == pytest.approx(1.0)
    assert told["low"] < 1 < told["high"]


def test_one_core_is_too_few(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(evaluation_bench.os, "sched_getaffinity", lambda _: {3})

    assert main(["evaluation"]) == 2
    assert "cores [3]" in capsys.readouterr().err


def test_an_unknown_network_is_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["evaluation", "--network", "hevy"]) == 2
    assert "known are default, light" in capsys.readouterr().err
