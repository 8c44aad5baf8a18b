"""What an evaluation is asked, and what it answers: values that travel as JSON."""

from __future__ import annotations

from collections.abc import ItemsView
from typing import Any

from pydantic import Field, field_serializer, field_validator

from metta_ray.common.util.typed_config import StrictModel
from metta_ray.sim.results import SuiteResult
from metta_ray.sim.simulation_config import SimulationSuiteConfig


class EvalRequestConfig(StrictModel):
    """Play a suite with a policy and remember what came out."""

    policy_uri: str = Field(min_length=1, description="policy, directory of policies, or run directory")
    suite: SimulationSuiteConfig
    selector: str = Field(default="latest", description="which of several policies: latest, top, rand")
    metric: str = Field(default="score", description="what top is the top of")
    seed: int = Field(default=0, ge=0, description="of episodes and drawn actions; same seed, same episodes")
    stats_db_path: str | None = Field(default=None, description="SQLite file that results are added to")
    replay_dir: str | None = Field(default=None, description="where replays go; None: no replays")
    device: str = "cpu"


class EvalRewardSummary(StrictModel):
    """Mean scores. simulation_scores is keyed (category, short name); as JSON, ``category/short name``."""

    category_scores: dict[str, float] = Field(default_factory=dict)
    simulation_scores: dict[tuple[str, str], float] = Field(default_factory=dict)

    @field_serializer("simulation_scores")
    def _names_as_text(self, scores: dict[tuple[str, str], float]) -> dict[str, float]:
        return {"/".join(key): score for key, score in scores.items()}

    @field_validator("simulation_scores", mode="before")
    @classmethod
    def _text_as_names(cls, scores: Any) -> Any:
        if not isinstance(scores, dict):
            return scores
        return {tuple(key.split("/", 1)) if isinstance(key, str) else key: value for key, value in scores.items()}

    @property
    def avg_category_score(self) -> float | None:
        return _mean(self.category_scores)

    @property
    def avg_simulation_score(self) -> float | None:
        return _mean(self.simulation_scores)

    def to_metrics(self) -> dict[str, float]:
        """Flat names for logs: ``<category>/score``, ``<category>/<simulation>``."""
        categories = {f"{category}/score": score for category, score in self.category_scores.items()}
        return categories | {"/".join(key): score for key, score in self.simulation_scores.items()}

    def items(self) -> ItemsView[str, float]:
        return self.to_metrics().items()


class EvalResults(StrictModel):
    """Answer to a request. policy_uri: the very policy that played. incomplete_episodes: cut off by time."""

    policy_uri: str
    scores: EvalRewardSummary
    replay_urls: dict[str, list[str]] = Field(default_factory=dict, description="by simulation name")
    incomplete_episodes: dict[str, int] = Field(default_factory=dict, description="by simulation name")

    @classmethod
    def of(cls, policy_uri: str, result: SuiteResult) -> EvalResults:
        simulations = result.simulations
        return cls(
            policy_uri=policy_uri,
            scores=EvalRewardSummary(
                category_scores=result.category_scores, simulation_scores=result.simulation_scores
            ),
            replay_urls={sim.name: sim.replay_paths for sim in simulations if sim.replay_paths},
            incomplete_episodes={sim.name: sim.incomplete for sim in simulations if sim.incomplete},
        )


def _mean(scores: dict[Any, float]) -> float | None:
    return sum(scores.values()) / len(scores) if scores else None
