import json
import math
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metta_ray.common.errors import CheckpointError
from metta_ray.common.util.state_directory import (
    load_tree,
    save_tree,
    tree_from_bytes,
    tree_to_bytes,
    verify_manifest,
    write_manifest,
)

dtypes = st.sampled_from(["bool", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", ">i4", ">f8"]).map(
    np.dtype
)
arrays = dtypes.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)))
keys = st.one_of(st.text(max_size=5), st.integers(), st.sampled_from(["$array", "a/b", "__metadata__"]))
trees = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), arrays),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
    max_leaves=8,
)


def assert_same(left: Any, right: Any) -> None:
    if isinstance(left, np.ndarray):
        assert left.shape == right.shape
        assert left.dtype.newbyteorder("=") == right.dtype
        np.testing.assert_array_equal(left, right)
    elif isinstance(left, dict):
        assert [*left] == [*right]
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    elif isinstance(left, float) and math.isnan(left):
        assert math.isnan(right)
    else:
        assert type(left) is type(right)
        assert left == right
        assert str(left) == str(right)  # tells -0.0 from 0.0


@given(tree=trees)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_tree_comes_back_exactly(tmp_path: Path, tree: Any):
    save_tree(tmp_path, "state", tree)
    assert_same(tree, load_tree(tmp_path, "state"))
    assert_same(tree, tree_from_bytes(tree_to_bytes(tree)))


def test_a_generator_continues_from_a_saved_state(tmp_path: Path):
    rng = np.random.default_rng(3)
    rng.integers(10, size=3, dtype=np.uint32)
    assert rng.bit_generator.state["state"]["state"] > 2**64
    save_tree(tmp_path, "rng", rng.bit_generator.state)

    other = np.random.default_rng(0)
    other.bit_generator.state = load_tree(tmp_path, "rng")

    assert other.random(10).tolist() == rng.random(10).tolist()


def test_tuples_become_lists_and_numpy_scalars_python_scalars(tmp_path: Path):
    save_tree(tmp_path, "state", {"t": (1, (2,)), "f": np.float32(0.1), "i": np.uint64(2**63), "b": np.True_})
    loaded = load_tree(tmp_path, "state")
    assert loaded == {"t": [1, [2]], "f": float(np.float32(0.1)), "i": 2**63, "b": True}
    assert loaded["b"] is True


def test_views_and_fortran_order_are_saved_by_value_and_loaded_writable(tmp_path: Path):
    matrix = np.arange(6.0).reshape(2, 3)
    save_tree(tmp_path, "state", [matrix.T, matrix[:, ::2]])

    transposed, strided = load_tree(tmp_path, "state")
    transposed += 1

    assert transposed.tolist() == (matrix.T + 1).tolist()
    assert strided.tolist() == [[0, 2], [3, 5]]


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (object(), "state at '/a/1' is a object"),
        (np.array(["x"]), "state at '/a/1' is an array of <U1"),
        (np.array([None]), "state at '/a/1' is an array of object"),
        ({1.5: 0}, r"state at '/a/1' has the key 1\.5"),
        ({True: 0}, "state at '/a/1' has the key True"),
    ],
)
def test_what_cannot_be_saved_is_named_by_its_place(tmp_path: Path, leaf: Any, message: str):
    with pytest.raises(TypeError, match=message):
        save_tree(tmp_path, "state", {"a": [0, leaf]})


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_tree(tmp_path, "trainer", {"weights": np.ones(3), "epoch": 1})
    write_manifest(tmp_path, "trainer_checkpoint", 1, {"epoch": 1})
    return tmp_path


def test_an_undamaged_checkpoint_verifies(checkpoint: Path):
    manifest = verify_manifest(checkpoint, "trainer_checkpoint", 1)
    assert manifest["extra"] == {"epoch": 1}
    assert set(manifest["files"]) == {"trainer.safetensors", "trainer.json"}


@pytest.mark.parametrize("name", ["trainer.safetensors", "trainer.json", "manifest.json"])
def test_a_flipped_bit_anywhere_is_found_and_its_file_named(checkpoint: Path, name: str):
    path = checkpoint / name
    content = path.read_bytes()
    for position in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        try:
            same = json.loads(damaged) == json.loads(content)
        except ValueError:
            same = False
        if name == "manifest.json" and same:  # white space between values
            continue
        with pytest.raises(CheckpointError, match=f"{name} is damaged"):
            verify_manifest(checkpoint)


def test_missing_and_shortened_files_are_named(checkpoint: Path):
    path = checkpoint / "trainer.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"trainer\.safetensors is damaged \(\d+ bytes instead of"):
        verify_manifest(checkpoint)

    path.unlink()
    with pytest.raises(CheckpointError, match=r"trainer\.safetensors is missing"):
        verify_manifest(checkpoint)
    with pytest.raises(CheckpointError, match=r"trainer\.safetensors is missing"):
        load_tree(checkpoint, "trainer")

    (checkpoint / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing"):
        verify_manifest(checkpoint)


def test_another_kind_or_version_is_refused(checkpoint: Path):
    with pytest.raises(CheckpointError, match="is a 'trainer_checkpoint', not a 'policy'"):
        verify_manifest(checkpoint, "policy")
    with pytest.raises(CheckpointError, match="format version 1, this package reads version 2"):
        verify_manifest(checkpoint, "trainer_checkpoint", 2)


def test_k16_a_pickle_is_refused_without_being_loaded(tmp_path: Path):
    (tmp_path / "state.json").write_text('{"$array": "value"}')
    (tmp_path / "state.safetensors").write_bytes(b"\x80\x04cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(CheckpointError, match=r"state\.safetensors is damaged"):
        load_tree(tmp_path, "state")
