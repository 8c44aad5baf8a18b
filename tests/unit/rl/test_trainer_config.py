import json

import omegaconf
import pytest

from metta_ray.common.errors import ConfigError
from metta_ray.common.util.typed_config import apply_overrides
from metta_ray.rl.kickstarter_config import KickstartConfig, KickstartTeacherConfig
from metta_ray.rl.trainer_config import (
    CheckpointConfig,
    OptimizerConfig,
    PPOConfig,
    ScheduleConfig,
    SimulationConfig,
    TorchProfilerConfig,
    TrainerConfig,
    schedulable_names,
)


def test_the_example_of_the_documentation_validates_as_printed():
    config = TrainerConfig(
        total_timesteps=10_000_000,
        batch_size=16384,
        ppo=PPOConfig(gamma=0.99, gae_lambda=0.95),
    )
    assert config.minibatch_size == 16384
    assert config.ppo.clip_coef == 0.1


def test_defaults_are_the_references():
    config = TrainerConfig()
    assert (config.batch_size, config.minibatch_size, config.bptt_horizon) == (524288, 16384, 64)
    assert (config.total_timesteps, config.update_epochs) == (50_000_000_000, 1)
    optimizer = OptimizerConfig()
    assert (optimizer.learning_rate, optimizer.eps) == (0.0004573146765703167, 1e-12)
    ppo = PPOConfig()
    assert (ppo.gamma, ppo.gae_lambda, ppo.ent_coef, ppo.vf_coef) == (0.977, 0.916, 0.0021, 0.44)
    assert (config.vtrace.vtrace_rho_clip, config.prioritized_experience_replay.prio_beta0) == (1.0, 0.6)
    assert (config.checkpoint.checkpoint_interval, config.simulation.evaluate_interval) == (60, 300)
    assert config.curriculum_or_env == "/env/mettagrid/curriculum/simple"
    assert TorchProfilerConfig().enabled
    assert not TorchProfilerConfig(interval_epochs=0).enabled


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 1000}, "batch_size=1000 is not a multiple of bptt_horizon=64; nearest: 960 or 1024"),
        ({"batch_size": 32}, "batch_size=32 is not a multiple of bptt_horizon=64; nearest: 64"),
        (
            {"batch_size": 1024, "minibatch_size": 100},
            "minibatch_size=100 is not a multiple of bptt_horizon=64; nearest: 64 or 128",
        ),
        (
            {"batch_size": 1024, "minibatch_size": 768},
            "batch_size=1024 is not a multiple of minibatch_size=768; nearest: 768 or 1536",
        ),
        (
            {"batch_size": 1024, "minibatch_size": 2048},
            "minibatch_size=2048 is larger than batch_size=1024; nearest: minibatch_size=1024",
        ),
        (
            {"simulation": {"evaluate_interval": 30}},
            "simulation.evaluate_interval=30 is below checkpoint.checkpoint_interval=60; nearest: 60, or 0",
        ),
        (
            {"simulation": {"evaluate_interval": 200}},
            "simulation.evaluate_interval=200 is below checkpoint.wandb_checkpoint_interval=300",
        ),
        (
            {"checkpoint": {"wandb_checkpoint_interval": 20}},
            "checkpoint.wandb_checkpoint_interval=20 is below checkpoint.checkpoint_interval=60",
        ),
        ({"curriculum": ""}, "neither curriculum nor env is set"),
        ({"batchsize": 4}, "batchsize=4: unknown key; did you mean 'batch_size'?"),
        ({"ppo": {"clip_coef": 0}}, "ppo.clip_coef=0: input should be greater than 0"),
        ({"optimizer": {"type": "sgd"}}, "optimizer.type='sgd': input should be 'adam' or 'muon'"),
        ({"num_workers": 0}, "num_workers=0: input should be greater than 0"),
    ],
)
def test_what_cannot_work_is_refused_with_field_value_and_remedy(settings, message):
    with pytest.raises(ConfigError) as error:
        TrainerConfig.from_mapping(settings)
    assert message in str(error.value)


def test_intervals_of_zero_are_off_and_need_not_fit():
    config = TrainerConfig(
        checkpoint=CheckpointConfig(checkpoint_interval=500, wandb_checkpoint_interval=0),
        simulation=SimulationConfig(evaluate_interval=0),
    )
    assert config.simulation.evaluate_interval == 0


@pytest.mark.parametrize(
    ("batch_size", "bptt_horizon", "minibatch_size"),
    [(4096, 64, 4096), (64 * 300, 64, 64 * 150), (64 * 257, 64, 64), (131072, 64, 16384), (2048, 32, 2048)],
)
def test_an_unset_minibatch_adapts_to_the_batch(batch_size, bptt_horizon, minibatch_size):
    config = TrainerConfig(batch_size=batch_size, bptt_horizon=bptt_horizon)
    assert config.minibatch_size == minibatch_size


def test_a_refused_assignment_keeps_the_old_value():
    config = TrainerConfig(batch_size=1024)
    with pytest.raises(ValueError, match="minibatch_size=100 is not a multiple"):
        config.minibatch_size = 100
    assert config.minibatch_size == 1024
    config.ppo.clip_coef = 0.3
    assert config.ppo.clip_coef == 0.3


def test_json_and_yaml_round_trips():
    config = TrainerConfig(
        batch_size=4096,
        kickstart=KickstartConfig(additional_teachers=[KickstartTeacherConfig(teacher_uri="a")]),
        hyperparameter_scheduler={"rules": [{"path": "ppo.vf_coef", "type": "linear"}]},
        env_overrides={"num_agents": 8},
    )
    assert TrainerConfig.model_validate_json(config.model_dump_json()) == config
    assert TrainerConfig.from_mapping(json.loads(config.model_dump_json())) == config
    assert TrainerConfig.from_yaml(config.to_yaml()) == config
    assert TrainerConfig.from_mapping(omegaconf.DictConfig(config.model_dump())) == config


def test_command_line_overrides_reach_every_level():
    settings = apply_overrides({}, {"batch-size": "4096", "ppo.clip-coef": "0.2", "autocast": "none"}, TrainerConfig)
    config = TrainerConfig.from_mapping(settings)
    assert (config.batch_size, config.minibatch_size, config.ppo.clip_coef) == (4096, 4096, 0.2)


def test_an_env_alone_switches_the_default_curriculum_off():
    assert TrainerConfig(env="gym:CartPole-v1").curriculum_or_env == "gym:CartPole-v1"
    both = TrainerConfig(env="gym:CartPole-v1", curriculum="/env/mettagrid/smoke")
    assert both.curriculum_or_env == "/env/mettagrid/smoke"


def test_ranks_share_the_batch_only_when_asked():
    config = TrainerConfig(batch_size=4096, minibatch_size=1024)
    assert config.scaled_to_world_size(2) is config

    scaled = TrainerConfig(batch_size=4096, minibatch_size=1024, scale_batches_by_world_size=True)
    half = scaled.scaled_to_world_size(2)
    assert (half.batch_size, half.minibatch_size) == (2048, 1024)
    assert half.forward_pass_minibatch_target_size == 2048
    with pytest.raises(ConfigError, match="batch_size=4096 is not a multiple of world_size=3"):
        scaled.scaled_to_world_size(3)
    with pytest.raises(ConfigError, match="minibatch_size=1024 is larger than batch_size=512"):
        scaled.scaled_to_world_size(8)


def test_empty_directories_are_those_of_the_run():
    config = TrainerConfig(checkpoint=CheckpointConfig(checkpoint_dir="/elsewhere"))
    placed = config.in_run_dir("/runs/a")
    assert placed.checkpoint.checkpoint_dir == "/elsewhere"
    assert placed.simulation.replay_dir == "/runs/a/replays"
    assert placed.profiler.profile_dir == "/runs/a/torch_traces"
    assert config.simulation.replay_dir == ""


def test_the_short_form_of_a_teacher_is_the_last_of_all_teachers():
    config = KickstartConfig(
        teacher_uri="b",
        value_loss_coef=0.5,
        additional_teachers=[KickstartTeacherConfig(teacher_uri="a", action_loss_coef=2.0)],
    )
    assert [(t.teacher_uri, t.action_loss_coef, t.value_loss_coef) for t in config.teachers] == [
        ("a", 2.0, 1.0),
        ("b", 1.0, 0.5),
    ]
    assert KickstartConfig().teachers == []


def test_schedules_have_the_references_six_names_and_rules_for_the_rest():
    config = TrainerConfig.from_mapping(
        {
            "hyperparameter_scheduler": {
                "learning_rate_schedule": {"type": "cosine", "min_value": 3e-5},
                "ppo_clip_schedule": {"_target_": "some.module.LogarithmicSchedule", "decay_rate": 0.1},
                "rules": [{"path": "ppo.vf-coef", "type": "constant"}],
            }
        }
    )
    schedules = config.hyperparameter_scheduler.schedules
    assert schedules["optimizer.learning_rate"] == ScheduleConfig(type="cosine", min_value=3e-5)
    assert schedules["ppo.clip_coef"] == ScheduleConfig(type="logarithmic", rate=0.1)
    assert schedules["ppo.vf_coef"].type == "constant"


def test_the_older_lr_scheduler_becomes_a_learning_rate_schedule():
    config = TrainerConfig.from_mapping({"lr_scheduler": {"enabled": True}})
    schedules = config.hyperparameter_scheduler.schedules
    assert schedules == {"optimizer.learning_rate": ScheduleConfig(type="cosine", min_value=0.0)}
    assert TrainerConfig.from_mapping({"lr_scheduler": {"enabled": False}}) == TrainerConfig()
    with pytest.raises(ConfigError, match="warmup_steps never had an effect"):
        TrainerConfig.from_mapping({"lr_scheduler": {"warmup_steps": 5}})


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"rules": [{"path": "ppo.clip_cof", "type": "linear"}]}, "did you mean 'ppo.clip_coef'"),
        ({"rules": [{"path": "batch_size", "type": "linear"}]}, "a schedule for 'batch_size' would not act"),
        ({"ppo_clip_schedule": {"type": "linear", "min_value": 0}}, "schedule of ppo.clip_coef reaches 0.0"),
        ({"ppo_clip_schedule": {"type": "linear", "rate": 0.5}}, "rate=0.5 has no meaning"),
        ({"ppo_clip_schedule": {"type": "exponential", "rate": 1.5}}, "rate=1.5 makes an exponential"),
        ({"ppo_clip_schedule": {"type": "cosin"}}, "input should be 'constant', 'linear'"),
        (
            {
                "ppo_clip_schedule": {"type": "linear"},
                "rules": [{"path": "ppo.clip_coef", "type": "linear"}],
            },
            "ppo.clip_coef has two schedules",
        ),
    ],
)
def test_schedules_that_cannot_act_are_refused(scheduler, message):
    with pytest.raises(ConfigError) as error:
        TrainerConfig.from_mapping({"hyperparameter_scheduler": scheduler})
    assert message in str(error.value)


def test_every_schedulable_setting_can_be_set_on_the_configuration():
    config = TrainerConfig()
    for name in schedulable_names():
        section, field = name.split(".")
        setattr(getattr(config, section), field, 0.5)
    assert "ppo.vf_clip_coef" in schedulable_names()
    assert "ppo.norm_adv" not in schedulable_names()
