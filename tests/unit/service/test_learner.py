"""A learner without Ray: the library's own updates, repeatable, and never a state that is half of one."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metta_ray.common.errors import ConfigError, UsageError
from metta_ray.rl.fragment import Fragment, FragmentHeader
from metta_ray.service import checkpoint
from metta_ray.service.learner import Learner
from metta_ray.service.orders import Contents, GroupPlace, UpdateOrder
from tests.plain_service import CARTPOLE, NAVIGATION, PlainService, config_of, train_with_the_library

ROOT = Path(__file__).parents[3]
ONE_STEP = {"rollout.num_envs": 2, "trainer.minibatch_size": 256, "trainer.update_epochs": 1}


@pytest.fixture
def service(tmp_path: Path) -> PlainService:
    return PlainService(config_of(CARTPOLE), tmp_path)


def batch_of(service: PlainService, weights: Any) -> list[tuple[FragmentHeader, Fragment]]:
    worker = service.worker()
    return service.batch(worker, 0, weights)


@pytest.mark.parametrize("words", [CARTPOLE, NAVIGATION], ids=["cartpole", "recurrent navigation"])
def test_taking_turns_gives_the_losses_and_weights_of_the_library_to_the_bit(words: dict[str, Any], tmp_path: Path):
    service = PlainService(config_of(words), tmp_path)

    ours = service.train(3)
    theirs = train_with_the_library(service.config, service.sizes, 3)

    assert [losses for losses, _ in ours] == [losses for losses, _ in theirs]
    for (_, weights), (_, expected) in zip(ours, theirs, strict=True):
        assert weights.keys() == expected.keys()
        assert all(np.array_equal(weights[name], expected[name]) for name in weights)


def test_the_same_order_again_returns_the_same_update(service: PlainService):
    learner, weights, _ = service.begun_learner()
    batch = batch_of(service, weights)
    first = service.update(learner, 0, batch)
    order = UpdateOrder(0, 0, 0, 0, 0, service.agent_step, first[0].tickets)

    assert learner.train(order) is first
    assert learner.describe()[1] == 1


def test_a_repeated_update_in_a_new_group_gives_the_same_weights(service: PlainService):
    """What survivors do after a replica was lost."""
    learner, weights, state = service.begun_learner()
    batch = batch_of(service, weights)
    _, first, _ = service.update(learner, 0, batch)

    learner.join(GroupPlace(1, 0, 1), 0, 0, [weights], [state])
    learner.stage(0, 1, 0, [fragment for _, fragment in batch])
    _, second, _ = learner.train(UpdateOrder(0, 1, 0, 0, 0, service.agent_step, tuple(h.ticket for h, _ in batch)))

    assert first is not None
    assert second is not None
    assert second.digest() == first.digest()


def test_orders_of_an_older_coordinator_are_refused(service: PlainService):
    learner, weights, state = service.begun_learner()
    learner.join(GroupPlace(0, 0, 1), 5, 0, [weights], [state])

    with pytest.raises(UsageError, match="obeys generation 5, the order is of 4"):
        learner.stage(4, 0, 0, [])
    with pytest.raises(UsageError, match="obeys generation 5"):
        learner.train(UpdateOrder(4, 0, 0, 0, 0, 256, (1,)))


def test_orders_for_another_group_or_version_are_refused(service: PlainService):
    learner, weights, _ = service.begun_learner()
    batch = batch_of(service, weights)
    learner.stage(0, 0, 0, [fragment for _, fragment in batch])

    with pytest.raises(UsageError, match="in group 0, the order is for 3"):
        learner.train(UpdateOrder(0, 3, 0, 0, 0, 256, (1,)))
    with pytest.raises(UsageError, match="has policy version 0, the order is for 7"):
        learner.train(UpdateOrder(0, 0, 0, 7, 0, 256, (1,)))


def test_a_fragment_that_cannot_be_staged_fails_its_update_and_not_the_state(service: PlainService):
    learner, weights, _ = service.begun_learner()
    broken: Any = "not a fragment"

    with pytest.raises(AttributeError):
        learner.stage(0, 0, 0, [broken])
    with pytest.raises(AttributeError):
        learner.train(UpdateOrder(0, 0, 0, 0, 0, 256, (1,)))

    version, result, exported, _ = learner.export()
    assert (version, result) == (0, None)
    assert exported.digest() == weights.digest()


def test_a_state_in_the_middle_of_an_update_is_not_handed_out(service: PlainService, monkeypatch: pytest.MonkeyPatch):
    learner, weights, _ = service.begun_learner()
    batch = batch_of(service, weights)

    def torn(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr("metta_ray.service.learner.update_policy", torn)
    with pytest.raises(RuntimeError, match="closed by peer"):
        service.update(learner, 0, batch)

    with pytest.raises(UsageError, match="failed in the middle of update 0"):
        learner.export()


def test_export_tells_the_update_that_led_there(service: PlainService):
    learner, weights, _ = service.begun_learner()
    result, after, _ = service.update(learner, 0, batch_of(service, weights))

    version, found, exported, _ = learner.export()

    assert (version, found) == (1, result)
    assert after is not None
    assert exported.digest() == after.digest()


def test_settings_that_changed_are_used_from_the_next_update_on(service: PlainService):
    learner, weights, _ = service.begun_learner()
    batch = batch_of(service, weights)
    learner.stage(0, 0, 0, [fragment for _, fragment in batch])
    order = service.order(0, [header for header, _ in batch])

    result, _, _ = learner.train(dataclasses.replace(order, settings={"optimizer.learning_rate": 1.25e-4}))

    assert result.hyperparameters["optimizer.learning_rate"] == pytest.approx(1.25e-4)


def test_a_checkpoint_is_read_as_it_was_written(service: PlainService, tmp_path: Path):
    learner, weights, _ = service.begun_learner()
    worker = service.worker()
    _, weights, state = service.update(learner, 0, service.batch(worker, 0, weights))
    snapshot = worker.snapshot()
    contents = Contents(1, 256, {"reward": 1.0}, {"curriculum": None, "settings": {"a": 1}})
    directory = tmp_path / "checkpoints"

    saved = learner.save(str(directory), contents, [weights], [state], {0: [snapshot]}, keep_last=2)
    found = checkpoint.read_newest(directory)

    assert found is not None
    restored = found.restored
    assert (restored.path, restored.version, restored.agent_step) == (saved.path, 1, 256)
    assert restored.coordinator == contents.coordinator
    assert weights is not None
    assert all(np.array_equal(found.weights[name], array) for name, array in weights.arrays().items())

    other = service.learner(1)
    _, loaded, loaded_state = other.begin(str(directory))
    assert loaded.digest() == weights.digest()
    assert loaded_state.tobytes() == state.tobytes()
    ticket = service.ticket(1, weights)
    expected = worker.collect(ticket)[1]
    again = service.worker(snapshot=restored.workers[0]).collect(ticket)[1]
    assert again.packed.digest() == expected.packed.digest()


def test_a_damaged_checkpoint_is_passed_over_and_named(service: PlainService, tmp_path: Path):
    learner, weights, state = service.begun_learner()
    directory = tmp_path / "checkpoints"
    for version in (1, 2):
        learner.save(str(directory), Contents(version, 256 * version, {}, {}), [weights], [state], {}, keep_last=0)
    victim = next((directory / "model_0002").glob("*.safetensors"))
    victim.write_bytes(victim.read_bytes()[:-7])

    found = checkpoint.read_newest(directory)

    assert found is not None
    assert found.restored.version == 1
    assert [reason.split(":")[0] for reason in found.restored.passed_over] == ["model_0002"]


def test_a_run_directory_that_is_another_machines_is_refused(service: PlainService):
    (service.run_dir / ".nonce").write_text("of another")

    with pytest.raises(ConfigError, match="is not the coordinator's"):
        service.learner()


# Two replicas.


KEPT: list[Learner] = []
"""Of a group in this process; see test_distributed."""


def replica(rank: int, run_dir: str) -> tuple[str | None, dict[str, Any]]:
    """One of two: trains its half of a batch that both made alike; (digest of the weights, the weights)."""
    service = PlainService(config_of(CARTPOLE | ONE_STEP, learner__replicas=2), Path(run_dir) / f"replica{rank}")
    learner: Learner = service.learner(rank)
    KEPT.append(learner)
    _, weights, state = learner.begin(None)
    batch = batch_of(service, weights)
    meeting = Path(run_dir) / "meeting"
    if rank == 0:
        meeting.with_suffix(".new").write_text(json.dumps(learner.open_store()))
        meeting.with_suffix(".new").rename(meeting)
    while not meeting.exists():
        time.sleep(0.02)
    host, port = json.loads(meeting.read_text())
    learner.join(GroupPlace(0, rank, 2, host, port), 0, 0, [weights], [state])
    share = len(batch) // 2
    learner.stage(0, 0, 0, [fragment for _, fragment in batch[rank * share : (rank + 1) * share]])
    order = dataclasses.replace(service.order(0, [header for header, _ in batch]), compare_replicas=True)
    result, _, _ = learner.train(order)
    after = {name: array.copy() for name, array in learner.export()[2].arrays().items()}
    learner.close()
    return result.digest, after


def second_replica(run_dir: str) -> None:
    digest, weights = replica(1, run_dir)
    np.savez(Path(run_dir) / "second.npz", digest=np.array(digest), **weights)
    os._exit(0)  # gloo's thread may still want the interpreter


def test_two_replicas_give_the_weights_of_one_with_the_whole_batch(tmp_path: Path):
    code = "import sys; from tests.unit.service.test_learner import second_replica; second_replica(sys.argv[1])"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, env=environment, stderr=subprocess.PIPE
    )
    try:
        service = PlainService(config_of(CARTPOLE | ONE_STEP), tmp_path / "one")
        learner, weights, _ = service.begun_learner()
        _, alone, _ = service.update(learner, 0, batch_of(service, weights))
        digest, first = replica(0, str(tmp_path))
        _, errors = other.communicate(timeout=60)
        assert other.returncode == 0, errors.decode()[-2000:]
    finally:
        other.kill()

    second = dict(np.load(tmp_path / "second.npz"))

    assert digest == second.pop("digest").item()
    assert alone is not None
    before, moved = weights.arrays(), 0.0
    for name, expected in alone.arrays().items():
        np.testing.assert_allclose(first[name], expected, rtol=0, atol=1e-6)
        assert np.array_equal(first[name], second[name])
        moved = max(moved, float(np.abs(expected - before[name]).max()))
    assert moved > 1e-4, "the update did something"
