"""What came out of playing: episodes, simulations, suites. Values; who stores or prints them is elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from metta_ray.sim.statistics import Interval, bootstrap, mean

REWARD = "reward"
SCORE = "score"


class PolicyKey(NamedTuple):
    """Which policy acted: its URI (or a name such as ``random``) and its epoch."""

    uri: str
    version: int = 0


class Estimate(NamedTuple):
    """A mean and its standard error, NaN where there are too few values to tell (0 and 1)."""

    mean: float
    standard_error: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Estimate:
        sample = np.asarray(list(values), dtype=np.float64)
        if sample.size < 2:
            return cls(float(sample[0]) if sample.size else math.nan, math.nan)
        return cls(float(sample.mean()), float(sample.std(ddof=1) / math.sqrt(sample.size)))

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.standard_error:.3f}"


@dataclass(frozen=True)
class PlayedEpisode:
    """One finished episode.

    env_index, number: which environment played it, and as which of its episodes, from 0.
    seed: entropy words that reproduce it. steps: env steps really taken.
    score: the environment's own measure, of all agents together.
    agent_metrics: one dict per agent, always with ``reward`` (sum over the episode).
    agent_policies: who drove each agent. Both have exactly one entry per agent of this episode.
    created_at, completed_at: unix seconds.
    """

    id: str
    env_index: int
    number: int
    task_id: str
    seed: tuple[int, ...]
    steps: int
    score: float
    agent_metrics: tuple[dict[str, float], ...]
    agent_policies: tuple[PolicyKey, ...]
    created_at: float
    completed_at: float
    attributes: dict[str, str] = field(default_factory=dict)
    replay_path: str | None = None


@dataclass(frozen=True)
class SimulationResult:
    """One policy in one environment. incomplete: episodes cut off by the time limit, without a record.
    settings: JSON; only results of the same settings can be compared."""

    suite: str
    name: str
    env: str
    policy: PolicyKey
    episodes: tuple[PlayedEpisode, ...]
    incomplete: int
    started_at: float
    elapsed_s: float
    settings: str = ""

    @property
    def category(self) -> str:
        """Text before the first ``/`` of the name, exactly."""
        return self.name.partition("/")[0]

    @property
    def short_name(self) -> str:
        return self.name.partition("/")[2] or self.name

    @property
    def returns(self) -> Estimate:
        """Return per agent that this policy drove; the standard error is over episodes, since the agents of
        one episode are not independent."""
        means = []
        for episode in self.episodes:
            own = zip(episode.agent_metrics, episode.agent_policies, strict=True)
            means.append(float(np.mean([metrics[REWARD] for metrics, policy in own if policy == self.policy])))
        return Estimate.of(means)

    @property
    def score(self) -> Estimate:
        return Estimate.of(episode.score for episode in self.episodes)

    @property
    def score_interval(self) -> Interval:
        """The mean score with the interval that tables show."""
        return bootstrap([np.array([[episode.score] for episode in self.episodes])], mean())

    @property
    def replay_paths(self) -> list[str]:
        return [episode.replay_path for episode in self.episodes if episode.replay_path]


@dataclass(frozen=True)
class SuiteResult:
    """All simulations of a suite, by one policy."""

    name: str
    simulations: tuple[SimulationResult, ...]

    @property
    def simulation_scores(self) -> dict[tuple[str, str], float]:
        """{(category, short name): mean score}; simulations without a finished episode are left out."""
        return {(sim.category, sim.short_name): sim.score.mean for sim in self.simulations if sim.episodes}

    @property
    def category_scores(self) -> dict[str, float]:
        """{category: mean over the agent-episodes of the policy under evaluation}."""
        scores: dict[str, list[float]] = {}
        for sim in self.simulations:
            for episode in sim.episodes:
                own_agents = episode.agent_policies.count(sim.policy)
                scores.setdefault(sim.category, []).extend([episode.score] * own_agents)
        return {category: float(np.mean(values)) for category, values in scores.items()}

    @property
    def score(self) -> float:
        """Mean of the category scores: what a policy's metadata remembers as ``score``."""
        scores = list(self.category_scores.values())
        return float(np.mean(scores)) if scores else math.nan

    def metrics(self) -> dict[str, float]:
        """Flat numbers for logs: ``eval_<category>/<simulation>`` and ``…/score``, ``overview/…``."""
        by_category = self.category_scores
        by_simulation = self.simulation_scores
        numbers = {f"eval_{category}/{name}": score for (category, name), score in by_simulation.items()}
        numbers |= {f"eval_{category}/score": score for category, score in by_category.items()}
        numbers |= {f"overview/{category}_score": score for category, score in by_category.items()}
        if by_simulation:
            numbers["overview/avg_category_score"] = self.score
            numbers["overview/avg_simulation_score"] = float(np.mean(list(by_simulation.values())))
        return numbers

    def table(self, references: Iterable[SuiteResult] = ()) -> str:
        """Readable lines, one per simulation. Each of ``references`` (the same suite played by others, such
        as a random policy) adds a column with its mean return."""
        others = list(references)
        header = ["simulation", "episodes", "mean return", "score", *(_player(other) for other in others)]
        rows = [header]
        for index, sim in enumerate(self.simulations):
            missing = f" (+{sim.incomplete} cut off)" if sim.incomplete else ""
            cells = [sim.name, f"{len(sim.episodes)}{missing}", f"{sim.returns.mean:.3f}", str(sim.score_interval)]
            rows.append(cells + [f"{other.simulations[index].returns.mean:.3f}" for other in others])
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join(lines)


def _player(result: SuiteResult) -> str:
    return result.simulations[0].policy.uri if result.simulations else "reference"
