"""Token specs with a known vocabulary, observations that fit them, and vector specs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from gymnasium import spaces

from metta_ray.envs.env_spec import EnvSpec, Feature, TokenVocabulary

FEATURES = (
    "agent:group",
    "episode_completion_pct",
    "last_action",
    "last_reward",
    "vibe",
    "tag",
    "agent_id",
    "inv:ore",
    "inv:ore:p1",
    "inv:heart",
)
TAGS = ("type:agent", "type:wall", "type:altar")
ACTIONS = ("noop", "move_north", "move_south", "move_west", "move_east")
SpecFactory = Callable[..., EnvSpec]
TokenFactory = Callable[..., torch.Tensor]


@pytest.fixture
def token_spec() -> SpecFactory:
    """Spec of a token environment; features get ids in the order given."""

    def build(
        *,
        features: Sequence[str] = FEATURES,
        tags: Sequence[str] = TAGS,
        actions: Sequence[str] = ACTIONS,
        window: int = 5,
        tokens: int = 40,
        action_space: spaces.Space | None = None,
    ) -> EnvSpec:
        vocabulary = TokenVocabulary(
            {name: Feature(index, 100.0) for index, name in enumerate(features)}, tuple(tags), window, window
        )
        return EnvSpec(
            name="mettagrid:toy",
            observation_space=spaces.Box(0, 255, (tokens, 3), np.uint8),
            action_space=action_space or spaces.Discrete(len(actions)),
            agents_per_env=2,
            vocabulary=vocabulary,
            action_names=tuple(actions) if action_space is None else (),
        )

    return build


@pytest.fixture
def vector_spec() -> SpecFactory:
    def build(
        action_space: spaces.Space | None = None, shape: tuple[int, ...] = (4,), dtype: type = np.float32
    ) -> EnvSpec:
        low, high = (0, 255) if dtype == np.uint8 else (-1, 1)
        return EnvSpec("gym:toy", spaces.Box(low, high, shape, dtype), action_space or spaces.Discrete(3))

    return build


@pytest.fixture
def some_tokens() -> TokenFactory:
    """Observations ``(rows, W, 3)`` of a spec, written with the spec's own ids but the same by name for a seed."""

    def build(spec: EnvSpec, rows: int, seed: int = 0) -> torch.Tensor:
        vocabulary = spec.vocabulary
        assert vocabulary is not None
        rng = np.random.default_rng(seed)
        obs = np.full((rows, *spec.obs_shape), 255, np.uint8)
        ids = {name: feature.id for name, feature in vocabulary.features.items()}
        for row in range(rows):
            tokens: list[tuple[int, int, int]] = []

            def put(location: int, name: str, value: int, into: list[tuple[int, int, int]] = tokens) -> None:
                if name in ids:
                    into.append((location, ids[name], value))

            action = ACTIONS[rng.integers(len(ACTIONS))]
            put(254, "episode_completion_pct", int(rng.integers(256)))
            put(254, "last_action", spec.action_names.index(action) if action in spec.action_names else 0)
            put(254, "last_reward", 0)
            for _ in range(int(rng.integers(3, 10))):
                location = int(rng.integers(vocabulary.height)) << 4 | int(rng.integers(vocabulary.width))
                tag = TAGS[rng.integers(len(TAGS))]
                put(location, "tag", vocabulary.tags.index(tag) if tag in vocabulary.tags else 0)
                name, value = [
                    ("vibe", 3),
                    ("inv:ore", 7),
                    ("inv:ore:p1", 1),
                    ("inv:heart", 1),
                    ("agent_id", 4),
                ][int(rng.integers(5))]
                put(location, name, value)
            obs[row, : len(tokens)] = tokens
        return torch.from_numpy(obs)

    return build
