"""What an epoch was: numbers of its episodes, staleness, and which part of the system limited it."""

from __future__ import annotations

from typing import Any

import pytest

from metta_ray.rl.fragment import FragmentHeader
from metta_ray.service.epoch import EpochGatherer
from metta_ray.service.orders import Staged, UpdateResult

PARTS = ("environment", "inference", "transport", "waiting")


def header(seconds: tuple[float, float, float, float] = (0.6, 0.3, 0.1, 0.0), returns: tuple[float, ...] = ()) -> Any:
    spent = dict(zip(PARTS, seconds, strict=True))
    stats = {"episode/return": list(returns)} if returns else {}
    return FragmentHeader("run", 0, 0, 0, "life", 0, 8, 8, 64, 1000, stats=stats, seconds=spent)


def at_work() -> EpochGatherer:
    """One that knows the worker: what it waited before its first fragment is not counted."""
    gatherer = EpochGatherer(0.0, [])
    gatherer.fragment(header((0.0, 0.0, 0.0, 5.0)), without_order=5.0)
    return gatherer


def result(training: float = 0.5, waiting: float = 0.0, rank: int = 0) -> UpdateResult:
    seconds = {"training": training, "waiting": waiting}
    return UpdateResult("life", rank, 1, 128, (0, 1), {"policy_loss": 0.5}, {}, {"grad": 2.0}, seconds, 0)


def finish(gatherer: EpochGatherer, now: float, *results: UpdateResult, **settings: Any) -> dict[str, Any]:
    settings = {"num_workers": 2, "useful_workers": 8, "target_staleness": 1} | settings
    return gatherer.finish(now, results or (result(),), 128, settings.pop("stalenesses", (0, 1)), **settings)


def test_a_record_tells_speed_reward_and_losses():
    gatherer = EpochGatherer(100.0, [1.0, 3.0])
    gatherer.fragment(header(returns=(3.0,)), 0.0)

    record = finish(gatherer, 102.0)

    assert record["epoch"] == 1
    assert record["epoch_seconds"] == 2.0
    assert record["agent_steps_per_second"] == 64.0
    assert record["reward"] == 2.0
    assert record["losses"] == {"policy_loss": 0.5}
    assert record["metrics"]["grad"] == 2.0


def test_the_next_record_begins_anew_and_the_reward_goes_on():
    gatherer = EpochGatherer(100.0, [1.0, 3.0])
    gatherer.fragment(header(returns=(3.0,)), 0.0)
    finish(gatherer, 102.0)

    record = finish(gatherer, 103.0)

    assert record["epoch_seconds"] == 1.0
    assert record["reward"] == 2.0
    assert not any(name.startswith("episode") for name in record["metrics"])


def test_no_episode_yet_is_no_reward():
    assert finish(EpochGatherer(0.0, []), 1.0)["reward"] is None


def test_an_epoch_is_not_charged_for_a_pause():
    gatherer = EpochGatherer(100.0, [])
    gatherer.restart_clock(500.0)

    assert finish(gatherer, 501.0)["epoch_seconds"] == 1.0


def test_staleness_is_told_as_mean_maximum_and_histogram():
    record = finish(EpochGatherer(0.0, []), 1.0, stalenesses=(0, 1, 1, 2))

    assert record["staleness"] == {"mean": 1.0, "max": 2, "histogram": {"0": 1, "1": 2, "2": 1}}


@pytest.mark.parametrize(
    ("seconds", "training", "limited_by"),
    [
        ((0.9, 0.1, 0.1, 0.0), 0.2, "environments"),
        ((0.1, 0.9, 0.1, 0.0), 0.2, "inference"),
        ((0.1, 0.1, 0.9, 0.0), 0.2, "transport"),
        ((0.1, 0.1, 0.1, 0.8), 0.95, "learner"),
    ],
)
def test_a_record_says_what_limited_it(seconds: tuple[float, float, float, float], training: float, limited_by: str):
    gatherer = at_work()
    gatherer.fragment(header(seconds), without_order=seconds[3])

    record = finish(gatherer, 1.0, result(training))

    assert record["limited_by"] == limited_by
    assert record["bottleneck"].startswith(f"limited by {limited_by} (")
    assert sum(record["shares"][name] for name in ("environments", "inference", "transport", "no_ticket")) == (
        pytest.approx(1)
    )


def test_what_a_worker_waited_while_its_order_was_on_its_way_is_transport():
    gatherer = at_work()
    gatherer.fragment(header((0.1, 0.1, 0.0, 0.8)), without_order=0.1)

    record = finish(gatherer, 1.0, result(0.2))

    assert record["limited_by"] == "transport"
    assert record["shares"]["transport"] == pytest.approx(0.7)


def test_staging_that_held_up_training_is_transport():
    gatherer = at_work()
    gatherer.fragment(header((0.1, 0.1, 0.0, 0.8)), without_order=0.8)
    gatherer.staged([Staged(0, 1000, {"fetching": 0.5, "copying": 0.1})])

    record = finish(gatherer, 1.0, result(training=0.3, waiting=0.6))

    assert record["limited_by"] == "transport"
    assert record["shares"]["staging"] == pytest.approx(0.6)


def test_staging_beside_training_costs_nothing():
    gatherer = at_work()
    gatherer.fragment(header((0.1, 0.1, 0.0, 0.8)), without_order=0.8)
    gatherer.staged([Staged(0, 1000, {"fetching": 0.5, "copying": 0.1})])

    assert finish(gatherer, 1.0, result(training=0.9, waiting=0.0))["limited_by"] == "learner"


def test_what_a_worker_waited_for_the_run_to_begin_or_to_go_on_is_not_counted():
    gatherer = at_work()
    gatherer.fragment(header((0.5, 0.4, 0.1, 0.0)), 0.0)
    assert finish(gatherer, 1.0, result(0.2))["shares"]["no_ticket"] == 0.0

    gatherer.restart_clock(500.0)
    gatherer.fragment(header((0.5, 0.4, 0.1, 499.0)), without_order=499.0)

    assert finish(gatherer, 501.0, result(0.2))["shares"]["no_ticket"] == 0.0


def test_a_verdict_looks_at_several_epochs():
    """A single one may hold half a fragment's work."""
    gatherer = EpochGatherer(0.0, [])
    for epoch in range(4):
        gatherer.fragment(header((0.9, 0.0, 0.1, 0.0)), 0.0)
        finish(gatherer, epoch + 1.0, result(0.2))
    gatherer.fragment(header((0.1, 0.3, 0.0, 0.0)), 0.0)

    assert finish(gatherer, 5.0, result(0.2))["limited_by"] == "environments"
