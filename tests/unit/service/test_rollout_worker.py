"""A rollout worker without Ray: one fragment per ticket, and nothing that the ticket does not decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from metta_ray.common.util.packed_arrays import PackedArrays
from metta_ray.rl.fragment import Fragment
from metta_ray.service.orders import PublishedWeights, Ticket
from metta_ray.service.rollout_worker import RolloutWorker, TicketForgotten
from tests.plain_service import CARTPOLE, NAVIGATION, PlainService, config_of


class Spoiled(gymnasium.Env[Any, Any]):
    """Shows a NaN at each 70th step of its life."""

    action_space = gymnasium.spaces.Discrete(2)
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        bad = self.steps % 70 == 0
        return np.array([np.nan if bad else 0.5, 0], np.float32), 1.0, self.steps % 50 == 0, False, {}


gymnasium.register("SpoiledForTests-v0", entry_point=Spoiled)


@pytest.fixture
def service(tmp_path: Path) -> PlainService:
    return PlainService(config_of(CARTPOLE), tmp_path)


def weights_for(worker: RolloutWorker) -> PackedArrays:
    return PackedArrays.pack({name: tensor.numpy() for name, tensor in worker._policy.state_dict().items()})


def content(fragment: Fragment) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in fragment.arrays().items()}


def test_a_ticket_makes_a_fragment_of_the_size_that_was_agreed(service: PlainService):
    worker = service.worker()

    header, fragment = worker.collect(service.ticket(3, weights_for(worker)))

    assert header.agent_steps == service.sizes.fragment_steps
    assert (header.ticket, header.stream, header.incarnation) == (0, 0, "life 0")
    assert header.policy_version == 3
    assert header.size_bytes == fragment.size_bytes
    assert header.fault is None
    assert set(header.seconds) == {"waiting", "environment", "inference", "transport"}


def test_the_same_ticket_again_returns_the_same_and_samples_nothing(service: PlainService):
    worker = service.worker()
    ticket = service.ticket(0, weights_for(worker))
    header, fragment = worker.collect(ticket)
    state = worker.snapshot().tobytes()

    header_again, fragment_again = worker.collect(ticket)

    assert header_again is header
    assert fragment_again is fragment
    assert worker.snapshot().tobytes() == state


def test_a_settled_ticket_is_forgotten_and_never_sampled_again(service: PlainService):
    worker = service.worker()
    first = service.ticket(0, weights_for(worker))
    worker.collect(first)
    worker.collect(service.ticket(0, None, settled=(first.number,)))

    with pytest.raises(TicketForgotten, match="ticket 0 was executed and settled"):
        worker.collect(first)


def test_older_weights_are_not_loaded(service: PlainService):
    worker = service.worker()
    worker.collect(service.ticket(5, weights_for(worker)))

    header, _ = worker.collect(service.ticket(4, "not even weights"))

    assert header.policy_version == 5


def test_weights_that_are_gone_are_noticed_before_anything_is_sampled(service: PlainService):
    worker = service.worker()
    weights = weights_for(worker)
    state = worker.snapshot().tobytes()

    with pytest.raises(AssertionError):
        worker.collect(Ticket(0, 0, PublishedWeights(0, "gone")))

    assert worker.snapshot().tobytes() == state
    assert worker.collect(Ticket(0, 0, PublishedWeights(0, weights)))[0].ticket == 0


def test_a_nan_spoils_its_fragment_and_not_the_next_one(tmp_path: Path):
    words = CARTPOLE | {"env": "gym:SpoiledForTests-v0", "agent.lstm_hidden_size": 8, "rollout.num_envs": 1}
    service = PlainService(config_of(words), tmp_path)
    worker = service.worker()

    faults = [worker.collect(service.ticket(0, weights_for(worker)))[0].fault for _ in range(4)]

    assert "nan" in (faults[2] or "")
    assert [fault is None for fault in faults] == [True, True, False, True], "fragments of 32 steps"


@pytest.mark.parametrize("words", [CARTPOLE, NAVIGATION], ids=["cartpole", "navigation"])
def test_a_restored_worker_continues_bit_for_bit(words: dict[str, Any], tmp_path: Path):
    service = PlainService(config_of(words), tmp_path)
    worker = service.worker()
    weights = weights_for(worker)
    service.collect(worker, 0, weights)
    snapshot = worker.snapshot()
    ticket = service.ticket(0, weights)
    header, fragment = worker.collect(ticket)
    worker.close()
    torch.manual_seed(12345)

    other = service.worker(snapshot=snapshot)
    header_again, fragment_again = other.collect(ticket)

    assert content(fragment_again) == content(fragment)
    assert header_again.outcomes == header.outcomes
    assert header_again.counted_steps == header.counted_steps
    other.close()


def test_a_replacement_never_repeats_what_the_one_before_it_saw(service: PlainService):
    first, second = service.worker(0), service.worker(7)
    weights = weights_for(first)

    before = service.collect(first, 0, weights)[1].arrays()["obs"]
    after = service.collect(second, 0, weights)[1].arrays()["obs"]

    assert not {row.tobytes() for row in before[:, 0]} & {row.tobytes() for row in after[:, 0]}


def test_a_second_life_with_the_same_number_would_repeat_it(service: PlainService):
    """Which is why numbers are never used twice."""
    first, second = service.worker(3), service.worker(3)
    weights = weights_for(first)
    torch.manual_seed(0)
    before = service.collect(first, 0, weights)[1].arrays()["obs"]

    after = service.collect(second, 0, weights)[1].arrays()["obs"]

    assert np.array_equal(before[:, 0], after[:, 0])


def test_episodes_of_a_curriculum_are_told_with_the_fragment_they_ended_in(tmp_path: Path):
    service = PlainService(config_of(NAVIGATION, trainer__env_overrides__max_steps=40), tmp_path)
    worker = service.worker()
    weights = weights_for(worker)

    headers = [service.collect(worker, 0, weights)[0] for _ in range(6)]

    outcomes = [outcome for header in headers for outcome in header.outcomes]
    episodes = [value for header in headers for value in header.stats.get("episode/return", [])]
    assert outcomes
    assert len(outcomes) <= len(episodes)
    worker.close()
