"""Evaluation: a policy plays every simulation of a suite."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from metta_ray.agent.policy_record import PolicyRecord
from metta_ray.agent.policy_store import PolicyStore
from metta_ray.common.errors import ConfigError, PolicyMismatchError
from metta_ray.sim.players import Player, as_player, named_player
from metta_ray.sim.results import SimulationResult, SuiteResult
from metta_ray.sim.simulation import MAX_ENVS, Simulation
from metta_ray.sim.simulation_config import SimulationSuiteConfig, SingleEnvSimulationConfig

logger = logging.getLogger(__name__)

NAVIGATION = "mettagrid:navigation"


class StatsSink(Protocol):
    """Where results are stored, e.g. ``metta_ray.eval.eval_stats_db.EvalStatsDB``."""

    def record(self, result: SimulationResult) -> Any: ...


class SimulationSuite:
    """The simulations of a configuration, ready to be played by any number of policies.

    All environments are resolved at once, so a misspelt one is an error before anything is played.
    """

    def __init__(
        self,
        config: SimulationSuiteConfig,
        *,
        seed: int = 0,
        replay_dir: str | Path | None = None,
        policy_store: PolicyStore | None = None,
        max_envs: int = MAX_ENVS,
    ) -> None:
        self.config = config
        self._policy_store = policy_store
        self.simulations = [
            Simulation(
                name,
                simulation,
                suite=config.name,
                tags=config.episode_tags,
                seed=seed,
                replay_dir=replay_dir,
                max_envs=max_envs,
            )
            for name, simulation in config.simulations.items()
        ]

    def run(
        self,
        policy: nn.Module | PolicyRecord | Player,
        stats_db: StatsSink | None = None,
        *,
        time_limit_s: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> SuiteResult:
        """Plays all simulations, one after the other; each is stored in ``stats_db`` as soon as it is done.

        time_limit_s: wall seconds for all of them; what has not ended by then is missing from the results, which say
            how many episodes that are.

        A simulation whose NPC policy does not fit its environment is left out with a warning; if none remains
        that is a PolicyMismatchError. Every other error is raised.
        """
        player = as_player(policy)
        for simulation in self.simulations:
            player.check_fits(simulation.spec)
        deadline = clock() + time_limit_s
        results: list[SimulationResult] = []
        for simulation in self.simulations:
            try:
                npc = self._npc_of(simulation)
            except PolicyMismatchError as error:
                logger.warning("simulation %s is left out: its NPC policy does not fit: %s", simulation.name, error)
                continue
            result = simulation.run(player, npc, max(deadline - clock(), 0.0))
            results.append(result)
            if stats_db is not None:
                stats_db.record(result)
            if result.incomplete:
                logger.warning(
                    "simulation %s: %d of %d episodes were cut off by the time limit",
                    simulation.name,
                    result.incomplete,
                    simulation.config.num_episodes,
                )
        if self.simulations and not results:
            raise PolicyMismatchError(
                f"suite {self.config.name}: no simulation could be played, because no NPC policy fits "
                "(see the warnings above); choose other npc_policy_uri"
            )
        return SuiteResult(self.config.name, tuple(results))

    def _npc_of(self, simulation: Simulation) -> Player | None:
        """The NPC policy, if the simulation needs one. PolicyMismatchError if it does not fit."""
        uri = simulation.config.npc_policy_uri
        if uri is None or simulation.config.policy_agents_pct == 1.0:
            return None
        store = self._policy_store or PolicyStore()
        npc = named_player(uri, store)
        npc.check_fits(simulation.spec)
        return npc


def evaluate_policy(
    policy: nn.Module | PolicyRecord | Player,
    suite: SimulationSuiteConfig | SingleEnvSimulationConfig,
    *,
    stats_db: StatsSink | None = None,
    replay_dir: str | Path | None = None,
    seed: int = 0,
    policy_store: PolicyStore | None = None,
    max_envs: int = MAX_ENVS,
) -> SuiteResult:
    """Plays a suite, or a single simulation, with a policy; ``print(result.table())`` shows what came out.

    The policy itself is not changed, and neither is the state of torch's generators. The same ``seed`` means
    the same episodes for every policy.
    """
    if isinstance(suite, SingleEnvSimulationConfig):
        suite = SimulationSuiteConfig(name="single", simulations={_name_of(suite): suite})
    if not isinstance(suite, SimulationSuiteConfig):
        raise ConfigError(
            f"suite is a {type(suite).__name__}; give a SimulationSuiteConfig or SingleEnvSimulationConfig"
        )
    ready = SimulationSuite(suite, seed=seed, replay_dir=replay_dir, policy_store=policy_store, max_envs=max_envs)
    return ready.run(policy, stats_db)


def create_evaluation_config_suite() -> SimulationSuiteConfig:
    """Navigation in small, medium and large balanced terrain: 5 episodes, at most 30 s each."""
    return SimulationSuiteConfig(
        name="evaluation",
        num_episodes=5,
        max_time_s=30.0,
        simulations={
            f"navigation/terrain_{size}": SingleEnvSimulationConfig(
                env=NAVIGATION,
                num_episodes=5,
                max_time_s=30.0,
                env_overrides={"terrain": f"varied_terrain/balanced_{size}"},
            )
            for size in ("small", "medium", "large")
        },
    )


def create_replay_config(terrain_dir: str = "varied_terrain/balanced_medium") -> SingleEnvSimulationConfig:
    """One navigation episode of at most 60 s, to make a replay of."""
    return SingleEnvSimulationConfig(
        env=NAVIGATION, num_episodes=1, max_time_s=60.0, env_overrides={"terrain": terrain_dir}
    )


def _name_of(simulation: SingleEnvSimulationConfig) -> str:
    """``mettagrid:navigation`` → ``mettagrid/navigation``: environment family as category."""
    return simulation.env.strip("/").replace(":", "/", 1)
