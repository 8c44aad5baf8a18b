"""Policies on disk: finding, loading, saving, protecting, deleting."""

import itertools
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from metta_ray.agent import policy_files
from metta_ray.agent.factory import Agent
from metta_ray.agent.metta_agent import MettaAgent
from metta_ray.agent.policy_metadata import PolicyMetadata
from metta_ray.agent.policy_record import PolicyRecord, make_model_name
from metta_ray.agent.policy_state import PolicyState
from metta_ray.agent.policy_store import PolicyStore
from metta_ray.common.errors import CheckpointError, ConfigError, PolicyMissingError, UsageError
from metta_ray.common.util import fs, places, stored_directories
from metta_ray.common.util.fs import atomic_directory
from metta_ray.common.util.state_directory import write_manifest
from metta_ray.envs.env_spec import EnvSpec

SPEC = EnvSpec(
    "gym:Toy",
    gymnasium.spaces.Box(-1, 1, (3,), np.float32),
    gymnasium.spaces.Discrete(2),
    action_names=("l", "r"),
)


def new_policy(seed: int = 0) -> MettaAgent:
    torch.manual_seed(seed)
    return Agent(SPEC, config={"architecture": "mlp", "hidden_sizes": [4]}, device="cpu")


@pytest.fixture
def store(tmp_path: Path) -> PolicyStore:
    return PolicyStore(data_dir=tmp_path)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoints"


def save(
    store: PolicyStore, checkpoints: Path | str, epoch: int, *, name: str | None = None, **metadata
) -> PolicyRecord:
    record = store.create_empty_policy_record(name or make_model_name(epoch), checkpoints)
    record.policy = new_policy(epoch)
    record.metadata = PolicyMetadata(epoch=epoch, agent_step=100 * epoch, **metadata)
    return store.save(record)


def save_trainer_checkpoint(checkpoints: Path, epoch: int) -> Path:
    directory = checkpoints / make_model_name(epoch)
    record = PolicyRecord(directory.name, f"file://{directory}", PolicyMetadata(epoch=epoch), policy=new_policy(epoch))
    with atomic_directory(directory) as unfinished:
        policy_files.write_policy_files(unfinished, record)
        (unfinished / "trainer.json").write_text("{}")
        (unfinished / "rank0.json").write_text("{}")
        write_manifest(unfinished, "trainer_checkpoint", 1)
    return directory


def set_mtime(record: PolicyRecord, seconds: float) -> None:
    os.utime(record.file_path / "manifest.json", (seconds, seconds))


def epochs(records: list[PolicyRecord]) -> list[int]:
    return [record.metadata.epoch for record in records]


# ---- saving and loading ----


def test_a_saved_policy_comes_back_with_the_same_outputs(store, checkpoints):
    policy = new_policy(3)
    record = store.create_empty_policy_record("model_0003", checkpoints)
    record.policy, record.metadata = policy, PolicyMetadata(epoch=3, score=1.5)
    obs = torch.rand(5, 3)
    action = torch.zeros(5, dtype=torch.int32)

    store.save(record)
    loaded = store.load_from_uri(record.uri)

    expected = policy(obs, PolicyState(), action)[4]
    assert torch.equal(loaded.policy(obs, PolicyState(), action)[4], expected)
    assert loaded.metadata == record.metadata
    assert loaded.run_name == "model_0003"
    assert loaded.num_params() == policy.total_params


def test_after_saving_the_record_no_longer_follows_training(store, checkpoints):
    policy = new_policy()
    record = store.create_empty_policy_record("model_0001", checkpoints)
    record.policy = policy
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}

    store.save(record)
    with torch.no_grad():
        next(policy.parameters()).add_(1.0)

    for name, tensor in record.policy.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_two_records_of_one_file_do_not_share_a_module(store, checkpoints):
    uri = save(store, checkpoints, 1).uri
    first, second = store.policy_record(uri), store.policy_record(uri)

    with torch.no_grad():
        next(first.policy.parameters()).add_(1.0)

    assert not torch.equal(next(first.policy.parameters()), next(second.policy.parameters()))


def test_a_loaded_policy_is_in_eval_mode(store, checkpoints):
    assert not store.policy_record(save(store, checkpoints, 1).uri).policy.training


def test_k32_a_wrapped_policy_is_saved_as_its_inner_module(store, checkpoints):
    class Wrapper(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

    record = store.create_empty_policy_record("model_0001", checkpoints)
    policy = new_policy()
    record.policy = Wrapper(policy)

    store.save(record)

    assert torch.equal(next(record.policy.parameters()), next(policy.parameters()))


def test_saving_again_replaces_policy_and_cache(store, checkpoints):
    record = save(store, checkpoints, 1)
    old = store.load_from_uri(record.uri).policy
    record.policy = new_policy(99)
    record.metadata["agent_step"] = 7

    store.save(record)

    fresh = store.load_from_uri(record.uri)
    assert fresh.metadata.agent_step == 7
    assert not torch.equal(next(fresh.policy.parameters()), next(old.parameters()))


def test_save_to_another_path_moves_the_uri(store, checkpoints, tmp_path):
    record = save(store, checkpoints, 1)

    store.save(record, tmp_path / "best")

    assert record.uri == f"file://{(tmp_path / 'best').resolve()}"
    assert store.policy_record(tmp_path / "best").metadata.epoch == 1


def test_an_empty_record_says_how_to_fill_it(store, checkpoints):
    with pytest.raises(UsageError, match=r"model_0001.*assign record\.policy"):
        _ = store.create_empty_policy_record("model_0001", checkpoints).policy


def test_a_policy_without_an_architecture_is_refused(store, checkpoints):
    record = store.create_empty_policy_record("model_0001", checkpoints)
    record.policy = torch.nn.Linear(2, 2)

    with pytest.raises(ConfigError, match=r"Linear.*without pickle"):
        store.save(record)

    assert not (checkpoints / "model_0001").exists()


def test_bare_paths_file_uris_and_run_names_find_the_same_policy(store, checkpoints):
    uri = save(store, checkpoints, 4).uri

    for spelling in (
        uri,
        checkpoints / "model_0004",
        str(checkpoints),
        checkpoints.parent,
        "run",
        f"file://{checkpoints}",
    ):
        assert store.policy_record(spelling).uri == uri


def test_extra_files_of_a_trainer_checkpoint_are_ignored(store, checkpoints):
    save_trainer_checkpoint(checkpoints, 2)

    record = store.policy_record(checkpoints)

    assert record.metadata.epoch == 2
    assert record.num_params() > 0


class Crash(BaseException):
    """The machine dies here."""


def test_a_crash_after_any_disk_operation_leaves_a_whole_policy_or_none(store, checkpoints, monkeypatch):
    operations = itertools.count()
    for crash_at in itertools.count():
        done = 0

        def die(operation: str, path: Path, crash_at: int = crash_at) -> None:
            nonlocal done
            done += 1
            if done > crash_at:
                raise Crash

        monkeypatch.setattr(fs, "io_hook", die)
        try:
            record = save(store, checkpoints, crash_at)
        except Crash:
            monkeypatch.setattr(fs, "io_hook", None)
        else:
            break
        next(operations)
        if (checkpoints / make_model_name(crash_at)).exists():
            assert store.policy_record(checkpoints / make_model_name(crash_at)).num_params() > 0
    monkeypatch.setattr(fs, "io_hook", None)

    assert next(operations) > 5
    assert record.num_params() > 0


# ---- selectors and filters ----


def test_k14_latest_is_by_epoch(store, checkpoints):
    for seconds, epoch in enumerate((20, 3, 100, 9)):
        set_mtime(save(store, checkpoints, epoch), 1000 - seconds)

    assert epochs(store.policy_records(checkpoints, "latest", n=None)) == [100, 20, 9, 3]
    assert store.policy_record(checkpoints, "latest").metadata.epoch == 100


def test_k14_latest_of_one_epoch_is_the_newer_file(store, checkpoints):
    older = save(store, checkpoints, 5, name="a")
    newer = save(store, checkpoints, 5, name="b")
    set_mtime(older, 2000)
    set_mtime(newer, 1000)

    assert store.policy_record(checkpoints, "latest").run_name == "a"


def test_all_returns_everything_oldest_first(store, checkpoints):
    for epoch in (2, 1, 3):
        save(store, checkpoints, epoch)

    assert epochs(store.policy_records(checkpoints, "all")) == [1, 2, 3]


def test_rand_does_not_repeat_and_is_repeatable_by_seed(tmp_path, checkpoints):
    for epoch in range(6):
        save(PolicyStore(), checkpoints, epoch)

    first, second = (epochs(PolicyStore(seed=1).policy_records(checkpoints, "rand", n=4)) for _ in range(2))

    assert first == second
    assert len(set(first)) == 4


def test_top_orders_by_score_and_passes_over_policies_without_one(store, checkpoints):
    save(store, checkpoints, 1, score=0.5)
    save(store, checkpoints, 2, score=2.0)
    save(store, checkpoints, 3)
    save(store, checkpoints, 4, score=float("nan"))
    save(store, checkpoints, 5, score=1.0)

    assert epochs(store.policy_records(checkpoints, "top", n=10)) == [2, 5, 1]


def test_top_without_any_score_takes_the_latest_and_says_so(store, checkpoints, caplog):
    save(store, checkpoints, 1)
    save(store, checkpoints, 2)

    with caplog.at_level(logging.WARNING):
        record = store.policy_record(checkpoints)

    assert record.metadata.epoch == 2
    assert "none of 2 policies has the metric 'score'" in caplog.text


def test_k15_scores_found_after_saving_decide_top_and_filters(store, checkpoints):
    for epoch in (1, 2, 3):
        save(store, checkpoints, epoch)
    store.add_scores(checkpoints / "model_0001", score=0.9, eval_scores={"navigation": 0.8})
    store.add_scores(checkpoints / "model_0002", score=0.4, eval_scores={"navigation": 0.95})

    assert store.policy_record(checkpoints, "top").metadata.epoch == 1
    assert store.policy_record(checkpoints, "top", metric="navigation").metadata.epoch == 2
    assert store.policy_record(checkpoints, "top", metric="navigation_score").metadata.epoch == 2
    assert epochs(store.policy_records(checkpoints, "all", filters={"score": ">= 0.5"})) == [1]
    assert store.policy_record(checkpoints / "model_0001").num_params() > 0  # hashes still hold


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"score": ">= 5"}, [5, 6, 7]),
        ({"score": ">5", "epoch": "< 7"}, [6]),
        ({"epoch": 6}, [6]),
        ({"epoch": "!= 6"}, [4, 5, 7]),
        ({"run": "== nav"}, [4, 6]),
        ({"run": "nav"}, [4, 6]),
        ({"run": "!= nav"}, [5, 7]),
        ({"score": lambda score: score % 2 == 0}, [4, 6]),
        ({}, [4, 5, 6, 7]),
    ],
)
def test_filters_keep_what_matches_all_of_them(store, checkpoints, filters, expected):
    for epoch in (4, 5, 6, 7):
        save(store, checkpoints, epoch, score=float(epoch), run="nav" if epoch % 2 == 0 else "arena")

    assert epochs(store.policy_records(checkpoints, "all", filters=filters)) == expected


def test_a_filter_that_nothing_matches_is_policy_missing(store, checkpoints):
    save(store, checkpoints, 1)

    with pytest.raises(PolicyMissingError, match="none of the 1 policies"):
        store.policy_records(checkpoints, filters={"score": "> 1"})


@pytest.mark.parametrize("bad", ["=> 5", "> high", "~ 3"])
def test_a_filter_that_cannot_be_read_is_refused(store, checkpoints, bad):
    save(store, checkpoints, 1)

    with pytest.raises(ConfigError, match="filter score"):
        store.policy_records(checkpoints, filters={"score": bad})


def test_an_unknown_selector_lists_the_known(store, checkpoints):
    with pytest.raises(ConfigError, match="selector='best' is unknown; known: all, latest, rand, top"):
        store.policy_record(checkpoints, "best")


# ---- refusals ----


def test_nothing_there_is_policy_missing_which_is_a_value_error(store, checkpoints):
    checkpoints.mkdir(parents=True)

    with pytest.raises(PolicyMissingError, match="no policy under"):
        store.policy_record(checkpoints)
    with pytest.raises(ValueError, match="does not exist"):
        store.policy_record("nowhere")


def test_other_schemes_are_refused_with_a_remedy(store):
    with pytest.raises(ConfigError, match=r"is not supported.*file://PATH"):
        store.policy_record("wandb://run/x")
    with pytest.raises(ConfigError, match=r"nothing://x cannot be reached"):
        store.policy_record("nothing://x")


# ---- policies in an object store ----


def test_policies_in_an_object_store_are_found_loaded_scored_and_saved(store, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("METTA_RAY_CACHE", str(tmp_path / "cache"))
    run = "memory://bucket/runs/one"
    for epoch in (1, 2):
        save(store, f"{run}/checkpoints", epoch)

    latest = store.policy_record(run, selector="latest")
    assert latest.uri == f"{run}/checkpoints/model_0002"
    for name, tensor in new_policy(2).state_dict().items():
        assert torch.equal(latest.policy.state_dict()[name], tensor)

    store.add_scores(f"{run}/checkpoints/model_0001", score=3.0)
    elsewhere = PolicyStore(data_dir=tmp_path)
    monkeypatch.setenv("METTA_RAY_CACHE", str(tmp_path / "another machine"))
    assert elsewhere.policy_record(run, selector="top").uri == f"{run}/checkpoints/model_0001"

    places.write_bytes(f"{run}/checkpoints/model_0003/manifest.json", b"{}")
    assert epochs(elsewhere.policy_records(run, selector="all")) == [1, 2]
    assert f"{run}/checkpoints/model_0003" in caplog.text, "a damaged one is passed over, loudly"
    stored_directories.remove(f"{run}/checkpoints/model_0002")
    assert epochs(elsewhere.policy_records(run, selector="all")) == [1], "what was deleted there is gone here"
    with pytest.raises(PolicyMissingError, match="there is nothing"):
        store.policy_record("memory://bucket/nobody")


def test_k16_pickled_policies_are_refused_by_name_unread(store, checkpoints):
    checkpoints.mkdir(parents=True)
    trap = checkpoints / "model_0001.pt"
    trap.write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")

    for uri in (trap, f"pytorch://{trap}"):
        with pytest.raises(CheckpointError, match=r"model_0001\.pt.*PolicyStore\.save"):
            store.load_from_uri(uri)
    with pytest.raises(PolicyMissingError, match=r"model_0001\.pt.*pickles"):
        store.policy_record(checkpoints)
    assert not Path("pwned").exists()


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
@pytest.mark.parametrize("name", ["policy.safetensors", "policy.json", "manifest.json"])
def test_k33_a_damaged_policy_is_refused_by_name(store, checkpoints, name, damage):
    directory = save(store, checkpoints, 1).file_path
    path = directory / name
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    error = PolicyMissingError if (name, damage) == ("policy.json", "remove") else CheckpointError
    with pytest.raises(error, match="model_0001"):
        _ = store.load_from_uri(directory).policy


def test_damaged_policies_are_passed_over_loudly_when_choosing(store, checkpoints, caplog):
    save(store, checkpoints, 1)
    (save(store, checkpoints, 2).file_path / "policy.json").write_text("{")

    with caplog.at_level(logging.WARNING):
        record = store.policy_record(checkpoints, "latest")

    assert record.metadata.epoch == 1
    assert "model_0002" in caplog.text


def test_unfinished_directories_are_not_listed(store, checkpoints):
    done = save(store, checkpoints, 1)
    shutil.copytree(done.file_path, checkpoints / ".model_0002.tmp-x")

    assert epochs(store.policy_records(checkpoints, "all")) == [1]


# ---- retention ----


def test_k13_cleanup_deletes_the_real_names_and_keeps_the_last_five(store, checkpoints):
    for epoch in range(1, 9):
        save(store, checkpoints, epoch)

    deleted = store.cleanup_old_policies(checkpoints)

    assert [path.name for path in deleted] == ["model_0001", "model_0002", "model_0003"]
    assert epochs(store.policy_records(checkpoints, "all")) == [4, 5, 6, 7, 8]


def test_k13_the_best_policy_is_kept(store, checkpoints):
    for epoch in range(1, 6):
        save(store, checkpoints, epoch, score=1.0 / epoch)

    store.cleanup_old_policies(checkpoints, keep_last_n=1, keep_best=2)

    assert epochs(store.policy_records(checkpoints, "all")) == [1, 2, 5]


def test_k13_the_latest_trainer_checkpoint_is_kept(store, checkpoints):
    save_trainer_checkpoint(checkpoints, 1)
    save_trainer_checkpoint(checkpoints, 2)
    for epoch in range(3, 7):
        save(store, checkpoints, epoch)

    store.cleanup_old_policies(checkpoints, keep_last_n=2)

    assert epochs(store.policy_records(checkpoints, "all")) == [2, 5, 6]


def test_k13_a_policy_pinned_by_another_process_is_kept_until_unpinned(store, checkpoints):
    uris = [save(store, checkpoints, epoch).uri for epoch in (1, 2, 3)]
    pinning = (
        "import sys, pathlib; from metta_ray.agent import policy_pins; "
        "policy_pins.pin(pathlib.Path(sys.argv[1]), 'evaluation-7', 60.0)"
    )
    subprocess.run([sys.executable, "-c", pinning, str(checkpoints / "model_0001")], check=True, timeout=60)

    store.cleanup_old_policies(checkpoints, keep_last_n=1)
    kept_while_pinned = epochs(store.policy_records(checkpoints, "all"))
    store.unpin(uris[0], holder="evaluation-7")
    store.cleanup_old_policies(checkpoints, keep_last_n=1)

    assert kept_while_pinned == [1, 3]
    assert epochs(store.policy_records(checkpoints, "all")) == [3]


def test_a_pin_of_a_dead_holder_runs_out(store, checkpoints):
    for epoch in (1, 2):
        save(store, checkpoints, epoch)
    store.pin(checkpoints / "model_0001", seconds=-1)

    store.cleanup_old_policies(checkpoints, keep_last_n=1)

    assert epochs(store.policy_records(checkpoints, "all")) == [2]


def test_pinning_a_policy_that_is_gone_says_so_and_leaves_nothing(store, checkpoints):
    with pytest.raises(PolicyMissingError):
        store.pin(checkpoints / "model_0001")

    assert not (checkpoints / "model_0001").exists()


def test_k13_protected_and_foreign_directories_are_never_deleted(store, checkpoints):
    for epoch in range(1, 5):
        save(store, checkpoints, epoch)
    save(store, checkpoints, 0, name="favourite")
    (checkpoints / "model_0000").mkdir()
    (checkpoints / "model_0000" / "notes.txt").write_text("mine")

    store.cleanup_old_policies(checkpoints, keep_last_n=0, protect=[f"file://{checkpoints}/model_0002"])

    assert sorted(path.name for path in checkpoints.iterdir()) == ["favourite", "model_0000", "model_0002"]


def test_a_negative_number_to_keep_is_refused(store, checkpoints):
    with pytest.raises(ConfigError, match="keep_last_n=-1"):
        store.cleanup_old_policies(checkpoints, keep_last_n=-1)


def test_description_is_readable_json(store, checkpoints):
    path = save(store, checkpoints, 2, score=0.25).file_path / "policy.json"

    described = json.loads(path.read_text())

    assert described["metadata"]["score"] == 0.25
    assert described["architecture"]["config"]["architecture"] == "mlp"
