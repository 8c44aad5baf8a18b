"""Which suite suits an environment that a run was trained on."""

from __future__ import annotations

from typing import Any

from metta_ray.sim.simulation import env_factory
from metta_ray.sim.simulation_config import SimulationSuiteConfig, SingleEnvSimulationConfig
from metta_ray.sim.simulation_suite import create_evaluation_config_suite, create_replay_config

EPISODES = 20
AGENT_EPISODES = 80
"""Where an episode has many agents, fewer episodes are played."""


def suite_for(env: str, env_overrides: dict[str, Any]) -> SimulationSuiteConfig:
    """Navigation in three sizes for the navigation curricula, else the training environment itself."""
    if _is_navigation(env):
        suite = create_evaluation_config_suite()
        changed = {
            name: simulation.model_copy(update={"env_overrides": {**env_overrides, **simulation.env_overrides}})
            for name, simulation in suite.simulations.items()
        }
        return suite.model_copy(update={"simulations": changed})
    name = env.strip("/").replace(":", "/", 1)
    simulation = SingleEnvSimulationConfig(env=env, num_episodes=EPISODES, env_overrides=env_overrides)
    agents = env_factory(simulation, EPISODES).spec().agents_per_env
    episodes = min(EPISODES, max(AGENT_EPISODES // agents, 4))
    simulation = simulation.model_copy(update={"num_episodes": episodes})
    return SimulationSuiteConfig(name="evaluation", num_episodes=episodes, simulations={name: simulation})


def replay_for(env: str, env_overrides: dict[str, Any]) -> SingleEnvSimulationConfig | None:
    """One episode to look at; None where there are no replays (other than MettaGrid)."""
    if _is_navigation(env):
        return create_replay_config().model_copy(
            update={"env_overrides": {**env_overrides, **create_replay_config().env_overrides}}
        )
    if env.startswith(("mettagrid:", "/")):
        return SingleEnvSimulationConfig(env=env, num_episodes=1, env_overrides=env_overrides)
    return None


def _is_navigation(env: str) -> bool:
    return "curriculum/navigation/" in env or env in ("mettagrid:bucketed", "mettagrid:navigation")
