"""From a command line to checked settings."""

from __future__ import annotations

import pytest

from metta_ray.common.errors import ConfigError
from metta_ray.rl.presets import PRESETS
from metta_ray.rl.run_options import parse_run_options, preset_for


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_sound(name):
    options = parse_run_options(["--preset", name])
    assert options.preset == name
    assert options.environment()["env_config"].name


def test_options_change_the_preset():
    options = parse_run_options(
        [
            "--preset",
            "smoke",
            "--run",
            "first",
            "--trainer.ppo.clip-coef",
            "0.25",
            "--seed=3",
            "--total-timesteps",
            "1e4",
            "--fresh",
            "--agent.hidden-sizes",
            "[8,8]",
            "--env-overrides.max-steps",
            "9",
        ]
    )

    assert options.run == "first"
    assert options.trainer.ppo.clip_coef == 0.25
    assert options.trainer.seed == 3
    assert options.trainer.total_timesteps == 10_000
    assert options.fresh
    assert options.agent["hidden_sizes"] == [8, 8]
    assert options.agent["architecture"] == PRESETS["smoke"]["agent"]["architecture"]
    assert options.trainer.env_overrides == {"max_steps": 9}


def test_run_name_is_what_torchrun_lets_pass():
    assert parse_run_options(["--run-name", "a"]).run == "a"


def test_presets_are_not_changed_by_options():
    before = parse_run_options(["--preset", "smoke"])
    parse_run_options(["--preset", "smoke", "--agent.hidden-sizes", "[4]", "--trainer.ppo.gamma", "0.5"])
    assert parse_run_options(["--preset", "smoke"]) == before


@pytest.mark.parametrize(
    ("env", "preset"),
    [
        (None, "navigation"),
        ("mettagrid:smoke", "smoke"),
        ("gym:CartPole-v1", "cartpole"),
        ("gym:Acrobot-v1", "cartpole"),
        ("mettagrid:arena", "arena"),
        ("/env/mettagrid/arena", "navigation"),
        ("my_module:make", "cartpole"),
    ],
)
def test_an_environment_without_a_preset_gets_sizes_that_suit_it(env, preset):
    assert preset_for(env) == preset


def test_several_workers_mean_processes():
    environment = parse_run_options(["--preset", "smoke", "--num-workers", "2", "--num-envs", "8"]).environment()
    assert environment["vectorization"] == "multiprocessing"
    assert environment["num_envs"] == 8


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--preset smoek", "preset='smoek'.*'smoke'"),
        ("smoke", "'smoke' is not an option"),
        ("--trainer.ppo.clip-ceof 1", "clip_coef"),
        ("--num-envs x", "num_envs='x'"),
        ("--stop-after-epochs -1", "stop_after_epochs"),
    ],
)
def test_wrong_words_are_refused_with_the_remedy(words, said):
    with pytest.raises(ConfigError, match=said):
        parse_run_options(words.split())


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_run_options(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for name in ("--run", "--preset", "--fresh", "--env", "--total-timesteps", "--stop-after-epochs"):
        assert name in shown


def test_the_record_of_a_run_leaves_out_what_is_no_setting_of_the_training():
    record = parse_run_options(["--preset", "smoke", "--run", "x", "--fresh"]).record()
    assert record["preset"] == "smoke"
    assert not {"run", "fresh", "trainer", "data_dir"} & record.keys()
