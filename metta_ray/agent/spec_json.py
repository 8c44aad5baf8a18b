"""An EnvSpec as JSON values, so that a stored policy knows the environment it was built for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from metta_ray.common.errors import PolicyMismatchError
from metta_ray.envs.env_spec import EnvSpec, Feature, TokenSpace, TokenVocabulary


def to_json(spec: EnvSpec) -> dict[str, Any]:
    vocabulary = spec.vocabulary
    return {
        "name": spec.name,
        "observation": {"shape": list(spec.obs_shape), "dtype": spec.obs_dtype.name},
        "action": _action_to_json(spec.action_space),
        "agents_per_env": spec.agents_per_env,
        "action_names": list(spec.action_names),
        "vocabulary": None
        if vocabulary is None
        else {
            "features": {name: [feature.id, feature.normalization] for name, feature in vocabulary.features.items()},
            "tags": list(vocabulary.tags),
            "height": vocabulary.height,
            "width": vocabulary.width,
        },
    }


def from_json(data: Mapping[str, Any]) -> EnvSpec:
    """Bounds of the observations are not kept: bytes come back as 0…255, floats unbounded."""
    vocabulary = data["vocabulary"]
    return EnvSpec(
        name=data["name"],
        observation_space=_observation_from_json(data["observation"], is_tokens=vocabulary is not None),
        action_space=_action_from_json(data["action"]),
        agents_per_env=data["agents_per_env"],
        action_names=tuple(data["action_names"]),
        vocabulary=None
        if vocabulary is None
        else TokenVocabulary(
            features={name: Feature(*numbers) for name, numbers in vocabulary["features"].items()},
            tags=tuple(vocabulary["tags"]),
            height=vocabulary["height"],
            width=vocabulary["width"],
        ),
    )


def _observation_from_json(data: Mapping[str, Any], *, is_tokens: bool) -> spaces.Box:
    if is_tokens:
        return TokenSpace(data["shape"][0])
    dtype = np.dtype(data["dtype"])
    low, high = (0, 255) if dtype == np.uint8 else (-np.inf, np.inf)
    return spaces.Box(low, high, tuple(data["shape"]), dtype.type)


def _action_to_json(space: Any) -> dict[str, Any]:
    if isinstance(space, spaces.Discrete):
        return {"kind": "Discrete", "n": int(space.n)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"kind": "MultiDiscrete", "nvec": space.nvec.tolist()}
    if isinstance(space, spaces.Box):
        # Infinite bounds have no JSON number.
        bounds = {"low": space.low, "high": space.high}
        return {
            "kind": "Box",
            **{name: [repr(float(x)) for x in b.ravel()] for name, b in bounds.items()},
            "shape": list(space.shape),
        }
    raise PolicyMismatchError(f"action space {space}: expected Discrete, MultiDiscrete or Box")


def _action_from_json(data: Mapping[str, Any]) -> spaces.Space[Any]:
    if data["kind"] == "Discrete":
        return spaces.Discrete(data["n"])
    if data["kind"] == "MultiDiscrete":
        return spaces.MultiDiscrete(data["nvec"])
    if data["kind"] == "Box":
        low, high = (
            np.array([float(x) for x in data[name]], np.float32).reshape(data["shape"]) for name in ("low", "high")
        )
        return spaces.Box(low, high, dtype=np.float32)
    raise PolicyMismatchError(f"action space of kind {data['kind']!r}: expected Discrete, MultiDiscrete or Box")
