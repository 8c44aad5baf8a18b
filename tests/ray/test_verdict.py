"""What limits a run is told by name: each of the four parts is made slow in turn."""

from __future__ import annotations

from typing import Any

import pytest

from metta_ray.service.epoch import BOTTLENECK_EPOCHS
from tests.ray.harness import Lab, Run, wait_until
from tests.ray.ray_compat import slow_calls

UNDER_WAY = 2
"""Batches that were ordered before a part became slow."""
RUN = [
    *("--preset", "cartpole", "--env", "slow_parts:CartPole", "--agent.architecture", "slow_parts:Network"),
    *("--agent.lstm-hidden-size", 0, "--evaluate", "false", "--workers", 2, "--total-timesteps", 100_000_000),
    *("--trainer.batch-size", 256, "--trainer.minibatch-size", 128, "--trainer.update-epochs", 2),
    *("--rollout.num-envs", 2, "--rollout.num-cpus", 0.1, "--learner.num-cpus", 0.1),
]
LEVERS = {
    "environments": "add rollout workers",
    "inference": "add rollout workers",
    "learner": "add learner replicas",
    "transport": "make fragments longer",
}


@pytest.fixture(scope="module")
def run(shared_lab: Lab) -> Run:
    run = shared_lab.train(*RUN, run="slowed")
    run.wait_for_version(2)
    return run


# Two workers make a batch of four fragments; a fragment has 64 steps of environments and 33 of the policy, an update
# four gradient steps. So each of these takes about half a second per epoch, and the others next to nothing.
@pytest.mark.parametrize(("part", "seconds"), [("environments", 0.004), ("inference", 0.008), ("learner", 0.15)])
def test_the_part_that_is_slow_is_named(shared_lab: Lab, run: Run, part: str, seconds: float) -> None:
    slow = shared_lab.directory / "oracle" / f"slow-{part}"
    slow.write_text(str(seconds))

    record = record_after(run, UNDER_WAY + BOTTLENECK_EPOCHS)
    slow.unlink()

    assert_names(record, part)


def test_orders_that_are_long_on_their_way_are_named_transport(shared_lab: Lab, run: Run) -> None:
    run.end()
    delayed = shared_lab.train(*RUN, "--rollout.tickets-per-worker", 1, run="delayed", env=slow_calls(0.25))
    delayed.wait_for_version(1)

    assert_names(record_after(delayed, BOTTLENECK_EPOCHS), "transport")


def record_after(run: Run, epochs: int) -> dict[str, Any]:
    """The record of the epoch that many epochs after the present one."""
    epoch = run.version + epochs
    run.wait_for_version(epoch)
    lines = lambda: run.ask("progress", -1, 0.1)["lines"]  # noqa: E731
    record: dict[str, Any] = wait_until(
        lambda: next((line for line in lines() if line.get("epoch") == epoch), None), 10.0, f"a line of epoch {epoch}"
    )
    return record


def assert_names(record: dict[str, Any], part: str) -> None:
    print(record["bottleneck"], {name: round(share, 2) for name, share in record["shares"].items()})
    assert record["limited_by"] == part, (record["bottleneck"], record["shares"])
    assert record["bottleneck"].startswith(f"limited by {part} (")
    assert LEVERS[part] in record["bottleneck"]
