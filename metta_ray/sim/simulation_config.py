"""What to play: one environment so many times (a simulation), a list of them (a suite)."""

from __future__ import annotations

from typing import Any

from pydantic import Field, NonNegativeInt, model_validator

from metta_ray.common.util.typed_config import StrictModel


class SimulationConfig(StrictModel):
    """How to play."""

    num_episodes: int = Field(ge=1, description="episodes that count; more cost time and narrow the error")
    max_time_s: float = Field(default=120.0, gt=0, description="wall time; episodes unfinished by then leave no record")
    env_overrides: dict[str, Any] = Field(
        default_factory=dict, description="settings of the environment that replace its own"
    )
    npc_policy_uri: str | None = Field(
        default=None,
        description="policy of the agents that the policy under evaluation does not drive; or random, or scripted",
    )
    policy_agents_pct: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of an environment's agents, at least one, that the policy under evaluation drives",
    )

    @model_validator(mode="after")
    def _the_others_need_a_policy(self) -> SimulationConfig:
        if self.policy_agents_pct < 1 and self.npc_policy_uri is None:
            raise ValueError(
                f"policy_agents_pct={self.policy_agents_pct} leaves agents without a policy; "
                "set npc_policy_uri, or policy_agents_pct to 1"
            )
        return self


class SingleEnvSimulationConfig(SimulationConfig):
    """One environment: ``mettagrid:navigation``, ``gym:CartPole-v1``, ``module:factory``, or the path of a
    curriculum, whose tasks are then drawn with equal probability."""

    env: str = Field(min_length=1)
    fixed_maps: list[NonNegativeInt] | None = Field(
        default=None,
        description="MettaGrid: words that seed the maps, one for each episode and always the same; else maps are "
        "drawn from the simulation's seed",
    )


class SimulationSuiteConfig(SimulationConfig):
    """Simulations by name. What is set here is the default for each of them; their own settings win.

    The text before the first ``/`` of a simulation's name is its category.
    """

    name: str = Field(min_length=1)
    simulations: dict[str, SingleEnvSimulationConfig]
    episode_tags: list[str] = Field(default_factory=list, description="stored with every episode")
    num_episodes: int = Field(default=1, ge=1, description="as in a single simulation")

    @model_validator(mode="before")
    @classmethod
    def _hand_defaults_down(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("simulations"), dict):
            return data
        shared = {key: data[key] for key in SimulationConfig.model_fields if key in data}
        shared.setdefault("num_episodes", cls.model_fields["num_episodes"].default)
        simulations = {name: _with_defaults(shared, child) for name, child in data["simulations"].items()}
        return {**data, "simulations": simulations}


def _with_defaults(shared: dict[str, Any], child: Any) -> Any:
    """The child's own settings over the shared ones; overrides of the environment are merged key by key."""
    if isinstance(child, SingleEnvSimulationConfig):
        child = child.model_dump(exclude_unset=True)
    if not isinstance(child, dict):
        return child
    overrides = {**shared.get("env_overrides", {}), **child.get("env_overrides", {})}
    return {**shared, **child, "env_overrides": overrides}
