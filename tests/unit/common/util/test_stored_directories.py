"""Directories in a store: complete or absent at every moment, damage is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from metta_ray.common.errors import CheckpointError, ConfigError, ObjectStoreError
from metta_ray.common.util import fs, places, stored_directories
from metta_ray.common.util.state_directory import load_tree, save_tree, verify_manifest, write_manifest

PLACE = "memory://bucket/runs"


class Killed(BaseException):
    """The process dies here."""


class FlakyFileSystem(MemoryFileSystem):
    """Dies, or refuses, when its changes are used up. Shares its files with memory://."""

    protocol = "flaky"
    cachable = False
    left: float = float("inf")
    error: type[BaseException] = Killed

    def _use(self) -> None:
        if FlakyFileSystem.left <= 0:
            raise FlakyFileSystem.error("no more")
        FlakyFileSystem.left -= 1

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return MemoryFileSystem._strip_protocol(str(path).replace("flaky://", "memory://"))

    def put_file(self, *args: Any, **kwargs: Any) -> None:
        self._use()
        super().put_file(*args, **kwargs)

    def pipe_file(self, *args: Any, **kwargs: Any) -> None:
        self._use()
        super().pipe_file(*args, **kwargs)

    def rm_file(self, *args: Any, **kwargs: Any) -> None:
        self._use()
        super().rm_file(*args, **kwargs)


fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)


@pytest.fixture(autouse=True)
def _empty_memory() -> Iterator[None]:
    FlakyFileSystem.left, FlakyFileSystem.error = float("inf"), Killed
    yield
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def made(path: Path, value: int) -> Path:
    with fs.atomic_directory(path, replace=True) as directory:
        save_tree(directory, "trainer", {"value": value})
        write_manifest(directory, "test", 1)
    return path


def value_at(place: str, tmp_path: Path) -> int | None:
    """What a reader finds, who never sees a half directory; None if there is none."""
    target = tmp_path / "read"
    try:
        stored_directories.pull(place, target)
    except CheckpointError:
        return None
    verify_manifest(target)
    return int(load_tree(target, "trainer")["value"])


def test_a_directory_comes_back_as_it_was(tmp_path: Path):
    directory = made(tmp_path / "one", 7)

    assert stored_directories.push(directory, f"{PLACE}/one")
    assert not stored_directories.push(directory, f"{PLACE}/one"), "what is there is not sent again"

    assert value_at(f"{PLACE}/one", tmp_path) == 7
    assert stored_directories.is_same(f"{PLACE}/one", directory)
    stored_directories.remove(f"{PLACE}/one")
    assert value_at(f"{PLACE}/one", tmp_path) is None
    with places.opened(PLACE) as (store, root):
        assert places.listed(store, root) == {}


def every_moment(act: Callable[[], None], check: Callable[[], None]) -> int:
    for moment in range(100):
        FlakyFileSystem.left = moment
        try:
            act()
        except Killed:
            FlakyFileSystem.left = float("inf")
            check()
            continue
        return moment
    raise AssertionError("it never ended")


def test_killed_at_any_moment_the_new_one_is_complete_or_absent_and_the_one_before_is_whole(tmp_path: Path):
    before, new = made(tmp_path / "before", 1), made(tmp_path / "new", 2)
    stored_directories.push(before, "flaky://b/run/model_0001")

    def push() -> None:
        stored_directories.push(new, "flaky://b/run/model_0002")

    def check() -> None:
        assert value_at("flaky://b/run/model_0001", tmp_path) == 1
        assert value_at("flaky://b/run/model_0002", tmp_path) is None

    assert every_moment(push, check) == 3, "two files and the manifest"
    assert value_at("flaky://b/run/model_0002", tmp_path) == 2


def test_killed_while_one_of_the_same_name_is_replaced_or_removed_no_mixture_is_ever_seen(tmp_path: Path):
    old, new, target = made(tmp_path / "old", 1), made(tmp_path / "new", 2), "flaky://b/run/model_0001"
    stored_directories.push(old, target)
    every_moment(lambda: bool(stored_directories.push(new, target)) and None, lambda: absent_or(1, target, tmp_path))
    assert value_at(target, tmp_path) == 2

    every_moment(lambda: stored_directories.remove(target), lambda: absent_or(2, target, tmp_path))
    assert value_at(target, tmp_path) is None


def absent_or(value: int, place: str, tmp_path: Path) -> None:
    assert value_at(place, tmp_path) in (None, value)


def test_a_damaged_object_is_named(tmp_path: Path):
    stored_directories.push(made(tmp_path / "one", 7), f"{PLACE}/one")
    damaged = bytearray(places.read_bytes(f"{PLACE}/one/trainer.json"))
    damaged[-3] ^= 1
    places.write_bytes(f"{PLACE}/one/trainer.json", bytes(damaged))

    with pytest.raises(CheckpointError, match=r"one/trainer.json is damaged \(its SHA-256 differs\)") as error:
        stored_directories.pull(f"{PLACE}/one", tmp_path / "copy")

    assert PLACE in str(error.value), "the object, not the copy of it"
    assert not (tmp_path / "copy").exists()


def test_what_is_damaged_here_is_not_uploaded(tmp_path: Path):
    directory = made(tmp_path / "one", 7)
    (directory / "trainer.json").write_bytes(b"{}")

    with pytest.raises(CheckpointError, match="not uploaded"):
        stored_directories.push(directory, "memory://b/one")


def test_a_store_that_refuses_is_an_error_that_names_the_place(tmp_path: Path):
    FlakyFileSystem.left, FlakyFileSystem.error = 0, PermissionError

    with pytest.raises(ObjectStoreError, match="flaky://b/one: no more"):
        stored_directories.push(made(tmp_path / "one", 7), "flaky://b/one")
    with pytest.raises(ConfigError, match=r"nothing can be kept in flaky://b.*may you write"):
        places.require_writable("flaky://b")


@pytest.mark.parametrize("url", ["s3://", "s3://bucket/../other"])
def test_a_url_that_names_no_place_is_refused(url: str):
    with pytest.raises(ConfigError, match="names no place"):
        places.path_of_url(url)


def test_names_that_lead_out_of_a_place_are_not_followed(tmp_path: Path):
    store = fsspec.filesystem("memory")
    store.pipe_file("/b/one/fine.txt", b"1")
    store.store["/b/one/../../outside.txt"] = store.store["/b/one/fine.txt"]

    with places.opened("memory://b/one") as (opened, root):
        assert list(places.listed(opened, root)) == ["fine.txt"]
