"""Builds policies: ``Agent(env)`` as a script says it, ``build_policy(spec, config)`` as other code does."""

from __future__ import annotations

import logging
from typing import Any

import torch

from metta_ray.agent.agent_config import AgentConfig, agent_config_from
from metta_ray.agent.metta_agent import MettaAgent
from metta_ray.envs.env_spec import EnvSpec
from metta_ray.envs.vecenv import VecEnv

logger = logging.getLogger(__name__)


def Agent(  # noqa: N802 - the seed's name
    env: VecEnv | EnvSpec, config: Any = None, device: str | torch.device = "cuda"
) -> MettaAgent:
    """A fresh policy for ``env``, on ``device``; without a GPU ``cuda`` means the CPU, with a warning.

    config: None, an AgentConfig, or a dict or omegaconf DictConfig with its fields, bare or under the key
        ``agent``. Without ``architecture``, token observations get ``default`` (CNN and LSTM), others
        ``mlp``.
    """
    spec = env if isinstance(env, EnvSpec) else env.driver_env
    architecture = "mlp" if spec.vocabulary is None else "default"
    policy = build_policy(spec, agent_config_from(config, default_architecture=architecture))
    return policy.to(_available(device))


def build_policy(spec: EnvSpec, config: AgentConfig) -> MettaAgent:
    """A fresh policy on the CPU; its weights come from torch's default generator."""
    return MettaAgent(spec, config)


def _available(device: str | torch.device) -> torch.device:
    wanted = torch.device(device)
    if wanted.type == "cuda" and not torch.cuda.is_available():
        logger.warning("device %r was asked for, but torch finds no GPU: using the CPU", str(device))
        return torch.device("cpu")
    return wanted
