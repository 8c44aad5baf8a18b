"""From a YAML file and the words of a command line to checked settings of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from metta_ray.common.errors import ConfigError
from metta_ray.control.failure import Budget, Cause
from metta_ray.rl.presets import PRESETS
from metta_ray.service.run_config import (
    JOB_VARIABLE,
    RunConfig,
    WorkerTarget,
    data_directory,
    load_run_config,
    located,
    parse_workers,
    store_url,
)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_without_file_and_words_it_is_the_default_preset():
    config = load_run_config(None, {})

    assert config.preset == "navigation"
    assert config.agent == PRESETS["navigation"]["agent"]
    assert config.trainer.total_timesteps == 1_000_000
    assert (config.rollout.num_workers, config.learner.replicas) == (0, 0), "left to be chosen"


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_sound_run(preset: str):
    assert load_run_config(None, {"preset": preset}).preset == preset


def test_words_go_before_the_file_and_the_file_before_the_preset(tmp_path: Path):
    path = written(tmp_path, "preset: smoke\ntrainer:\n  seed: 3\n  ppo: {gamma: 0.5}\npacing: {target_staleness: 2}\n")

    config = load_run_config(path, {"trainer.ppo.gamma": "0.75", "rollout.num_workers": "3"})

    assert config.trainer.batch_size == PRESETS["smoke"]["trainer"]["batch_size"]
    assert config.trainer.seed == 3
    assert config.trainer.ppo.gamma == 0.75
    assert config.trainer.ppo.gae_lambda == 0.95
    assert (config.pacing.target_staleness, config.rollout.num_workers) == (2, 3)


def test_an_empty_file_and_empty_sections_change_nothing(tmp_path: Path):
    for text in ("", "# nothing\n", "trainer:\npacing:\n"):
        assert load_run_config(written(tmp_path, text), {}) == load_run_config(None, {})


def test_presets_are_not_changed_by_files_or_words(tmp_path: Path):
    before = load_run_config(None, {"preset": "smoke"})
    load_run_config(written(tmp_path, "preset: smoke\nagent: {hidden_sizes: [4]}\n"), {"trainer.ppo.gamma": "0.1"})

    assert load_run_config(None, {"preset": "smoke"}) == before


def test_what_is_printed_can_be_read_again(tmp_path: Path):
    config = load_run_config(None, {"preset": "tmaze", "workers": "2:16", "run": "a"})

    assert load_run_config(written(tmp_path, config.to_yaml()), {}) == config


@pytest.mark.parametrize(
    ("file", "words", "curriculum", "env", "preset"),
    [
        ("", {"env": "gym:CartPole-v1"}, None, "gym:CartPole-v1", "cartpole"),
        ("env: gym:CartPole-v1", {}, None, "gym:CartPole-v1", "cartpole"),
        ("env: gym:CartPole-v1", {"env": "mettagrid:smoke"}, None, "mettagrid:smoke", "smoke"),
        ("env: gym:CartPole-v1", {"trainer.env": "gym:Acrobot-v1"}, None, "gym:Acrobot-v1", "cartpole"),
        ("preset: smoke", {"env": "/env/mettagrid/arena"}, "/env/mettagrid/arena", None, "smoke"),
        ("trainer: {env: 'gym:Acrobot-v1'}", {}, None, "gym:Acrobot-v1", "navigation"),
        ("", {"trainer.env": "gym:Acrobot-v1"}, None, "gym:Acrobot-v1", "navigation"),
    ],
)
def test_an_environment_that_is_named_is_the_one_that_is_trained_on(
    tmp_path: Path, file: str, words: dict[str, str], curriculum: str | None, env: str | None, preset: str
):
    config = load_run_config(written(tmp_path, file), words)

    assert (config.trainer.curriculum, config.trainer.env, config.preset) == (curriculum, env, preset)


def test_workers_is_a_number_or_bounds():
    fixed = load_run_config(None, {"workers": "8"}).rollout
    automatic = load_run_config(None, {"workers": "4:16"}).rollout

    assert (fixed.num_workers, fixed.is_automatic, fixed.initial_workers) == (8, False, 8)
    assert (automatic.min_workers, automatic.max_workers, automatic.is_automatic) == (4, 16, True)
    assert automatic.initial_workers == 4
    assert parse_workers("2:16") == WorkerTarget(None, 2, 16)


@pytest.mark.parametrize("text", ["0", "-1", "x", "4:2", "2:", ":3", "1:2:3", "", "0:4"])
def test_workers_that_are_no_number_are_refused_with_examples(text: str):
    with pytest.raises(ConfigError, match=r"use 8, or 2:16"):
        parse_workers(text)


def test_sections_without_a_device_take_the_runs():
    words = {"device": "cuda", "learner.num_gpus": "1", "rollout.device": "cpu"}

    config = load_run_config(None, words)

    assert (config.learner.device, config.rollout.device) == ("cuda", "cpu")


def test_a_run_may_have_a_number_for_a_name():
    assert load_run_config(None, {"run": "2024"}).run == "2024"


def test_the_record_leaves_out_how_this_start_was_asked_for():
    record = load_run_config(None, {"new": "true", "detach": "true", "run": "a"}).record()

    assert record["run"] == "a"
    assert not {"new", "detach"} & record.keys()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"trainer.ppo.clip_ceof": "1"}, "did you mean 'trainer.ppo.clip_coef'"),
        ({"pacing.target_stalenes": "1"}, "did you mean 'pacing.target_staleness'"),
        ({"rollout.num_workers": "many"}, "rollout.num_workers='many'"),
        ({"num_workers": "3"}, "--workers for rollout workers"),
        ({"preset": "smoek"}, "did you mean 'smoke'"),
        ({"device": "tpu"}, "device='tpu'"),
        ({"learner.device": "cuda"}, "set num_gpus to 1"),
        ({"rollout.min_workers": "3"}, "set both"),
        ({"rollout.min_workers": "3", "rollout.max_workers": "2"}, "min_workers=3 is above max_workers=2"),
        ({"pacing.target_staleness": "5"}, "max_staleness=4 is below target_staleness=5"),
        ({"learner.replicas": "3"}, "batch_size=16384 cannot be shared.*nearest: 16320 or 16512"),
        ({"learner.replicas": "32"}, "minibatch_size=1024 cannot be shared"),
        ({"cluster.auth": "none"}, "cluster.auth='none'"),
        ({"device.x": "1"}, "unknown setting 'device.x'"),
    ],
)
def test_words_that_cannot_work_are_refused_with_the_remedy(words: dict[str, str], said: str):
    with pytest.raises(ConfigError, match=said):
        load_run_config(None, words)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("traner: {}", "did you mean 'trainer'"),
        ("trainer: {ppo: {clip_ceof: 1}}", "trainer.ppo.clip_ceof=1: unknown key; did you mean 'clip_coef'"),
        ("trainer: 5", "trainer"),
        ("- a", "not a mapping of settings but list"),
        ("a: [", "not valid YAML"),
    ],
)
def test_files_that_cannot_work_are_refused_with_the_remedy(tmp_path: Path, text: str, said: str):
    with pytest.raises(ConfigError, match=said):
        load_run_config(written(tmp_path, text), {})


def test_a_word_inside_of_what_the_file_made_a_number_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"trainer.ppo=5 has no settings inside"):
        load_run_config(written(tmp_path, "trainer: {ppo: 5}"), {"trainer.ppo.gamma": "1"})


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no_such\.yaml cannot be read"):
        load_run_config(tmp_path / "no_such.yaml", {})


def test_every_setting_of_the_service_says_what_it_trades():
    sections = ("rollout", "learner", "evaluator", "pacing", "failure", "cluster", "state")
    fields = {name: field for name, field in RunConfig.model_fields.items() if name not in (*sections, "trainer")}
    for section in sections:
        model = RunConfig.model_fields[section].annotation
        fields |= {f"{section}.{name}": field for name, field in model.model_fields.items()}

    assert [name for name, field in fields.items() if not field.description] == []


def test_budgets_are_those_of_the_configuration_and_preemptions_have_none():
    failure = load_run_config(None, {"failure.crash.per_run": "7", "failure.window_s": "60"}).failure

    assert failure.budget(Cause.CRASH) == Budget(slot_limit=20, run_limit=7, window_s=60)
    assert failure.budget(Cause.PREEMPTED).run_limit is None
    for cause in Cause:
        assert failure.budget(cause).window_s == 60


def test_runs_lie_where_the_settings_or_else_the_variables_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)

    assert data_directory("/a", {"DATA_DIR": "/b"}) == Path("/a")
    assert data_directory(None, {"DATA_DIR": "/b"}) == Path("/b")
    assert data_directory(None, {}) == tmp_path / "train_dir"
    assert data_directory(None, {JOB_VARIABLE: "{}"}) == Path.home() / "train_dir"


def test_a_jobs_working_directory_is_refused_for_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    working = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    working.mkdir(parents=True)
    monkeypatch.chdir(working)

    assert data_directory("/a", {JOB_VARIABLE: "{}"}) == Path("/a")
    with pytest.raises(ConfigError, match=r"data_dir='runs' lies in the job's working directory"):
        data_directory("runs", {JOB_VARIABLE: "{}"})


def test_what_is_left_to_variables_is_filled_in():
    config = located(load_run_config(None, {}), {"METTA_RUN": "nightly", "DATA_DIR": "/data"})

    assert (config.run, config.data_dir) == ("nightly", "/data")
    assert located(load_run_config(None, {"run": "a"}), {"METTA_RUN": "nightly"}).run == "a"
    assert store_url(None, "/data") == "sqlite:////data/runs.sqlite"
    assert store_url("sqlite:///x", "/data") == "sqlite:///x"


def test_a_store_in_the_variable_is_checked_before_anything_starts():
    with pytest.raises(ConfigError, match=r"METTA_RAY_STATE\): '/data/runs\.db' is a path.* sqlite:////data/runs\.db"):
        located(load_run_config(None, {}), {"METTA_RAY_STATE": "/data/runs.db"})
