import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from metta_ray.common.errors import ConfigError
from metta_ray.common.util.fs import RunLock
from metta_ray.rl.run_directories import (
    git_revision,
    release_run_directories,
    save_experiment_config,
    setup_run_directories,
)
from metta_ray.rl.trainer_config import OptimizerConfig, TrainerConfig


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("METTA_RUN", "DATA_DIR", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    held = set(RunLock._held)
    yield
    for path in set(RunLock._held) - held:
        RunLock._held[path].release()


def test_directories_are_made_under_the_given_names(tmp_path: Path):
    dirs = setup_run_directories("a", tmp_path)

    assert dirs.run_name == "a"
    assert dirs.run_dir == str(tmp_path / "a")
    assert Path(dirs.checkpoint_dir) == tmp_path / "a" / "checkpoints"
    for path in (dirs.checkpoint_dir, dirs.replay_dir, dirs.stats_dir):
        assert Path(path).is_dir()


def test_names_come_from_the_environment_when_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("METTA_RUN", "from_env")
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "base"))

    assert setup_run_directories().run_dir == str(tmp_path / "base" / "from_env")
    assert setup_run_directories("given", tmp_path).run_dir == str(tmp_path / "given")


def test_without_any_name_the_time_names_the_run_and_two_runs_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    first, second = setup_run_directories(), setup_run_directories()

    assert Path(first.run_dir).parent == tmp_path / "train_dir"
    assert first.run_name.startswith("run_2")
    assert first.run_name != second.run_name


def test_ranks_without_a_name_agree_on_one(tmp_path: Path):
    code = (
        "import os, sys; os.environ['RANK'] = sys.argv[2]; "
        "from metta_ray.rl.run_directories import setup_run_directories; "
        "print(setup_run_directories(data_dir=sys.argv[1]).run_name)"
    )
    environment = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    names = [
        subprocess.run(
            [sys.executable, "-c", code, tmp_path, rank],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for rank in ("0", "1")
    ]
    assert names[0] == names[1]


def test_several_machines_need_a_common_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="set run_name or METTA_RUN"):
        setup_run_directories(data_dir=tmp_path)


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "-flag", "with space", "x" * 201])
def test_names_that_cannot_be_directories_are_refused(tmp_path: Path, name: str):
    with pytest.raises(ConfigError, match="cannot name a directory"):
        setup_run_directories(name, tmp_path)


def test_a_base_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/a cannot be written .*; set data_dir or DATA_DIR"):
        setup_run_directories("a", tmp_path / "file")


def run_in_other_process(tmp_path: Path, rank: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; from metta_ray.rl.run_directories import setup_run_directories; "
        "setup_run_directories('a', sys.argv[1])"
    )
    return subprocess.run([sys.executable, "-c", code, tmp_path], env={"RANK": rank}, capture_output=True, text=True)


def test_a_run_in_use_is_refused_to_other_processes_but_not_to_its_own_ranks(tmp_path: Path):
    dirs = setup_run_directories("a", tmp_path)

    other = run_in_other_process(tmp_path, rank="0")
    assert other.returncode == 1
    assert f"run directory {tmp_path / 'a'} is in use by process" in other.stderr
    assert run_in_other_process(tmp_path, rank="1").returncode == 0

    release_run_directories(dirs)
    assert run_in_other_process(tmp_path, rank="0").returncode == 0


def test_the_saved_configuration_tells_what_ran(tmp_path: Path):
    dirs = setup_run_directories("a", tmp_path)
    config = TrainerConfig(batch_size=4096, seed=7)

    save_experiment_config(dirs, "cpu", config, agent=OptimizerConfig(), note={"path": tmp_path})

    record = yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())
    assert (record["run"], record["run_dir"], record["data_dir"]) == ("a", dirs.run_dir, str(tmp_path))
    assert (record["device"], record["seeds"]) == ("cpu", {"trainer": 7})
    assert TrainerConfig.from_mapping(record["trainer"]) == config
    assert record["agent"]["type"] == "adam"
    assert record["note"] == {"path": str(tmp_path)}
    assert {"python", "numpy"} <= set(record["versions"])


def test_only_rank_0_saves_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "1")
    dirs = setup_run_directories("a", tmp_path)
    save_experiment_config(dirs, "cpu", TrainerConfig())
    assert not (tmp_path / "a" / "config.yaml").exists()


def test_the_git_revision_is_that_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert git_revision() is None

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)

    git("init")
    Path("file").write_text("1")
    git("add", "file")
    git("commit", "-m", "m")
    revision = git_revision()
    assert revision is not None
    assert len(revision["commit"]) == 40
    assert revision["has_changes"] is False
    Path("file").write_text("2")
    changed = git_revision()
    assert changed is not None
    assert changed["has_changes"] is True


def test_a_url_is_not_taken_for_a_directory():
    with pytest.raises(ConfigError, match="the library keeps runs in directories"):
        setup_run_directories("a", "s3://bucket/runs")
