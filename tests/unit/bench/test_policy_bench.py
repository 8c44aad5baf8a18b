"""The benchmark of the policy on a tiny scale: what it promises, never how fast."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from metta_ray.bench import accelerator_bench, matrix_rates, policy_bench
from metta_ray.bench import alternate as alternate_module
from metta_ray.bench.__main__ import main
from metta_ray.bench.alternate import alternate, fastest, medians
from metta_ray.bench.synthetic import DENSITIES, NUM_TOKENS, PADDING, navigation_spec, observations
from metta_ray.mettagrid.mettagrid_env import mettagrid_spec
from metta_ray.mettagrid.task_spec import TaskSpec

ROOT = Path(__file__).parents[3]
# Whoever lacks these must still be able to measure the policy.
WITHOUT_ENGINE = """
import sys

class Refuses:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"mettagrid", "ray", "scipy", "redis", "prometheus_client", "psutil"}:
            raise ImportError(f"{name} is not installed on this machine")

sys.meta_path.insert(0, Refuses())
from metta_ray.bench import alternate, matrix_rates
alternate.ROUND_S = matrix_rates.MIN_S = 0.0
"""


@pytest.fixture(autouse=True)
def _short_rounds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(alternate_module, "ROUND_S", 0.0)
    monkeypatch.setattr(matrix_rates, "MIN_S", 0.0)


def test_synthetic_vocabulary_is_that_of_the_engine():
    ours, real = navigation_spec(), mettagrid_spec(TaskSpec())

    assert ours.vocabulary is not None
    assert {name: feature.id for name, feature in ours.vocabulary.features.items()} == {
        name: feature.id for name, feature in real.vocabulary.features.items()
    }
    assert ours.vocabulary.tags == real.vocabulary.tags
    assert ours.obs_shape == real.obs_shape
    assert ours.action_names == real.action_names


@pytest.mark.parametrize("workload", DENSITIES)
def test_synthetic_observations_are_as_dense_as_real_ones(workload: str):
    obs = observations(2000, DENSITIES[workload], np.random.default_rng(0))

    filled = (obs[:, :, 0] != PADDING).sum(axis=1)
    assert obs.shape == (2000, NUM_TOKENS, 3)
    assert abs(filled.mean() - DENSITIES[workload].mean) < 1
    assert filled.min() >= 7
    assert filled.max() <= 60
    # Packed to the front, every object at a place of its own inside the window.
    assert all((row[count:] == PADDING).all() for row, count in zip(obs, filled, strict=True))
    assert len(np.unique(obs[0, 6 : filled[0], 0])) == filled[0] - 6


def test_policy_measures_all_cells_that_were_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--networks", "light", "--threads", "1", "--rows", "4", "--minibatches", "128", "--seconds", "0"]

    assert main(["policy", *words, "--json", str(tmp_path / "bench.json")]) == 0

    assert "training 128" in capsys.readouterr().out
    result = json.loads((tmp_path / "bench.json").read_text())
    assert {"machine", "matrix_rates", "policy"} <= result.keys()
    assert [(row["what"], row["size"]) for row in result["policy"]] == [("inference", 4), ("training", 128)]
    for row in result["policy"]:
        assert row["ours_us"] > 0
        assert row["floor_us"] <= row["plain_us"]
        assert row["ratio"] == pytest.approx(row["floor_us"] / row["ours_us"], rel=0.01)


def test_sizes_that_would_take_too_long_are_left_out_and_named():
    result = policy_bench.run(0.0, ["light"], threads=[1], rows=[], minibatches=[128, 256])

    assert [row["size"] for row in result["policy"]] == [128]
    assert [row["size"] for row in result["left_out"]] == [256]
    assert "left out: light" in policy_bench.report(result)


def test_an_unknown_network_is_named_with_the_known_ones(capsys: pytest.CaptureFixture[str]):
    assert main(["policy", "--networks", "lite"]) == 2

    assert "lite: known are default, light" in capsys.readouterr().err


def test_a_card_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["policy", "--device", "cuda:99"]) == 2

    assert "finds no card" in capsys.readouterr().err


def test_the_path_for_cards_runs_without_engine_and_ray():
    code = WITHOUT_ENGINE + (
        "from metta_ray.bench import accelerator_bench, policy_bench, __main__\n"
        "result = accelerator_bench.run(0.0, ['light'], rows=[4], minibatches=[64], device='cpu', compiles=False)\n"
        "assert not result['failed'], result['failed']\n"
        "print(policy_bench.report(result))\n"
        "__main__.main(['policy', '--networks', 'light', '--threads', '1', '--rows', '4', '--minibatches', '',"
        " '--seconds', '0'])\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)

    assert run.returncode == 0, run.stderr
    assert "floor bag, sorted" in run.stdout


def test_shares_of_a_card_follow_from_its_rates():
    result = accelerator_bench.run(0.0, ["light"], rows=[4], minibatches=[], device="cpu", compiles=False)

    row = next(row for row in result["accelerator"] if row["precision"] == "fp32")
    flops = 2 * (9 * 32 * 28 * 25 + 288 * 128 + 4 * 128 * 256 + 128 * 6)
    peak = result["peaks"]["matrix_gflops"]["fp32"] * 1e9
    assert row["of_matrices"] == pytest.approx(flops * row["agent_steps_per_second"] / peak, abs=1e-3)


def test_a_case_that_does_not_work_is_named_and_costs_no_other():
    def broken() -> object:
        raise RuntimeError("this card cannot do that\nand so on")

    works, reasons = accelerator_bench._built([("a", lambda: lambda: None), ("b", lambda: broken)])

    assert list(works) == ["a"]
    assert reasons == {"b": "RuntimeError: this card cannot do that"}


def test_sides_take_turns_and_hopeless_ones_leave():
    order: list[str] = []
    costs = {"fast": 1.0, "slow": 1.5, "hopeless": 10.0, "kept": 20.0}

    def clock(work, calls):
        order.append(work())
        return costs[order[-1]] * calls

    sides = {name: (lambda name=name: name) for name in costs}
    times = alternate(sides, 0.0, keep=["kept"], clock=clock)

    assert order[8:] == ["fast", "slow", "kept"] * 3
    assert {name: len(taken) for name, taken in times.items()} == {"fast": 3, "slow": 3, "kept": 3, "hopeless": 1}
    assert fastest(medians(times), "") == "fast"
