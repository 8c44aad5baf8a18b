"""What token values become: presence counts as 1, small vibes have their own channels."""

import math

import numpy as np
import pytest

from metta_ray.agent.vocabulary import UNKNOWN_FEATURE, token_layout, token_remap


def entry(layout, feature: int, value: int) -> tuple[str, float]:
    index = feature * 256 + value
    return layout.channels[layout.channel[index]], float(layout.channel_value[index])


@pytest.fixture
def layout(token_spec):
    spec = token_spec()
    return token_layout(spec.vocabulary, spec.action_names)


def test_one_heart_counts_as_one_and_more_grow_with_the_logarithm(layout):
    heart = 9
    assert entry(layout, heart, 1) == ("inv:heart", 1.0)
    assert entry(layout, heart, 16) == ("inv:heart", 1.5)
    assert entry(layout, heart, 255)[1] == pytest.approx(1 + math.log2(255) / 8)


def test_high_byte_of_an_amount_adds_to_the_same_channel(layout):
    low, high = 7, 8
    # 300 ores are the bytes 44 and 1.
    assert entry(layout, low, 44)[0] == entry(layout, high, 1)[0] == "inv:ore"
    assert entry(layout, high, 1)[1] == 1.0
    # 256 ores are the bytes 0 and 1: as a sum 2, hardly more than 255 of them.
    assert entry(layout, low, 0)[1] + entry(layout, high, 1)[1] == 2.0


def test_small_vibes_have_a_channel_each_and_high_ones_share_one(layout):
    vibe = 4
    assert [entry(layout, vibe, value) for value in (1, 8, 9, 200)] == [
        ("vibe:1", 1.0),
        ("vibe:8", 1.0),
        ("vibe:more", 1.0),
        ("vibe:more", 1.0),
    ]


def test_tags_and_groups_are_one_hot(layout):
    assert entry(layout, 5, 2) == ("tag:type:altar", 1.0)
    assert entry(layout, 0, 0) == ("agent:group:0", 1.0)
    assert entry(layout, 0, 17) == ("agent:group:3", 1.0)


def test_identity_and_the_engines_reward_are_dropped(layout):
    assert not any("agent_id" in name or "last_reward" in name for name in (*layout.channels, *layout.scalars))
    for feature in (3, 6):
        assert not layout.channel_value.reshape(256, 256)[feature].any()
        assert not layout.scalar_value.reshape(256, 256)[feature].any()


def test_completion_is_a_share_and_last_action_one_hot(layout):
    assert layout.scalar_value[1 * 256 + 255] == 1.0
    column = layout.scalar[2 * 256 + 3]
    assert layout.scalars[column] == "last_action:move_west"
    assert layout.scalar_value[2 * 256 + 3] == 1.0


def test_padding_and_unknown_features_count_nothing(layout):
    assert not layout.channel_value.reshape(256, 256)[UNKNOWN_FEATURE].any()
    assert not layout.channel_value.reshape(256, 256)[len(layout.channels) + 20].any()


def test_same_vocabulary_needs_no_renaming(token_spec):
    spec = token_spec()
    assert token_remap(spec.vocabulary, spec.action_names, spec.vocabulary, spec.action_names) is None


def test_new_feature_with_a_free_id_needs_no_renaming(token_spec):
    old, new = token_spec(), token_spec(features=(*token_spec().vocabulary.features, "inv:new"))
    assert token_remap(old.vocabulary, old.action_names, new.vocabulary, new.action_names) is None


def test_k21_ids_need_not_be_contiguous(token_spec):
    old = token_spec(features=("tag", "vibe"))
    new = token_spec(features=(*[f"unknown:{i}" for i in range(200)], "vibe", "tag"), tags=("type:altar", "new"))
    pairs = token_remap(old.vocabulary, (), new.vocabulary, ()).reshape(256, 256, 2)

    assert pairs[200, 3].tolist() == [1, 3]
    assert pairs[201, 0].tolist() == [0, 2]  # type:altar was the third tag
    assert pairs[201, 1, 0] == UNKNOWN_FEATURE
    assert np.all(pairs[:200, :, 0] == UNKNOWN_FEATURE)
