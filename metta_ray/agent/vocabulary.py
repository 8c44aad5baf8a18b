"""From the names of token features to numbers a network can learn from, and from one vocabulary to another.

The engine's own scales hide what matters: an altar with and without its heart would differ by 1/256, two
vibes by 1/255, and nothing is learned from that. Here presence counts as 1: an amount enters as 1 +
log2(amount) / 8, small vibes and groups have a channel for each value, tags too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metta_ray.envs.env_spec import TokenVocabulary

UNKNOWN_FEATURE = 255  # also the feature byte of padding
VIBE_CHANNELS = 8  # vibes 1..8 have a channel each, higher ones share one more
GROUP_CHANNELS = 4  # groups 0..2 have a channel each, higher ones share the last
HIGH_BYTE = ":p1"
DROPPED = frozenset({"agent_id", "last_reward"})  # an identity that a shared policy must not use; always 0
GLOBAL_NAMES = frozenset({"episode_completion_pct", "last_action", "last_action_move", "goal"})
SPATIAL_PREFIXES = ("inv:", "protocol_", "agent:", "territory:", "vibe", "tag", "aoe_mask")


@dataclass(frozen=True)
class TokenLayout:
    """Look-up tables over ``feature id · 256 + value``, 65536 entries each.

    channels, scalars: what each column of the box and of the global vector stands for.
    channel, scalar: int32 column, 0 where the token does not count. channel_value, scalar_value: float32
    number to add there, 0 where the token does not count.
    """

    channels: tuple[str, ...]
    scalars: tuple[str, ...]
    channel: NDArray[np.int32]
    channel_value: NDArray[np.float32]
    scalar: NDArray[np.int32]
    scalar_value: NDArray[np.float32]


class _Columns:
    """Hands out columns by name and fills one pair of tables."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.column = np.zeros((256, 256), np.int32)
        self.value = np.zeros((256, 256), np.float32)

    def named(self, name: str) -> int:
        if name not in self.names:
            self.names.append(name)
        return self.names.index(name)

    def scaled(self, feature: int, name: str, values: NDArray[Any]) -> None:
        self.column[feature] = self.named(name)
        self.value[feature] = values

    def one_hot(self, feature: int, value: int, name: str) -> None:
        self.column[feature, value] = self.named(name)
        self.value[feature, value] = 1.0


def amount_values() -> NDArray[np.float32]:
    """1 + log2(amount) / 8 for amounts 1..255; an amount byte of 0 counts as 1 (its high byte is not 0)."""
    amounts = np.maximum(np.arange(256), 1)
    return (1.0 + np.log2(amounts) / 8.0).astype(np.float32)


def token_layout(
    vocabulary: TokenVocabulary, action_names: Sequence[str] = (), *, last_action_token: bool = True
) -> TokenLayout:
    """Columns in the order of the feature ids, so that they depend on the vocabulary alone."""
    box, vector = _Columns(), _Columns()
    for name, feature in sorted(vocabulary.features.items(), key=lambda item: item[1].id):
        if name in DROPPED or (name == "last_action" and not last_action_token):
            continue
        is_spatial = name.startswith(SPATIAL_PREFIXES)
        if not is_spatial:
            _lay_global(vector, name, feature.id, action_names)
        if is_spatial or (name not in GLOBAL_NAMES and not name.startswith("lp:")):
            _lay_spatial(box, name, feature.id, vocabulary.tags)
    return TokenLayout(
        channels=tuple(box.names),
        scalars=tuple(vector.names),
        channel=box.column.ravel(),
        channel_value=box.value.ravel(),
        scalar=vector.column.ravel(),
        scalar_value=vector.value.ravel(),
    )


def _lay_spatial(box: _Columns, name: str, feature: int, tags: Sequence[str]) -> None:
    if name == "tag":
        for value, tag in enumerate(tags):
            box.one_hot(feature, value, f"tag:{tag}")
    elif name == "vibe":
        for value in range(1, 256):
            box.one_hot(feature, value, f"vibe:{value}" if value <= VIBE_CHANNELS else "vibe:more")
    elif name == "agent:group":
        for value in range(256):
            box.one_hot(feature, value, f"agent:group:{min(value, GROUP_CHANNELS - 1)}")
    else:
        # The high byte of an amount adds to the column of the low one: above 255 the sum grows with the
        # amount's magnitude, without a further channel for amounts that hardly occur.
        box.scaled(feature, name.removesuffix(HIGH_BYTE), amount_values())


def _lay_global(vector: _Columns, name: str, feature: int, action_names: Sequence[str]) -> None:
    values = np.arange(256, dtype=np.float32)
    if name == "last_action" and action_names:
        for value, action in enumerate(action_names[:256]):
            vector.one_hot(feature, value, f"last_action:{action}")
    elif name == "episode_completion_pct":
        vector.scaled(feature, name, values / 255)
    elif name.startswith("lp:"):
        vector.scaled(feature, name, values / 32)  # cells from the starting place; rooms are tens of cells wide
    elif name == "last_action_move":
        vector.scaled(feature, name, values)
    else:
        vector.scaled(feature, name, np.where(values > 0, amount_values(), np.float32(0)))


def token_remap(
    original: TokenVocabulary,
    original_actions: Sequence[str],
    current: TokenVocabulary,
    current_actions: Sequence[str],
) -> NDArray[np.uint8] | None:
    """What each pair (feature id, value) of the current environment is called in the original one.

    Returns uint8 ``(65536, 2)``, indexed by ``feature id · 256 + value``, or None where nothing changes.
    Features, tags and actions are matched by name; what the original did not know becomes UNKNOWN_FEATURE.
    """
    pairs = np.empty((256, 256, 2), np.uint8)
    pairs[..., 0] = UNKNOWN_FEATURE
    pairs[..., 1] = np.arange(256)
    for name, feature in current.features.items():
        if name in original.features:
            pairs[feature.id, :, 0] = original.features[name].id
    for name, old, new in (
        ("tag", original.tags, current.tags),
        ("last_action", original_actions, current_actions),
    ):
        if name in current.features and name in original.features:
            feature_id = current.features[name].id
            _rename_values(pairs[feature_id], old, new)
    known_ids = {feature.id for feature in original.features.values()}
    keeps_ids = all(
        feature.id == original.features[name].id if name in original.features else feature.id not in known_ids
        for name, feature in current.features.items()
    )
    keeps_names = tuple(current.tags) == tuple(original.tags) and tuple(current_actions) == tuple(original_actions)
    return None if keeps_ids and keeps_names else pairs.reshape(65536, 2)


def _rename_values(pairs: NDArray[np.uint8], old: Sequence[str], new: Sequence[str]) -> None:
    """Fills ``(256, 2)`` of one feature whose values are indices into a list of names."""
    if not old and not new:
        return
    position: Mapping[str, int] = {name: index for index, name in enumerate(old)}
    feature_id = pairs[0, 0]
    pairs[:, 0] = UNKNOWN_FEATURE
    for value, name in enumerate(new[:256]):
        if name in position:
            pairs[value] = feature_id, position[name]
