"""What ``run.py`` is asked to do: a preset, changed by dotted options, checked before anything starts.

run.py --preset smoke --run first --trainer.ppo.clip-coef 0.1 --env mettagrid:smoke --seed 3
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from metta_ray.common.errors import ConfigError
from metta_ray.common.util.typed_config import StrictModel, apply_overrides, did_you_mean, validated
from metta_ray.envs.registry import resolve_env
from metta_ray.rl.presets import PRESETS
from metta_ray.rl.trainer_config import TrainerConfig

DEFAULT_PRESET = "navigation"
SHORT_OPTIONS = {"total_timesteps": "trainer.total_timesteps", "seed": "trainer.seed"}


class RunOptions(StrictModel):
    """One training run of the library."""

    preset: str = Field(default=DEFAULT_PRESET, description=f"settings to start from: {', '.join(PRESETS)}")
    run: str | None = Field(default=None, description="name of the run; an existing one is continued")
    fresh: bool = Field(default=False, description="set an existing run of that name aside and start anew")
    data_dir: str | None = Field(
        default=None, description="where runs are kept; default $DATA_DIR or ./train_dir"
    )
    device: str = Field(default="cpu", description="cpu or cuda")
    threads: int = Field(
        default=1,
        ge=0,
        description="torch threads of this process; 0: its share of the cores. More than 1 pays only for large "
        "networks on idle cores",
    )
    env: str = Field(default="", description="gym:ID, mettagrid:KIND, module:factory or a curriculum path")
    env_overrides: dict[str, Any] = Field(default_factory=dict, description="fields of every task")
    num_envs: int = Field(default=64, ge=1, description="environments per process")
    num_workers: int = Field(default=1, ge=1, description="processes that step environments; 1: this one")
    async_factor: int = Field(
        default=1, ge=1, description="groups of environments in flight, with several workers"
    )
    agent: dict[str, Any] = Field(default_factory=dict, description="network: see AgentConfig")
    trainer: TrainerConfig = Field(default_factory=TrainerConfig)
    evaluate: bool = Field(default=True, description="play evaluation episodes and write a replay at the end")

    def record(self) -> dict[str, Any]:
        """What ``config.yaml`` keeps of these options beside the trainer's settings."""
        return self.model_dump(mode="json", exclude={"trainer", "run", "data_dir", "fresh", "device"})

    @property
    def environment(self) -> dict[str, Any]:
        """Arguments of ``Environment`` for these options."""
        is_curriculum = self.env.startswith("/")
        chosen: dict[str, Any] = (
            {"curriculum_path": self.env, "env_config": self.env_overrides or None}
            if is_curriculum
            else {"env_config": resolve_env(self.env, **self.env_overrides)}
        )
        return chosen | {
            "device": self.device,
            "seed": self.trainer.seed,
            "num_envs": self.num_envs,
            "num_workers": self.num_workers,
            "async_factor": self.async_factor,
            "vectorization": "serial" if self.num_workers == 1 else "multiprocessing",
        }


def parse_run_options(argv: Sequence[str]) -> RunOptions:
    """Options from a command line. ConfigError with one readable message for anything that cannot work."""
    given = _read(argv)
    name = given.pop("preset", None) or preset_for(given.get("env"))
    if name not in PRESETS:
        raise ConfigError(f"preset={name!r} is unknown{did_you_mean(name, PRESETS)}")
    base = validated(RunOptions, {**PRESETS[name], "preset": name})
    options = apply_overrides(base, given)
    assert isinstance(options, RunOptions)
    return options


def preset_for(env: str | None) -> str:
    """The preset whose sizes suit an environment that was named without one."""
    if env is None:
        return DEFAULT_PRESET
    for name, preset in PRESETS.items():
        if preset["env"] == env:
            return name
    return DEFAULT_PRESET if env.startswith(("mettagrid:", "/")) else "cartpole"


def _read(argv: Sequence[str]) -> dict[str, Any]:
    """``--a.b-c 1 --flag`` → {"a.b_c": "1", "flag": "true"}."""
    parser = argparse.ArgumentParser(
        prog="run.py", description=_help(), formatter_class=argparse.RawTextHelpFormatter
    )
    _, words = parser.parse_known_args(list(argv))
    given: dict[str, Any] = {}
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise ConfigError(f"{word!r} is not an option; options look like --trainer.ppo.clip-coef 0.2")
        name, separator, value = word[2:].partition("=")
        if not separator:
            value = words.pop(0) if words and not words[0].startswith("--") else "true"
        name = name.replace("-", "_")
        given[SHORT_OPTIONS.get(name, name)] = value
    return given


def _help() -> str:
    fields = RunOptions.model_fields.items()
    lines = [f"  --{name.replace('_', '-'):<16} {field.description or ''}" for name, field in fields]
    return "\n".join(
        ["Train a policy in this process, or under torchrun in several.", "", *lines]
        + ["", "Every field has a dotted name, e.g. --trainer.ppo.clip-coef 0.2 --agent.architecture light;"]
        + [
            f"--total-timesteps and --seed are short for {' and '.join('--' + v for v in SHORT_OPTIONS.values())}."
        ]
    )
