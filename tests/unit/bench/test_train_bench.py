"""The benchmarks of the whole loop: what they count and promise, on a tiny scale or without running."""

from __future__ import annotations

import json
import time

import pytest

from metta_ray.bench import alternate, floor_parts, service_bench, train_bench
from metta_ray.bench.__main__ import main
from metta_ray.bench.part_times import PartTimes
from metta_ray.bench.train_loop import LoopTask, measure

TINY = {"rows": 8, "batch": 8 * 16, "minibatch": 4 * 16, "horizon": 16, "seconds": 0.0, "threads": 1}


class Machine:
    """A thing with parts that take their time."""

    def outer(self) -> None:
        time.sleep(0.02)
        self.inner()

    def inner(self) -> None:
        time.sleep(0.04)


def test_a_second_inside_another_part_counts_once_and_the_rest_is_bookkeeping():
    times, machine = PartTimes(), Machine()
    places = [(Machine, "outer", lambda: "outer"), (Machine, "inner", lambda: "inner")]

    with times.watching(places):
        machine.outer()
        time.sleep(0.03)

    assert times.seconds["outer"] == pytest.approx(0.02, abs=0.015)
    assert times.seconds["inner"] == pytest.approx(0.04, abs=0.015)
    assert times.seconds["bookkeeping"] == pytest.approx(0.03, abs=0.015)
    assert Machine.outer.__name__ == "outer"
    assert not hasattr(Machine.outer, "__wrapped__")


def test_the_loop_measures_itself_its_parts_and_their_floor(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(alternate, "ROUND_S", 0.0)
    result = measure(LoopTask(network="light", workload="simple", floor_seconds=0.01, **TINY))

    assert len(result["rates"]) >= 2
    assert {"environment", "look-up", "inference", "storing", "advantage", "forward", "backward", "optimiser"} <= set(
        result["profile"]
    )
    assert all(value > 0 for value in result["profile"].values())
    assert set(result["floor"]) == set(floor_parts.PARTS)
    assert all(value > 0 for value in result["floor"].values())


def test_the_ratio_is_that_of_all_cores_that_were_used(monkeypatch: pytest.MonkeyPatch):
    tasks = []

    def run_ranks(task, ranks):
        tasks.append((task, ranks))
        parts = dict.fromkeys(floor_parts.PARTS, 5.0)
        return {"ranks": ranks, "rates": [20_000, 30_000, 40_000], "profile": parts, "floor": parts}

    monkeypatch.setattr(train_bench, "run_ranks", run_ranks)
    result = train_bench.run(10.0, ["light"], arrangements=["1x1", "2x1"], minibatches=[1024])

    # Six parts of 5 µs make 33,333 steps per second and core.
    assert [row["floor"] for row in result["train"]] == [33_333, 66_667]
    assert [row["ratio"] for row in result["train"]] == [0.9, 0.45]
    assert [(task.rows, task.batch, task.minibatch, ranks) for task, ranks in tasks] == [
        (256, 16_384, 1024, 1),
        (128, 8_192, 512, 2),
    ]
    assert "2x1" in train_bench.report(result)


def test_cartpole_is_measured_in_turn_with_another_interpreter(monkeypatch: pytest.MonkeyPatch):
    turns = []

    def ours(task, ranks):
        turns.append("ours")
        return {"rates": [300.0], "profile": {"environment": 1.0}}

    def theirs(python, seconds):
        turns.append(python)
        return 100.0

    monkeypatch.setattr(train_bench, "run_ranks", ours)
    monkeypatch.setattr(train_bench, "_sb3_rate", theirs)
    result = train_bench.run(1.0, workload="cartpole", sb3_python="other")

    assert turns == ["ours", "other"] * 3
    assert result["cartpole"]["ratio"] == 3.0
    assert "Stable-Baselines3" in train_bench.report(result)


def test_an_interpreter_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(train_bench, "run_ranks", lambda task, ranks: {"rates": [1.0], "profile": {}})

    assert main(["train", "--workload", "cartpole", "--sb3-python", "/no/such/python"]) == 2

    assert "/no/such/python" in capsys.readouterr().err


def test_unknown_arrangements_and_layouts_are_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["train", "--arrangements", "3x3"]) == 2
    assert "known are 1x1, 1x2, 2x1" in capsys.readouterr().err
    assert main(["service", "--layouts", "many"]) == 2
    assert "such as 2x1" in capsys.readouterr().err


def test_the_rate_of_a_run_is_that_of_its_middle():
    def record(epoch: int, seconds: float) -> dict[str, object]:
        record = {"agent_step": 100 * epoch, "epoch_seconds": seconds, "staleness/mean": 1.0}
        return record | {"share/inference": epoch / 10}

    # The beginning is slow and the end is cut off: 10 s and 7 s for 100 steps, 2 s between.
    records = [record(epoch, 10.0 if epoch <= 3 else 2.0) for epoch in range(1, 10)] + [record(10, 7.0)]

    middle = service_bench.middle_of(records)

    assert middle["agent_steps_per_second"] == 50
    assert middle["shares"] == {"inference": 0.65}


def test_a_run_is_compared_with_the_best_of_the_library():
    library = [
        {"arrangement": name, "agent_steps_per_second": rate, "floor": 100}
        for name, rate in (("2x1", 60), ("1x2", 40), ("2x1", 70), ("1x2", 44))
    ]

    row = service_bench._compared("light", "auto", {"agent_steps_per_second": 52}, library)

    assert (row["library"], row["library_arrangement"], row["floor"]) == (65, "2x1", 100)
    assert (row["of_library"], row["of_floor"]) == (0.8, 0.52)
    json.dumps(row)
