"""What cannot work is refused before anything starts: exit code 2, one readable message, nothing left behind."""

from __future__ import annotations

import importlib.util
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from metta_ray.rl.run_directories import release_run_directories, setup_run_directories

ROOT = Path(__file__).parents[2]
SHORT = ["--preset", "cartpole", "--total-timesteps", "512", "--evaluate", "false", "--trainer.update-epochs", "1"]


@pytest.fixture(scope="module")
def run_py() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_py_under_test", ROOT / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


Refuse = Callable[..., str]


@pytest.fixture
def refuse(run_py: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """``refuse("--option", "value")``: the message, after checking all that holds for every refusal."""

    def run(*options: str, data_dir: Path | None = None) -> str:
        base = data_dir or tmp_path / "runs"
        before = sorted(base.rglob("*")) if base.exists() else []
        code = run_py.main(["--run", "a", "--data-dir", str(base), *options])
        message = capsys.readouterr().err
        assert code == 2, message
        assert message.startswith("error: ")
        assert "Traceback" not in message
        assert len(message.splitlines()) <= 3, message
        if data_dir is None:
            assert (sorted(base.rglob("*")) if base.exists() else []) == before, "something was left behind"
        return message

    return run


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--trainer.ppo.clip-ceof 0.2", ["clip_ceof", "did you mean 'trainer.ppo.clip_coef'"]),
        ("--trainer.ppo.clip-coef 2", ["clip_coef", "2", "less than or equal to 1"]),
        ("--trainer.ppo.clip-coef high", ["clip_coef", "high"]),
        ("--trainer.batch-size 1000", ["batch_size=1000", "bptt_horizon=32", "992 or 1024"]),
        ("--trainer.minibatch-size 96", ["batch_size=256", "minibatch_size=96"]),
        ("--env /env/mettagrid/curriculum/navigation/bukceted", ["bukceted", "navigation/bucketed"]),
        ("--env mettagrid:navgation", ["navgation", "navigation"]),
        ("--env gym:CartPole-v77", ["CartPole-v77"]),
        ("--env nowhere_to_be_found:factory", ["nowhere_to_be_found"]),
        ("--env CartPole-v1", ["CartPole-v1", "gym:"]),
        ("--env mettagrid:smoke --env-overrides.max-stepz 9", ["max_stepz", "max_steps"]),
        ("--agent.architecture light", ["light", "gym:CartPole-v1"]),
        ("--agent.architecture lihgt", ["lihgt", "light"]),
        ("--agent.hiden-sizes [8]", ["hiden_sizes", "hidden_sizes"]),
        ("--agent.hidden-sizes [0]", ["hidden_sizes", "0"]),
        ("--agent.lstm-hidden-size -3", ["lstm_hidden_size", "-3"]),
        ("--num-envs 64", ["batch_size=256", "64", "2048"]),
        ("--num-envs 3", ["batch_size=256", "3", "192 or 288"]),
        ("--num-envs -1", ["num_envs", "-1"]),
        ("--num-envs many", ["num_envs", "many"]),
        ("--num-workers 3", ["8", "3"]),
        ("--device tpu", ["tpu", "cpu"]),
        ("--preset cartpool", ["cartpool", "cartpole"]),
        ("--threads -2", ["threads", "-2"]),
        ("--seed -1", ["seed", "-1"]),
        ("--total-timesteps 0", ["total_timesteps", "0"]),
        ("--trainer.optimizer.type sgd", ["type", "sgd", "muon"]),
        ("--trainer.checkpoint.checkpoint-interval 400", ["checkpoint_interval", "400"]),
        ("--run ../elsewhere", ["../elsewhere"]),
        ("--trainer.kickstart.teacher-uri ./no_such_policy", ["no_such_policy"]),
        ("train", ["train", "--trainer.ppo.clip-coef"]),
    ],
)
def test_it_is_refused_with_field_value_and_remedy(refuse: Refuse, options: str, said: list[str]):
    words = options.split()
    message = refuse(*([] if "--preset" in words else SHORT), *words)

    for part in said:
        assert part in message, message


@pytest.fixture(scope="module")
def trained(run_py: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished short run; copy it before changing it."""
    base = tmp_path_factory.mktemp("trained")
    options = ["--run", "a", "--data-dir", str(base), "--trainer.checkpoint.checkpoint-interval", "1"]
    assert run_py.main([*SHORT, *options]) == 0
    return base


@pytest.fixture
def own_copy(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "copy")
    return tmp_path / "copy"


def test_weights_of_another_architecture_are_refused(refuse: Refuse, own_copy: Path):
    message = refuse(*SHORT, "--agent.hidden-sizes", "[8]", data_dir=own_copy)

    assert "another architecture" in message
    assert "model_0002" in message
    assert "config.yaml" in message


def test_another_optimizer_type_is_refused(refuse: Refuse, own_copy: Path):
    message = refuse(*SHORT, "--trainer.optimizer.type", "muon", data_dir=own_copy)

    assert "optimiser state" in message
    assert "model_0002" in message


def test_other_sizes_than_the_saved_ones_are_refused(refuse: Refuse, own_copy: Path):
    message = refuse(*SHORT, "--num-envs", "4", data_dir=own_copy)

    assert "(4, 1)" in message
    assert "(8, 1)" in message


def test_k33_a_run_whose_checkpoints_are_all_damaged_is_refused_and_each_is_named(
    refuse: Refuse, own_copy: Path, caplog: pytest.LogCaptureFixture
):
    for checkpoint in (own_copy / "a" / "checkpoints").iterdir():
        (checkpoint / "trainer.safetensors").write_bytes(b"rubbish")
    with caplog.at_level(logging.WARNING):
        message = refuse(*SHORT, data_dir=own_copy)

    assert "all 2 checkpoints" in message
    assert "model_0001" in caplog.text
    assert "model_0002" in caplog.text


def test_a_damaged_checkpoint_is_passed_over_by_name_and_the_previous_one_used(
    run_py: ModuleType, own_copy: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    weights = own_copy / "a" / "checkpoints" / "model_0002" / "policy.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)

    with caplog.at_level(logging.WARNING):
        assert run_py.main([*SHORT, "--run", "a", "--data-dir", str(own_copy)]) == 0

    assert "model_0002 is passed over" in caplog.text
    assert "policy.safetensors" in caplog.text
    assert "after epoch 1" in capsys.readouterr().out


def test_a_pickled_policy_is_refused(refuse: Refuse, tmp_path: Path):
    pickled = tmp_path / "model.pt"
    pickled.write_bytes(b"\x80\x04K\x01.")

    message = refuse(*SHORT, "--trainer.initial-policy.uri", str(pickled), data_dir=tmp_path / "runs")

    assert "model.pt" in message
    assert "pickle" in message


def test_a_run_directory_in_use_is_refused(start_training, tmp_path: Path):
    dirs = setup_run_directories("a", tmp_path / "runs")
    try:
        _, err = start_training(*SHORT).wait(expect=2)
    finally:
        release_run_directories(dirs)

    assert err.startswith("error: ")
    assert "in use by process" in err
    assert len(err.splitlines()) == 1


def test_cuda_without_a_gpu_warns_and_uses_the_cpu(run_py: ModuleType, tmp_path: Path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.warns(UserWarning, match="CUDA is not available: using the CPU"):
        code = run_py.main([*SHORT, "--run", "a", "--data-dir", str(tmp_path), "--device", "cuda"])

    assert code == 0
