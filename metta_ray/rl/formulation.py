"""How a run of the library computes its policy: decided once, the same on every rank and after every resume."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
import yaml

from metta_ray.agent.agent_config import agent_config_from
from metta_ray.agent.formulations import Formulation, choose_formulation
from metta_ray.envs.env_spec import EnvSpec
from metta_ray.envs.vecenv import VecEnv
from metta_ray.rl.distributed import broadcast_bytes, setup_distributed_vars
from metta_ray.rl.run_directories import run_directory
from metta_ray.rl.run_options import RunOptions


def resolve_formulation(options: RunOptions, env: VecEnv | EnvSpec, device: torch.device | str) -> RunOptions:
    """The options with a definite ``trainer.autocast`` and ``agent.gather_conv``.

    What the options say outright is followed; else what the run of that name has used so far; else what is fastest on
    this machine. Rank 0 decides for all; every rank must call it, after torch's threads are set.
    """
    is_master, _, _ = setup_distributed_vars()
    payload = json.dumps(asdict(_formulation(options, env, device))).encode() if is_master else b""
    formulation = Formulation(**json.loads(broadcast_bytes(payload)))
    trainer = options.trainer.model_copy(update={"autocast": formulation.autocast})
    agent = options.agent | {"gather_conv": formulation.gather_conv}
    return options.model_copy(update={"trainer": trainer, "agent": agent})


def _formulation(options: RunOptions, env: VecEnv | EnvSpec, device: torch.device | str) -> Formulation:
    spec = env if isinstance(env, EnvSpec) else env.driver_env
    config = agent_config_from(options.agent, default_architecture="mlp" if spec.vocabulary is None else "default")
    autocast = options.trainer.autocast
    run_dir = run_directory(options.run, options.data_dir)
    recorded = recorded_formulation(run_dir) if run_dir is not None and not options.fresh else None
    if recorded is not None:
        autocast = recorded.autocast if autocast == "auto" else autocast
        config = recorded.applied_to(config) if config.gather_conv is None else config
    segments = options.trainer.minibatch_size // options.trainer.bptt_horizon
    return choose_formulation(spec, config, autocast, device=device, segments=max(1, segments))


def recorded_formulation(run_dir: str | Path) -> Formulation | None:
    """What ``config.yaml`` of a run says; None where there is none or it leaves something open."""
    try:
        record = yaml.safe_load((Path(run_dir) / "config.yaml").read_text())
        autocast, gather_conv = record["trainer"]["autocast"], record["agent"].get("gather_conv")
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return None
    return Formulation(autocast, gather_conv) if autocast in ("none", "bf16") else None
