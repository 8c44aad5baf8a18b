import pytest
import torch

from metta_ray.rl.hyperparameter_schedule import HyperparameterScheduler
from metta_ray.rl.trainer_config import TrainerConfig


def config_with(**scheduler: object) -> TrainerConfig:
    return TrainerConfig.from_mapping(
        {
            "total_timesteps": 1000,
            "optimizer": {"learning_rate": 0.01},
            "ppo": {"ent_coef": 0.02},
            "hyperparameter_scheduler": scheduler,
        }
    )


def adam() -> torch.optim.Adam:
    return torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))], lr=0.01)


def test_schedules_act_on_the_configuration_and_on_the_optimizer():
    config = config_with(
        learning_rate_schedule={"type": "linear", "min_value": 0.0},
        ppo_ent_coef_schedule={"type": "linear", "min_value": 0.0},
        rules=[{"path": "vtrace.vtrace_rho_clip", "type": "linear", "min_value": 0.5}],
    )
    optimizer = adam()
    scheduler = HyperparameterScheduler(config, optimizer)

    values = scheduler.step(250)

    assert values == pytest.approx(
        {"optimizer.learning_rate": 0.0075, "ppo.ent_coef": 0.015, "vtrace.vtrace_rho_clip": 0.875}
    )
    assert optimizer.param_groups[0]["lr"] == values["optimizer.learning_rate"]
    assert config.ppo.ent_coef == values["ppo.ent_coef"]
    assert config.vtrace.vtrace_rho_clip == values["vtrace.vtrace_rho_clip"]
    assert config.optimizer.learning_rate == 0.01


def test_at_and_beyond_the_end_values_stay_at_the_minimum_even_0():
    config = config_with(learning_rate_schedule={"type": "linear", "min_value": 0.0})
    optimizer = adam()
    scheduler = HyperparameterScheduler(config, optimizer)
    for step in (1000, 5000):
        scheduler.step(step)
        assert optimizer.param_groups[0]["lr"] == 0.0


def test_a_resumed_scheduler_gives_the_same_values_as_one_that_ran_through():
    def build() -> tuple[TrainerConfig, HyperparameterScheduler]:
        config = config_with(ppo_ent_coef_schedule={"type": "cosine"}, ppo_clip_schedule={"type": "logarithmic"})
        return config, HyperparameterScheduler(config, adam())

    through_config, through = build()
    for step in range(0, 701, 100):
        through.step(step)
    resumed_config, resumed = build()
    resumed.step(700)

    assert resumed_config.ppo == through_config.ppo


def test_without_schedules_nothing_moves():
    config = config_with()
    optimizer = adam()
    assert HyperparameterScheduler(config, optimizer).step(500) == {}
    assert optimizer.param_groups[0]["lr"] == 0.01


def test_other_settings_of_the_optimizer_and_scaled_groups_follow():
    config = config_with(
        learning_rate_schedule={"type": "constant"},
        rules=[
            {"path": "optimizer.beta1", "type": "linear", "min_value": 0.5},
            {"path": "optimizer.weight_decay", "type": "linear", "initial_value": 0.2, "min_value": 0.0},
        ],
    )
    optimizer = adam()
    optimizer.param_groups[0]["lr_scale"] = 3.0

    HyperparameterScheduler(config, optimizer).step(500)

    group = optimizer.param_groups[0]
    assert group["lr"] == pytest.approx(0.03)
    assert group["betas"] == pytest.approx((0.7, 0.999))
    assert group["weight_decay"] == pytest.approx(0.1)


def test_total_timesteps_can_be_given_apart():
    config = config_with(ppo_ent_coef_schedule={"type": "linear", "min_value": 0.0})
    HyperparameterScheduler(config, None, total_timesteps=100).step(50)
    assert config.ppo.ent_coef == pytest.approx(0.01)
