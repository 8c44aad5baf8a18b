import copy

import numpy as np
import pytest

from metta_ray.agent.policy_cache import PolicyCache
from metta_ray.agent.policy_metadata import PolicyMetadata
from metta_ray.common.errors import ConfigError


def test_required_values_default_to_zero_and_read_as_attributes():
    metadata = PolicyMetadata(epoch=3, run="x")

    assert (metadata.agent_step, metadata.epoch, metadata.generation, metadata.train_time) == (0, 3, 0, 0.0)
    assert metadata["run"] == metadata.run == "x"


def test_required_values_cannot_be_deleted_and_others_can():
    metadata = PolicyMetadata(run="x")

    del metadata.run
    with pytest.raises(ConfigError, match="'epoch' is required"):
        del metadata["epoch"]
    assert "run" not in metadata


def test_from_dict_names_what_is_missing():
    with pytest.raises(ConfigError, match="lacks generation, train_time"):
        PolicyMetadata.from_dict({"agent_step": 1, "epoch": 2})


def test_an_unknown_attribute_lists_the_known():
    with pytest.raises(AttributeError, match="no 'scor'; it has: agent_step"):
        _ = PolicyMetadata(score=1).scor


def test_numpy_values_and_tuples_become_json():
    metadata = PolicyMetadata(a=np.float32(0.5), b=(1, np.int64(2)), c={"d": np.array([1.0, 2.0])}, e=np.bool_(True))

    assert metadata.to_dict() | {"a": 0.5, "b": [1, 2], "c": {"d": [1.0, 2.0]}, "e": True} == metadata.to_dict()


def test_what_json_cannot_hold_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"'stats\.bad' is a object"):
        PolicyMetadata(stats={"bad": object()})


def test_copies_are_equal_and_independent():
    metadata = PolicyMetadata(evals={"a": 1})
    other = copy.deepcopy(metadata)
    other.evals["a"] = 2

    assert metadata.evals == {"a": 1}


def test_scores_are_found_in_eval_scores_then_at_the_top():
    metadata = PolicyMetadata(score=1.0, eval_scores={"navigation": 0.5, "memory_score": 0.25}, final=True)

    assert metadata.score_of("score") == 1.0
    assert metadata.score_of("navigation_score") == metadata.score_of("navigation") == 0.5
    assert metadata.score_of("memory_score") == 0.25
    assert metadata.score_of("final") is None
    assert metadata.score_of("absent") is None


def test_the_least_recently_used_entry_goes_first():
    cache = PolicyCache[int](2)
    cache.put("a", 1)
    cache.put("b", 2)
    cache.get("a")
    cache.put("c", 3)

    assert "b" not in cache
    assert (cache.get("a"), cache.get("c"), len(cache)) == (1, 3, 2)


def test_a_cache_of_no_size_is_refused():
    with pytest.raises(ConfigError, match="policy_cache_size=0"):
        PolicyCache[int](0)
