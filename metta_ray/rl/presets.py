"""Ready-made settings that learn, each measured; ``run.py --preset NAME`` starts from one.

Where they differ from ``TrainerConfig``'s defaults the reason is the same: on a machine with few cores batches are
small, and what decides is more gradient steps per agent step (several update epochs, small minibatches), a learning
rate that falls, and a critic that may have large values (``separate_critic`` of the MLP).
"""

from __future__ import annotations

from typing import Any

from metta_ray.common.errors import ConfigError
from metta_ray.common.util.typed_config import did_you_mean

DEFAULT_PRESET = "navigation"
CURRICULUM = "/env/mettagrid/curriculum/navigation/bucketed"

PPO = {
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "clip_coef": 0.2,
    "ent_coef": 0.01,
    "vf_coef": 0.5,
    "clip_vloss": False,
}
FALLING = {"learning_rate_schedule": {"type": "linear", "min_value": 5e-5}}

PRESETS: dict[str, dict[str, Any]] = {
    # Bucketed navigation with the light network: the main job, sized for a few minutes on two cores.
    "navigation": {
        "agent": {"architecture": "light"},
        "trainer": {
            "curriculum": CURRICULUM,
            "forward_pass_minibatch_target_size": 256,
            "async_factor": 1,
            "total_timesteps": 1_000_000,
            "batch_size": 16_384,
            "minibatch_size": 1024,
            "bptt_horizon": 64,
            "update_epochs": 2,
            "optimizer": {"learning_rate": 1e-3, "eps": 1e-5},
            "ppo": PPO | {"gamma": 0.997},
            "hyperparameter_scheduler": FALLING,
        },
    },
    # 24 agents turn ore into batteries into hearts, and fight.
    "arena": {
        "agent": {"architecture": "light"},
        "trainer": {
            "env": "mettagrid:arena",
            "forward_pass_minibatch_target_size": 192,
            "async_factor": 1,
            "total_timesteps": 1_000_000,
            "batch_size": 12_288,
            "minibatch_size": 1024,
            "bptt_horizon": 64,
            "update_epochs": 2,
            "optimizer": {"learning_rate": 1e-3, "eps": 1e-5},
            "ppo": PPO,
            "hyperparameter_scheduler": FALLING,
        },
    },
    # One altar in a 5×5 room, 32-step episodes: learns in seconds.
    "smoke": {
        "agent": {"architecture": "mlp", "hidden_sizes": [128, 128]},
        "trainer": {
            "env": "mettagrid:smoke",
            "forward_pass_minibatch_target_size": 64,
            "async_factor": 1,
            "total_timesteps": 500_000,
            "batch_size": 2048,
            "minibatch_size": 512,
            "bptt_horizon": 32,
            "update_epochs": 3,
            "optimizer": {"learning_rate": 1e-3, "eps": 1e-5},
            "ppo": PPO,
        },
    },
    # A cue at the start tells which arm pays: needs memory.
    "tmaze": {
        "agent": {"architecture": "mlp", "hidden_sizes": [128, 128], "lstm_hidden_size": 128},
        "trainer": {
            "env": "mettagrid:tmaze",
            "forward_pass_minibatch_target_size": 64,
            "async_factor": 1,
            "total_timesteps": 200_000,
            "batch_size": 3840,
            "minibatch_size": 960,
            "bptt_horizon": 60,
            "update_epochs": 3,
            "optimizer": {"learning_rate": 1e-3, "eps": 1e-5},
            # Before the cue is used a touch pays little on average: without much entropy the arms are given up.
            "ppo": PPO | {"ent_coef": 0.06},
            "hyperparameter_scheduler": FALLING | {"ppo_ent_coef_schedule": {"type": "linear", "min_value": 0.01}},
        },
    },
    # The settings of rl-baselines3-zoo for this environment, over twice its length.
    "cartpole": {
        "agent": {"architecture": "mlp"},
        "trainer": {
            "env": "gym:CartPole-v1",
            "forward_pass_minibatch_target_size": 8,
            "async_factor": 1,
            "total_timesteps": 200_000,
            "batch_size": 256,
            "minibatch_size": 256,
            "bptt_horizon": 32,
            "update_epochs": 20,
            "optimizer": {"learning_rate": 1e-3, "eps": 1e-5},
            "ppo": PPO | {"gamma": 0.98, "gae_lambda": 0.8, "ent_coef": 0.0},
            "hyperparameter_scheduler": {
                "learning_rate_schedule": {"type": "linear", "min_value": 1e-9},
                "ppo_clip_schedule": {"type": "linear", "min_value": 1e-6},
            },
        },
    },
}


def preset_settings(name: str) -> dict[str, Any]:
    """Settings of a preset by name. ConfigError for one that is not there."""
    if name not in PRESETS:
        raise ConfigError(f"preset={name!r} is unknown{did_you_mean(name, PRESETS)}")
    return PRESETS[name]


def preset_for(env: str | None) -> str:
    """The preset whose sizes suit an environment that was named without one."""
    if env is None:
        return DEFAULT_PRESET
    for name, preset in PRESETS.items():
        if env in (preset["trainer"].get("env"), preset["trainer"].get("curriculum")):
            return name
    return DEFAULT_PRESET if env.startswith(("mettagrid:", "/")) else "cartpole"


def environment_settings(env: str) -> dict[str, str | None]:
    """What ``--env`` stands for: the path of a curriculum, or the name of an environment without one."""
    is_curriculum = env.startswith("/")
    return {"trainer.curriculum": env if is_curriculum else None, "trainer.env": None if is_curriculum else env}
