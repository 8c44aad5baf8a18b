"""Observations as MettaGrid's navigation makes them, without the engine: for machines that do not have it.

What costs time is how many tokens are filled and where; both follow what was counted in the real environments.
"""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium
import numpy as np
from numpy.typing import NDArray

from metta_ray.envs.env_spec import EnvSpec, Feature, TokenSpace, TokenVocabulary

NUM_TOKENS = 256
WINDOW = 11
EPISODE_STEPS = 1000
GLOBAL, PADDING = 0xFE, 0xFF
ACTIONS = ("noop", "move_north", "move_south", "move_west", "move_east")
RESOURCES = ("ore_red", "battery_red", "heart", "laser", "armor", "hp", "cooldown")
TYPES = ("agent", "altar", "armory", "cue", "generator", "lasery", "mine", "wall")
FEATURES = (
    *("agent:group", "episode_completion_pct", "last_action", "last_reward", "goal", "vibe", "tag"),
    *("lp:east", "lp:west", "lp:north", "lp:south", "agent_id"),
    *(f"inv:{resource}{part}" for resource in RESOURCES for part in ("", ":p1")),
)
"""In the order of their ids."""


@dataclass(frozen=True)
class Density:
    """Filled tokens per observation: mean, spread, and the fewest and most that occur."""

    mean: float
    spread: float
    fewest: int = 7
    most: int = 60


DENSITIES = {"simple": Density(20, 10), "bucketed": Density(35, 12)}
"""Simple navigation, and the bucketed curriculum (25 with random actions; a policy that can walk sees more)."""


def navigation_spec() -> EnvSpec:
    """What ``mettagrid:navigation`` describes itself as."""
    features = {name: Feature(index) for index, name in enumerate(FEATURES)}
    return EnvSpec(
        name="synthetic:navigation",
        observation_space=TokenSpace(NUM_TOKENS),
        action_space=gymnasium.spaces.Discrete(len(ACTIONS)),
        agents_per_env=4,
        vocabulary=TokenVocabulary(features, tuple(f"type:{name}" for name in TYPES), WINDOW, WINDOW),
        action_names=ACTIONS,
    )


def observations(rows: int, density: Density, rng: np.random.Generator) -> NDArray[np.uint8]:
    """``(rows, NUM_TOKENS, 3)``: three globals, the agent itself, then walls and some altars anywhere, padding."""
    counts = rng.normal(density.mean, density.spread, rows).round().clip(density.fewest, density.most).astype(int)
    ids = {name: index for index, name in enumerate(FEATURES)}
    centre = (WINDOW // 2) * 17
    # Objects stand at different places: the first so many of a permutation of all cells.
    cells = np.array([row << 4 | column for row in range(WINDOW) for column in range(WINDOW)], np.uint8)
    obs = np.full((rows, NUM_TOKENS, 3), PADDING, np.uint8)
    obs[:, :6] = [
        *((GLOBAL, ids[name], 0) for name in ("episode_completion_pct", "last_action", "last_reward")),
        *((centre, ids["agent:group"], 0), (centre, ids["agent_id"], 1), (centre, ids["tag"], 0)),
    ]
    obs[:, 0, 2] = rng.integers(256, size=rows)
    obs[:, 1, 2] = rng.integers(len(ACTIONS), size=rows)
    objects = density.most - 6
    obs[:, 6 : density.most, 0] = cells[rng.random((rows, len(cells))).argsort(axis=1)[:, :objects]]
    is_altar = rng.random((rows, objects)) < 0.1
    obs[:, 6 : density.most, 1] = np.where(is_altar, ids["inv:heart"], ids["tag"])
    obs[:, 6 : density.most, 2] = np.where(is_altar, 1, TYPES.index("wall"))
    obs[np.arange(NUM_TOKENS) >= counts[:, None]] = PADDING
    return obs
