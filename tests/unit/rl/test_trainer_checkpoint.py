"""Checkpoints: complete or absent, refused when damaged, and what they bring back."""

from __future__ import annotations

import logging
import pickle
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metta_ray.agent.policy_store import PolicyStore
from metta_ray.common.errors import CheckpointError, PolicyMismatchError, TrainingDiverged
from metta_ray.common.profiling.stopwatch import Stopwatch
from metta_ray.common.util import fs
from metta_ray.common.util.state_directory import verify_manifest
from metta_ray.rl.hyperparameter_schedule import HyperparameterScheduler
from metta_ray.rl.progress import EpochProgress
from metta_ray.rl.trainer_checkpoint import (
    load_checkpoint,
    naming_last_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
    trainer_checkpoints,
)

NAVIGATION = "mettagrid:smoke"
RECURRENT = {"lstm_hidden_size": 8, "side_inputs": True}


class Crash(BaseException):
    """The process dies here."""


@pytest.fixture(autouse=True)
def _no_hook_is_left() -> Iterator[None]:
    yield
    fs.io_hook = None


def save(rig: Any, folder: Path, **kwargs: Any) -> Any:
    arguments = {"policy_store": None, "checkpoint_interval": 1, "experience": rig.experience, "vecenv": rig.vecenv}
    return save_checkpoint(
        rig.epoch, rig.agent_step, rig.agent, rig.optimizer, checkpoint_path=folder, **(arguments | kwargs)
    )


def load(rig: Any, folder: Path, **kwargs: Any) -> tuple[int, int, str | None]:
    arguments = {"experience": rig.experience, "vecenv": rig.vecenv} | kwargs
    rig.agent_step, rig.epoch, path = load_checkpoint(folder, rig.agent, rig.optimizer, **arguments)
    return rig.agent_step, rig.epoch, path


def train(rig: Any, epochs: int) -> list[dict[str, float]]:
    history = []
    for _ in range(epochs):
        rig.collect()
        rig.train()
        history.append(rig.losses.stats())
    return history


def test_keeping_none_of_the_last_means_keeping_all(build_rig, tmp_path):
    rig = build_rig()
    store = PolicyStore(device="cpu", data_dir=str(tmp_path))
    for rig.epoch in range(1, 4):
        save(rig, tmp_path, policy_store=store, keep_last_n=0)

    assert sorted(path.name for path in tmp_path.glob("model_*")) == ["model_0001", "model_0002", "model_0003"]


# What comes back


def test_nothing_there_is_a_cold_start(build_rig, tmp_path):
    assert load(build_rig(), tmp_path / "none") == (0, 0, None)
    (tmp_path / "empty").mkdir()
    assert load(build_rig(), tmp_path / "empty") == (0, 0, None)


def test_k23_a_cold_start_can_save_and_be_continued(build_rig, tmp_path):
    rig = build_rig()
    load(rig, tmp_path)
    train(rig, 1)
    record = save(rig, tmp_path)

    assert record.policy is rig.agent
    assert load(build_rig(seed=9), tmp_path)[:2] == (32, 1)


@pytest.mark.parametrize("env", ["gym:CartPole-v1", NAVIGATION])
def test_k22_weights_optimiser_environments_and_chance_go_on_exactly(build_rig, tmp_path, env):
    options = {"num_envs": 3, "horizon": 7, "agent": RECURRENT, "minibatches": 3}
    whole = build_rig(env, **options)
    train(whole, 2)
    save(whole, tmp_path)
    expected = train(whole, 2)

    resumed = build_rig(env, seed=5, **options)
    train(resumed, 1)  # whatever it did before is overwritten
    assert load(resumed, tmp_path)[1] == 2
    assert train(resumed, 2) == expected
    for name, tensor in whole.weights().items():
        assert torch.equal(tensor, resumed.weights()[name]), name


def test_stopwatch_and_counters_come_back(build_rig, tmp_path):
    rig, timer = build_rig(), Stopwatch()
    timer.start()
    with timer("_train"):
        pass
    rig.agent_step, rig.epoch = 1234, 7
    save(rig, tmp_path, timer=timer)
    restored = Stopwatch()
    assert load(build_rig(), tmp_path, timer=restored)[:2] == (1234, 7)
    assert restored.get_elapsed("_train") == pytest.approx(timer.get_elapsed("_train"))


def test_the_mean_return_that_is_shown_goes_on(build_rig, tmp_path):
    lap = {"agent_steps_per_second": 1.0, "share/environment": 0.0, "share/inference": 0.0, "share/training": 0.0}
    rig, progress = build_rig(), EpochProgress(Stopwatch(), 1000)
    progress.line(1, 10, [1.0, 2.0], lap)
    rig.epoch = 1
    save(rig, tmp_path, progress=progress)
    resumed = EpochProgress(Stopwatch(), 1000)

    load(build_rig(), tmp_path, progress=resumed)

    assert "reward 3.00" in resumed.line(2, 20, [6.0], lap)
    save(rig, tmp_path)
    assert load(build_rig(), tmp_path, progress=resumed)[1] == 1, "a checkpoint without it is read as well"


def test_a_schedule_continues_from_the_step_it_had_reached(build_rig, tmp_path):
    schedule = {"hyperparameter_scheduler": {"learning_rate_schedule": {"type": "linear", "min_value": 1e-5}}}
    rig = build_rig(trainer=schedule)
    rig.agent_step = rig.config.total_timesteps // 2
    before = HyperparameterScheduler(rig.config, rig.optimizer).step(rig.agent_step)
    save(rig, tmp_path)
    other = build_rig(trainer=schedule)
    load(other, tmp_path)
    assert HyperparameterScheduler(other.config, other.optimizer).step(other.agent_step) == before
    assert other.optimizer.param_groups[0]["lr"] == rig.optimizer.param_groups[0]["lr"]


def test_all_random_generators_continue():
    state = random_state()
    first = (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random(), random.gauss(0, 1))
    set_random_state(state)
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random(), random.gauss(0, 1)) == first


def test_k29_it_is_written_when_the_interval_is_reached_or_when_forced(build_rig, tmp_path):
    rig = build_rig()
    for rig.epoch in range(1, 8):
        save(rig, tmp_path, checkpoint_interval=3)
    assert save(rig, tmp_path, checkpoint_interval=3) is None
    assert [path.name for path in trainer_checkpoints(tmp_path)] == ["model_0006", "model_0003"]
    assert save(rig, tmp_path, checkpoint_interval=3, force_save=True) is not None


def test_k14_newest_is_by_epoch_not_by_name_or_time(build_rig, tmp_path):
    rig = build_rig()
    for rig.epoch in (10000, 9999):
        save(rig, tmp_path)
    assert load(rig, tmp_path)[1] == 10000


def test_older_ones_are_deleted_beyond_the_last(build_rig, tmp_path):
    rig = build_rig()
    store = PolicyStore(device="cpu", data_dir=str(tmp_path))
    for rig.epoch in range(1, 6):
        save(rig, tmp_path, policy_store=store, keep_last_n=2)
    assert [path.name for path in trainer_checkpoints(tmp_path)] == ["model_0005", "model_0004"]


def test_stats_and_metadata_lie_with_the_policy(build_rig, tmp_path):
    rig = build_rig()
    save(rig, tmp_path, stats={"overview/reward": 1.5}, metadata={"score": 0.5})
    (record,) = PolicyStore(device="cpu", data_dir=str(tmp_path)).policy_records(tmp_path, "latest")
    assert record.metadata["stats"]["overview/reward"] == 1.5
    assert record.metadata["score"] == 0.5


def test_k32_the_policy_of_a_checkpoint_stands_for_itself(build_rig, tmp_path):
    rig = build_rig()
    record = save(rig, tmp_path)
    loaded = PolicyStore(device="cpu", data_dir=str(tmp_path)).load_from_uri(record.uri).policy
    for name, tensor in rig.weights().items():
        assert torch.equal(tensor, loaded.state_dict()[name])


# Crashes


@pytest.mark.parametrize("replace", [False, True])
def test_a_crash_after_any_operation_leaves_the_previous_or_the_new_checkpoint(build_rig, tmp_path, replace):
    """replace: the crashed save writes an epoch that exists already."""
    rig = build_rig(num_envs=2, horizon=2)
    rig.epoch, rig.agent_step = 1, 100
    save(rig, tmp_path / "first")
    rig.epoch, rig.agent_step = 2, 200
    if replace:
        save(rig, tmp_path / "first")

    reader = build_rig(num_envs=2, horizon=2)
    found: list[int] = []
    for operations in range(1, 200):
        folder = tmp_path / f"crash{operations}"
        shutil.copytree(tmp_path / "first", folder)
        done: list[str] = []

        def stop(operation: str, path: Path, done: list[str] = done, limit: int = operations) -> None:
            done.append(operation)
            if len(done) == limit:
                raise Crash

        fs.io_hook = stop
        rig.agent_step = 300
        try:
            save(rig, folder, policy_store=PolicyStore(device="cpu", data_dir=str(folder)), keep_last_n=1)
        except Crash:
            finished = False
        else:
            finished = True
        fs.io_hook = None
        agent_step, epoch, path = load(reader, folder)
        found.append(agent_step)
        assert path is not None
        verify_manifest(path)
        assert (agent_step, epoch) in {(100, 1), (200, 2), (300, 2)}
        if finished:
            assert agent_step == 300
            break
    assert len(found) > 15
    assert found == sorted(found, key=lambda step: step == 300), "from some operation on it is the new one"


# Damage


@pytest.mark.parametrize("file", ["policy.safetensors", "trainer.json", "rank0.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
def test_a_damaged_checkpoint_is_named_and_the_previous_one_used(build_rig, tmp_path, caplog, file, damage):
    rig = build_rig()
    for rig.epoch in (1, 2):
        save(rig, tmp_path)
    path = tmp_path / "model_0002" / file
    content = path.read_bytes()
    if damage == "flipped":
        path.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()
    with caplog.at_level(logging.WARNING):
        assert load(rig, tmp_path)[1] == 1
    assert "model_0002 is passed over" in caplog.text
    assert file in caplog.text


def test_k33_if_all_are_damaged_there_is_no_silent_fresh_start(build_rig, tmp_path, caplog):
    rig = build_rig()
    for rig.epoch in (1, 2):
        save(rig, tmp_path)
        (tmp_path / f"model_{rig.epoch:04d}" / "trainer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"all 2 checkpoints in .* are damaged"):
        load(rig, tmp_path)


def test_k16_a_pickled_checkpoint_is_never_opened(build_rig, tmp_path):
    rig = build_rig()
    opened = tmp_path / "opened"

    class Trap:
        def __reduce__(self):
            return (opened.write_text, ("boom",))

    folder = tmp_path / "checkpoints" / "model_0003"
    folder.mkdir(parents=True)
    (folder / "trainer.json").write_bytes(pickle.dumps(Trap()))
    (folder / "policy.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError):
        load(rig, tmp_path / "checkpoints")
    (tmp_path / "model.pt").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match="pickle"):
        PolicyStore(device="cpu", data_dir=str(tmp_path)).load_from_uri(tmp_path / "model.pt")
    assert not opened.exists()


# What does not fit


def test_weights_of_another_architecture_are_refused(build_rig, tmp_path):
    save(build_rig(), tmp_path)
    with pytest.raises(PolicyMismatchError, match=r"another architecture.*saved \(2, 16\), here \(2, 4\)"):
        load(build_rig(agent={"hidden_sizes": (4,)}), tmp_path)


def test_k33_an_optimiser_that_does_not_fit_is_refused(build_rig, tmp_path):
    rig = build_rig()
    train(rig, 1)
    save(rig, tmp_path)
    with pytest.raises(CheckpointError, match=r"optimiser state in .* does not fit: .*another optimizer type"):
        load(build_rig(optimizer={"optimizer_type": "muon"}), tmp_path)


def test_environments_of_other_sizes_are_refused(build_rig, tmp_path):
    save(build_rig(num_envs=4), tmp_path)
    with pytest.raises(CheckpointError, match=r"\(4, 1\)"):
        load(build_rig(num_envs=2), tmp_path)
    assert load(build_rig(num_envs=2), tmp_path, vecenv=None, experience=None)[1] == 0


def test_ranks_of_another_number_go_on_with_a_warning(build_rig, tmp_path, caplog, monkeypatch):
    rig = build_rig()
    train(rig, 1)
    save(rig, tmp_path)
    monkeypatch.setattr("metta_ray.rl.trainer_checkpoint.setup_distributed_vars", lambda: (True, 2, 0))
    other = build_rig(seed=3)
    with caplog.at_level(logging.WARNING):
        assert load(other, tmp_path)[1] == 1
    assert "was written by 1 ranks, now there are 2" in caplog.text
    assert all(torch.equal(tensor, other.weights()[name]) for name, tensor in rig.weights().items())


# The end of a training that went wrong


def test_divergence_names_the_last_sound_checkpoint(build_rig, tmp_path):
    rig = build_rig()
    with pytest.raises(TrainingDiverged, match=r"oh dear\. No checkpoint"), naming_last_checkpoint(tmp_path):
        raise TrainingDiverged("oh dear")
    for rig.epoch in (1, 2):
        save(rig, tmp_path)
    (tmp_path / "model_0002" / "trainer.json").unlink()
    with (
        pytest.raises(TrainingDiverged, match=r"Last good checkpoint: .*model_0001"),
        naming_last_checkpoint(tmp_path),
    ):
        raise TrainingDiverged("oh dear")
