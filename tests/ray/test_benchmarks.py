"""The benchmarks that start a Ray run on a tiny scale and say what they promise; never how fast."""

from __future__ import annotations

from metta_ray.bench import control_bench, scale_bench, transport_bench


def test_control_with_real_workers_reports_its_rate():
    result = control_bench.run(1.0, workers=2, real=True)

    assert result["real"]["workers"] == 2
    assert result["real"]["fragments_per_second"] > 0
    assert result["real"]["imbalance"] == 0
    assert "with real sleeping workers" in control_bench.report(result)


def test_transport_reports_both_speeds_and_their_ratio():
    result = transport_bench.run(0.2, megabytes=[0.1])

    [row] = result["transport"]
    assert row["rounds"] >= 3
    assert row["raw_ms"] > 0
    assert row["fragment_ms"] > 0
    assert row["ratio"] > 0
    assert row["goal_ratio"] == 0.8
    assert "raw (ms)" in transport_bench.report(result)


def test_scale_reports_a_rate_for_each_number_of_workers():
    result = scale_bench.run(2.0, workers=[1, 2], step_s=0.001)

    assert [row["workers"] for row in result["scale"]] == [1, 2]
    assert all(row["agent_steps_per_second"] > 0 for row in result["scale"])
    assert result["scale"][0]["share_of_linear"] == 1.0
    assert "of linear" in scale_bench.report(result)
