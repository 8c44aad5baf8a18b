"""What a policy must know about an environment: spaces, names, sizes. A value, cheap to pickle."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np


class TokenSpace(gymnasium.spaces.Box):
    """Observations that are token lists ``(tokens, 3)`` uint8, packed to the front, padded with 0xFF.

    A space of its own, so that whoever stores or ships observations may drop the padding.
    """

    def __init__(self, num_tokens: int):
        super().__init__(0, 255, (num_tokens, 3), np.uint8)


@dataclass(frozen=True)
class Feature:
    """One kind of observation token: its id in the byte stream and the engine's own scale."""

    id: int
    normalization: float = 1.0


@dataclass(frozen=True)
class TokenVocabulary:
    """Meaning of the bytes of a token observation ``(tokens, 3)`` = (location, feature id, value).

    A location byte is ``row << 4 | column`` inside a window of ``height`` × ``width`` cells with the agent in
    the middle; 0xFE marks a global token, 0xFF padding. Tokens are packed to the front.
    """

    features: dict[str, Feature]
    tags: tuple[str, ...]
    height: int
    width: int


@dataclass(frozen=True)
class EnvSpec:
    """Description of a batch of like environments.

    observation_space, action_space: of one agent. Observations are stored as
        ``observation_space.shape`` and ``.dtype``; every space other than Box has been flattened to a
        float32 vector by the environment layer. Actions: Discrete → int32 scalar, MultiDiscrete → int32
        vector, Box → float32 vector.
    vocabulary: set for token observations, else None.
    action_names: one name per value of a Discrete action space (may be empty for other environments).
    name: what the user asked for, e.g. ``mettagrid:navigation``.
    """

    name: str
    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]
    agents_per_env: int = 1
    vocabulary: TokenVocabulary | None = None
    action_names: tuple[str, ...] = field(default=())

    @property
    def single_observation_space(self) -> gymnasium.Space[Any]:
        """Gymnasium's vector name for ``observation_space``."""
        return self.observation_space

    @property
    def single_action_space(self) -> gymnasium.Space[Any]:
        """Gymnasium's vector name for ``action_space``."""
        return self.action_space

    @property
    def obs_shape(self) -> tuple[int, ...]:
        shape = self.observation_space.shape
        assert shape is not None
        return tuple(shape)

    @property
    def obs_dtype(self) -> np.dtype[Any]:
        return np.dtype(self.observation_space.dtype)

    @property
    def action_shape(self) -> tuple[int, ...]:
        return tuple(self.action_space.shape or ())

    @property
    def action_dtype(self) -> np.dtype[Any]:
        is_continuous = isinstance(self.action_space, gymnasium.spaces.Box)
        return np.dtype(np.float32 if is_continuous else np.int32)
