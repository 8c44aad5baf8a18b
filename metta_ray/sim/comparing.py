"""How players compare that met the same episodes: scores as share of what is possible, and differences.

``Returns`` is all that is needed of a player: for each simulation the return per agent in each episode, by a key that
names the episode. Only episodes that all compared players finished count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from metta_ray.sim import statistics
from metta_ray.sim.results import REWARD, PlayedEpisode, PolicyKey, SuiteResult
from metta_ray.sim.statistics import Array, Interval, bootstrap

RANDOM, SCRIPTED = "random", "scripted"
SHARE, RETURN = "share", "return"

Returns = Mapping[str, Mapping[str, float]]
"""Simulation → episode → return per agent."""


def returns_of(result: SuiteResult) -> dict[str, dict[str, float]]:
    return {
        simulation.name: {
            episode_key(simulation.settings, episode.seed, episode.task_id): own_return(episode, simulation.policy)
            for episode in simulation.episodes
        }
        for simulation in result.simulations
    }


def episode_key(settings: str, seed: Sequence[int], task_id: str) -> str:
    """What decides an episode apart from the players."""
    return f"{settings} {' '.join(map(str, seed))} {task_id}"


def own_return(episode: PlayedEpisode, policy: PolicyKey) -> float:
    """Mean over the agents that the policy drove."""
    own = zip(episode.agent_metrics, episode.agent_policies, strict=True)
    return float(np.mean([metrics[REWARD] for metrics, driver in own if driver == policy]))


@dataclass(frozen=True)
class References:
    """What the scores of a suite are measured by; either may be missing, then scores are plain returns."""

    random: Returns | None = None
    scripted: Returns | None = None

    @property
    def measure(self) -> str:
        return RETURN if self.random is None or self.scripted is None else SHARE


def score(player: Returns, references: References, simulations: Sequence[str] | None = None) -> Interval:
    """Of some simulations, or all that were played, each with the same weight; see ``References.measure``."""
    names = list(player) if simulations is None else simulations
    if references.random is None or references.scripted is None:
        return bootstrap(_paired(names, player), statistics.mean())
    data = _paired(names, player, references.random, references.scripted)
    return bootstrap(data, statistics.share(0, 1, 2))


def mean_return(player: Returns, simulation: str) -> Interval:
    return bootstrap(_paired([simulation], player), statistics.mean())


def difference(
    one: Returns, other: Returns, references: References, simulations: Sequence[str] | None = None
) -> Interval:
    """One score less another, over the episodes that both met."""
    names = [name for name in one if name in other] if simulations is None else simulations
    if references.random is None or references.scripted is None:
        return bootstrap(_paired(names, one, other), statistics.difference())
    data = _paired(names, one, other, references.random, references.scripted)
    return bootstrap(data, statistics.share_difference(0, 1, 2, 3))


def num_paired(simulation: str, *players: Returns) -> int:
    return len(_common(simulation, players))


def _paired(simulations: Sequence[str], *players: Returns) -> list[Array]:
    """``(episodes, players)`` for each simulation."""
    return [
        np.array([[player[name][key] for player in players] for key in _common(name, players)], dtype=np.float64)
        for name in simulations
    ]


def _common(simulation: str, players: Sequence[Returns]) -> list[str]:
    played = [player.get(simulation, {}) for player in players]
    return sorted(key for key in played[0] if all(key in other for other in played[1:]))
