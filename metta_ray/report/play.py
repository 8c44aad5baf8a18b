"""Plays one episode with a policy, so that there is something to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import yaml

from metta_ray.agent.policy_store import PolicyStore
from metta_ray.common.errors import ConfigError
from metta_ray.common.util import places
from metta_ray.eval.suites import replay_for
from metta_ray.sim.players import Player, PolicyPlayer, named_player
from metta_ray.sim.simulation import Simulation
from metta_ray.sim.simulation_config import SingleEnvSimulationConfig


class Played(NamedTuple):
    """path: of the replay. player, env, seed: what was played, for people."""

    path: Path
    player: str
    env: str
    seed: int


def play_episode(
    policy: str, folder: Path, *, env: str | None = None, seed: int = 0, data_dir: str | Path = "./train_dir"
) -> Played:
    """Plays one episode and leaves its replay, with value estimates, in ``folder``.

    policy: URI of a policy or of a directory with several (the latest), ``random`` or ``scripted``. env: default
    what the policy was trained on. ConfigError where there are no replays, PolicyMismatchError where the policy does
    not fit the environment.
    """
    player = named_player(policy, PolicyStore(data_dir=data_dir))
    config = _env_of(player) if env is None else _config(env, {})
    simulation = Simulation(f"replay/{config.env.strip('/').replace(':', '/')}", config, seed=seed, replay_dir=folder)
    result = simulation.run(player)
    if not result.replay_paths:
        raise ConfigError(f"no episode of {config.env} ended within {config.max_time_s:.0f} s; choose a shorter one")
    return Played(Path(result.replay_paths[0]), _name_of(player), config.env, seed)


def _env_of(player: Player) -> SingleEnvSimulationConfig:
    """Where the policy's run was trained, as its configuration says, else the environment its weights are made for."""
    if not isinstance(player, PolicyPlayer):
        raise ConfigError(f"{player.key.uri} can play anything: say where, e.g. --env mettagrid:navigation")
    trainer = _trainer_of(player.key.uri)
    env = trainer.get("curriculum") or trainer.get("env") or player.spec.name
    return _config(str(env), dict(trainer.get("env_overrides") or {}))


def _config(env: str, overrides: dict[str, Any]) -> SingleEnvSimulationConfig:
    config = replay_for(env, overrides)
    if config is None:
        raise ConfigError(f"{env} leaves no replays: only MettaGrid does, e.g. --env mettagrid:navigation")
    return config.model_copy(update={"num_episodes": 1})


def _trainer_of(policy_uri: str) -> dict[str, Any]:
    """Settings of the run that a policy lies in: ``<run>/checkpoints/model_0012``; nothing if it lies alone."""
    run = policy_uri.rstrip("/").rpartition("/")[0].rpartition("/")[0]
    try:
        settings = yaml.safe_load(places.read_bytes(places.inside(run, "config.yaml")))
    except (OSError, yaml.YAMLError):
        return {}
    trainer = settings.get("trainer") if isinstance(settings, dict) else None
    return trainer if isinstance(trainer, dict) else {}


def _name_of(player: Player) -> str:
    parts = Path(player.key.uri.removeprefix("file://")).parts
    return "/".join((parts[-3], parts[-1])) if len(parts) > 2 and parts[-2] == "checkpoints" else parts[-1]
