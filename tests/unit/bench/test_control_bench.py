"""The benchmark of the coordinator's loop runs on a tiny scale and says what it promises; never how fast."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metta_ray.bench import control_bench
from metta_ray.bench.__main__ import BENCHMARKS, main


def test_control_reports_rate_dispatch_and_memory():
    row = control_bench.measure_in_process(workers=2, seconds=0.5)

    assert row["fragments_per_second"] > 0
    assert 0 <= row["dispatch_p50_ms"] <= row["dispatch_p99_ms"]
    assert row["cpu_ms_per_fragment"] > 0
    assert row["imbalance"] == 0
    assert {"memory_growth_mb", "goal_fragments_per_second", "goal_dispatch_p99_ms"} <= row.keys()


def test_a_large_run_keeps_its_books_and_reports_turns(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(control_bench, "FRAGMENT_S", 0.1)

    row = control_bench.measure_large(workers=32, replicas=4, seconds=0.5)

    assert row["imbalance"] == 0
    assert row["capacity_fragments_per_second"] > 0
    assert 0 < row["fragments_per_second"] <= 1.2 * 32 / 0.1
    assert 0 <= row["turn_p50_ms"] <= row["turn_p99_ms"]


def test_the_command_prints_a_table_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(control_bench, "LARGE", ((2, 1),))
    monkeypatch.setattr(control_bench, "FRAGMENT_S", 0.05)
    assert main(["control", "--seconds", "0.5", "--json", str(tmp_path / "bench.json")]) == 0

    assert "fragments per second" in capsys.readouterr().out
    assert {"machine", "in_process", "large"} == set(json.loads((tmp_path / "bench.json").read_text()))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_explains_itself(name: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])

    assert end.value.code == 0
    assert "--json" in capsys.readouterr().out
