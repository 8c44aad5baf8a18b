"""Translates between a Gymnasium environment's spaces and what a policy sees.

Observations: a Box keeps its shape and dtype (wide and half floats become float32, images stay uint8);
Discrete, MultiDiscrete, MultiBinary, Dict, Tuple and scalar Boxes become one flat float32 vector (Gymnasium's
own flattening: integers are one-hot). Actions: Discrete and MultiDiscrete always count from 0 for the policy,
MultiBinary is MultiDiscrete of twos, and a continuous Box takes the policy's raw numbers, clipped to its
bounds on their way into the environment (so the policy's log-probabilities are those of the numbers before
clipping).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from gymnasium import Space, spaces
from numpy.typing import NDArray

from metta_ray.common.errors import ConfigError


def policy_observation_space(space: Space[Any], env_name: str) -> spaces.Box:
    """The Box in which observations are stored. ConfigError for spaces without a fixed size."""
    if _is_stored_as_is(space):
        assert isinstance(space, spaces.Box)
        is_float = np.issubdtype(space.dtype, np.floating)
        return _float32_box(space) if is_float and space.dtype != np.float32 else space
    try:
        flat = spaces.flatten_space(space) if space.is_np_flattenable else None
    except NotImplementedError:
        flat = None
    if not isinstance(flat, spaces.Box):
        raise ConfigError(
            f"{env_name}: observation space {space} has no fixed size; use Box, Discrete, MultiDiscrete, "
            f"MultiBinary, Dict or Tuple of these (gymnasium.wrappers.TransformObservation converts)"
        )
    return _float32_box(flat)


def observation_encoder(space: Space[Any]) -> Callable[[Any], NDArray[Any]] | None:
    """Turns one observation into the stored array; None where it can be stored as it is."""
    if _is_stored_as_is(space):
        return None
    return lambda observation: np.asarray(spaces.flatten(space, observation))


def policy_action_space(space: Space[Any], env_name: str) -> spaces.Discrete | spaces.MultiDiscrete | spaces.Box:
    """The space in which the policy acts. ConfigError for spaces no policy head exists for."""
    if isinstance(space, spaces.Discrete):
        return spaces.Discrete(int(space.n))
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return spaces.MultiDiscrete(space.nvec.tolist())
    if isinstance(space, spaces.MultiBinary):
        return spaces.MultiDiscrete([2] * int(np.prod(space.shape)))
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating) and space.shape:
        return _float32_box(space)
    raise ConfigError(
        f"{env_name}: action space {space} is not supported; use Discrete, flat MultiDiscrete, MultiBinary "
        f"or a float Box with at least one dimension (gymnasium.wrappers.TransformAction converts)"
    )


def action_decoder(space: Space[Any]) -> Callable[[NDArray[Any]], Iterable[Any]]:
    """Turns the actions ``(rows, *action_shape)`` of a batch into one action per environment, as the space's
    own ``sample`` would look. The result shares no memory with its argument: environments may keep it."""
    if isinstance(space, spaces.Discrete):
        start = np.int64(space.start)
        return lambda actions: list(actions.astype(np.int64) + start)
    if isinstance(space, spaces.MultiDiscrete):
        return lambda actions: actions.astype(space.dtype) + space.start
    if isinstance(space, spaces.MultiBinary):
        return lambda actions: actions.astype(space.dtype).reshape(-1, *space.shape)
    assert isinstance(space, spaces.Box)
    return lambda actions: np.clip(actions, space.low, space.high).astype(space.dtype)


def _is_stored_as_is(space: Space[Any]) -> bool:
    return isinstance(space, spaces.Box) and space.shape != ()


def _float32_box(box: spaces.Box) -> spaces.Box:
    with np.errstate(over="ignore"):  # bounds beyond float32 become infinite
        low, high = box.low.astype(np.float32), box.high.astype(np.float32)
    return spaces.Box(low, high, dtype=np.float32)
