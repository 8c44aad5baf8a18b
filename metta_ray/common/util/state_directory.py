"""State as a directory of safetensors and JSON: no pickle, every file hashed, every value exact.

    with atomic_directory(path) as directory:
        save_tree(directory, "trainer", {"weights": {...}, "epoch": 3})   # trainer.safetensors, trainer.json
        write_manifest(directory, kind="trainer_checkpoint", format_version=1)
    ...
    verify_manifest(path, kind="trainer_checkpoint")
    state = load_tree(path, "trainer")

A tree is made of dicts (keys: str or int, which come back as such), lists and tuples (both come back as
lists), and
leaves: numpy arrays, int of any size, float (also nan and infinities), str, bool, None. Numpy scalars come
back as Python scalars of the same value.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from metta_ray.common.errors import CheckpointError
from metta_ray.common.util import fs

MANIFEST = "manifest.json"

_ARRAY, _FLOAT, _DICT = "$array", "$float", "$dict"
_SAVABLE_KINDS = "biuf"  # bool, signed, unsigned, float


def save_tree(directory: Path | str, name: str, tree: Any) -> None:
    """Writes ``<name>.safetensors`` (the arrays) and ``<name>.json`` (structure and scalars), both fsynced.

    TypeError names the place of a leaf that cannot be saved.
    """
    directory = Path(directory)
    arrays: dict[str, NDArray[Any]] = {}
    structure = _encode(tree, "", arrays)
    text = json.dumps(structure, allow_nan=False)
    fs.write_file(directory / f"{name}.safetensors", safetensors.numpy.save(arrays))
    fs.write_file(directory / f"{name}.json", text.encode())


def load_tree(directory: Path | str, name: str) -> Any:
    """The tree that ``save_tree`` wrote; arrays are writable. CheckpointError names a missing or bad file."""
    directory = Path(directory)
    structure = _read_json(directory / f"{name}.json")
    arrays_path = directory / f"{name}.safetensors"
    try:
        arrays = safetensors.numpy.load(arrays_path.read_bytes())
        return _decode(structure, arrays)
    except FileNotFoundError:
        raise CheckpointError(f"{arrays_path} is missing; use another checkpoint") from None
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{arrays_path} is damaged ({error}); use another checkpoint") from None


def tree_to_bytes(tree: Any) -> bytes:
    """A tree as one message: 8 bytes with the length of the JSON part, that part, then the arrays."""
    arrays: dict[str, NDArray[Any]] = {}
    text = json.dumps(_encode(tree, "", arrays), allow_nan=False).encode()
    return len(text).to_bytes(8, "little") + text + safetensors.numpy.save(arrays)


def tree_from_bytes(message: bytes) -> Any:
    """The inverse of ``tree_to_bytes``."""
    end = 8 + int.from_bytes(message[:8], "little")
    return _decode(json.loads(message[8:end]), safetensors.numpy.load(message[end:]))


def write_manifest(directory: Path | str, kind: str, format_version: int, extra: dict[str, Any] | None = None) -> None:
    """Writes ``manifest.json``: what this directory is, size and SHA-256 of every file in it. Call last."""
    directory = Path(directory)
    files = {
        file.relative_to(directory).as_posix(): {"size": file.stat().st_size, "sha256": fs.sha256_file(file)}
        for file in sorted(directory.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }
    manifest = {"kind": kind, "format_version": format_version, "extra": extra or {}, "files": files}
    manifest["sha256"] = _digest(manifest)
    fs.write_file(directory / MANIFEST, json.dumps(manifest, indent=2).encode())


def verify_manifest(
    directory: Path | str, kind: str | None = None, format_version: int | None = None
) -> dict[str, Any]:
    """The manifest, after every file was compared with it.

    Raises CheckpointError naming the missing or damaged file, or the kind or version that was not expected.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    if kind is not None and manifest["kind"] != kind:
        raise CheckpointError(f"{directory} is a {manifest['kind']!r}, not a {kind!r}; give another path")
    if format_version is not None and manifest["format_version"] != format_version:
        raise CheckpointError(
            f"{directory} has format version {manifest['format_version']}, this package reads version "
            f"{format_version}; use the package version that wrote it"
        )
    for name, expected in manifest["files"].items():
        _verify_file(directory, name, expected)
    return manifest


def read_manifest(directory: Path | str) -> dict[str, Any]:
    """The manifest alone, checked against its own digest; the files it lists are not read."""
    path = Path(directory) / MANIFEST
    manifest = _read_json(path)
    if not isinstance(manifest, dict) or manifest.pop("sha256", None) != _digest(manifest):
        raise CheckpointError(f"{path} is damaged; use another checkpoint")
    return manifest


def _verify_file(directory: Path, name: str, expected: dict[str, Any]) -> None:
    path = directory / name
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise CheckpointError(f"{directory / MANIFEST} names a file outside its directory: {name!r}")
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; use another checkpoint")
    size = path.stat().st_size
    if size != expected["size"]:
        raise CheckpointError(f"{path} is damaged ({size} bytes instead of {expected['size']}); use another checkpoint")
    if fs.sha256_file(path) != expected["sha256"]:
        raise CheckpointError(f"{path} is damaged (its SHA-256 differs); use another checkpoint")


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; use another checkpoint") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}); use another checkpoint") from None


def _encode(value: Any, place: str, arrays: dict[str, NDArray[Any]]) -> Any:
    if isinstance(value, np.ndarray):
        return {_ARRAY: _store(value, place, arrays)}
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {_FLOAT: repr(value)}
    if isinstance(value, list | tuple):
        return [_encode(item, f"{place}/{index}", arrays) for index, item in enumerate(value)]
    if isinstance(value, dict):
        return _encode_dict(value, place, arrays)
    raise TypeError(f"state at {place or '/'!r} is a {type(value).__name__}, which cannot be saved")


def _encode_dict(mapping: dict[Any, Any], place: str, arrays: dict[str, NDArray[Any]]) -> Any:
    for key in mapping:
        if not isinstance(key, str | int) or isinstance(key, bool):
            raise TypeError(f"state at {place or '/'!r} has the key {key!r}; keys must be str or int")
    items = {key: _encode(item, f"{place}/{key}", arrays) for key, item in mapping.items()}
    if all(isinstance(key, str) and not key.startswith("$") for key in items):
        return items
    return {_DICT: [[key, item] for key, item in items.items()]}


def _store(array: NDArray[Any], place: str, arrays: dict[str, NDArray[Any]]) -> str:
    if array.dtype.kind not in _SAVABLE_KINDS or array.dtype.itemsize > 8:
        raise TypeError(f"state at {place or '/'!r} is an array of {array.dtype}, which cannot be saved")
    name = place.lstrip("/") or "value"
    while name in arrays or name == "__metadata__":  # {"a/b": …} beside {"a": {"b": …}}
        name += "'"
    # order="C" keeps 0-d arrays 0-d, which ascontiguousarray would not.
    arrays[name] = np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")
    return name


def _decode(value: Any, arrays: dict[str, NDArray[Any]]) -> Any:
    if isinstance(value, list):
        return [_decode(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if _ARRAY in value:
        array = arrays[value[_ARRAY]]
        return array if array.flags.writeable else array.copy()
    if _FLOAT in value:
        return float(value[_FLOAT])
    if _DICT in value:
        return {key: _decode(item, arrays) for key, item in value[_DICT]}
    return {key: _decode(item, arrays) for key, item in value.items()}
