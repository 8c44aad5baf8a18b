"""What ``run.py`` is asked to do: a preset, changed by dotted options, checked before anything starts.

run.py --preset smoke --run first --trainer.ppo.clip-coef 0.1 --env mettagrid:smoke --seed 3
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from metta_ray.common.util.option_words import read_options
from metta_ray.common.util.typed_config import StrictModel, apply_overrides, validated
from metta_ray.rl.presets import DEFAULT_PRESET, PRESETS, environment_settings, preset_for, preset_settings
from metta_ray.rl.trainer_config import TrainerConfig
from metta_ray.rl.vecenv import training_factory, vecenv_sizes

SHORT_OPTIONS = {
    name: f"trainer.{name}" for name in ("total_timesteps", "seed", "env_overrides", "num_workers", "async_factor")
}
SHORT_OPTIONS["run_name"] = "run"  # torchrun takes --run for the beginning of its own --run-path


class RunOptions(StrictModel):
    """One training run of the library."""

    preset: str = Field(default=DEFAULT_PRESET, description=f"settings to start from: {', '.join(PRESETS)}")
    run: str | None = Field(default=None, description="name of the run; an existing one is continued")
    fresh: bool = Field(default=False, description="set an existing run of that name aside and start anew")
    data_dir: str | None = Field(default=None, description="where runs are kept; default $DATA_DIR or ./train_dir")
    device: str = Field(default="cpu", description="cpu or cuda")
    threads: int = Field(
        default=1,
        ge=0,
        description="torch threads of this process; 0: its share of the cores. More than 1 pays only for large "
        "networks on idle cores",
    )
    num_envs: int = Field(
        default=0,
        ge=0,
        description="environments per process; 0: as many as trainer.forward_pass_minibatch_target_size asks for",
    )
    agent: dict[str, Any] = Field(default_factory=dict, description="network: see AgentConfig")
    trainer: TrainerConfig = Field(default_factory=TrainerConfig)
    stop_after_epochs: int = Field(
        default=0, ge=0, description="save and end after so many epochs of this session; 0: when training is done"
    )
    tensorboard: bool = Field(default=False, description="write TensorBoard event files beside metrics.jsonl")
    wandb: bool = Field(default=False, description="track with Weights & Biases, as WANDB_* variables say")
    metrics_port: int | None = Field(
        default=None, ge=0, le=65535, description="serve metrics to Prometheus at this port of localhost; 0: a free one"
    )
    evaluate: bool = Field(default=True, description="play evaluation episodes and write a replay at the end")

    def record(self) -> dict[str, Any]:
        """What ``config.yaml`` keeps of these options beside the trainer's settings."""
        return self.model_dump(mode="json", exclude={"trainer", "run", "data_dir", "fresh", "device"})

    def environment(self) -> dict[str, Any]:
        """Arguments of ``Environment`` for these options. ConfigError for an environment that is not there."""
        trainer = self.trainer
        factory = training_factory(trainer)
        vectorization = "serial" if trainer.num_workers == 1 else "multiprocessing"
        sizes = vecenv_sizes(
            trainer.forward_pass_minibatch_target_size,
            factory.spec().agents_per_env,
            trainer.num_workers,
            trainer.async_factor,
            vectorization,
        )
        return {
            "env_config": factory,
            "device": self.device,
            "seed": trainer.seed,
            "num_envs": self.num_envs or sizes.num_envs,
            "num_workers": trainer.num_workers,
            "async_factor": trainer.async_factor,
            "zero_copy": trainer.zero_copy,
            "vectorization": vectorization,
        }


def parse_run_options(argv: Sequence[str]) -> RunOptions:
    """Options from a command line. ConfigError with one readable message for anything that cannot work."""
    given: dict[str, Any] = dict(_read(argv))
    env = given.pop("env", None)
    name = given.pop("preset", None) or preset_for(env)
    base = validated(RunOptions, {**preset_settings(name), "preset": name})
    if env is not None:
        given |= environment_settings(env)
    options = apply_overrides(base, given)
    assert isinstance(options, RunOptions)
    return options


def _read(argv: Sequence[str]) -> dict[str, str]:
    parser = argparse.ArgumentParser(prog="run.py", description=_help(), formatter_class=argparse.RawTextHelpFormatter)
    _, words = parser.parse_known_args(list(argv))
    return read_options(words, SHORT_OPTIONS)


def _help() -> str:
    fields = RunOptions.model_fields.items()
    lines = [f"  --{name.replace('_', '-'):<16} {field.description or ''}" for name, field in fields]
    short = ", ".join("--" + name.replace("_", "-") for name in SHORT_OPTIONS)
    text = [
        "Train a policy in this process, or under torchrun in several.",
        "",
        *lines,
        "  --env              gym:ID, mettagrid:KIND, module:factory or the path of a curriculum",
        "",
        "Every field has a dotted name, e.g. --trainer.ppo.clip-coef 0.2 --agent.architecture light.",
        f"Short for --trainer.…: {short}.",
    ]
    return "\n".join(text)
