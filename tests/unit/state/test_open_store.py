"""What is no URL of a store is refused with what to write instead."""

from pathlib import Path

import pytest

from metta_ray.common.errors import ConfigError
from metta_ray.state.open_store import open_store


@pytest.mark.parametrize(
    ("path", "url"), [("runs.sqlite", "/runs.sqlite"), ("a/b.db", "/a/b.db"), (".", "/runs.sqlite")]
)
def test_a_path_is_refused_with_the_url_that_is_meant(
    path: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigError) as error:
        open_store(path)

    assert str(error.value).startswith(f"state.url (--state, METTA_RAY_STATE): {path!r} is a path, ")
    assert f"here sqlite:///{tmp_path}{url};" in str(error.value)


@pytest.mark.parametrize("url", ["http://canary/x", "canary:canary@host:6379", "sqlite:///"])
def test_what_names_no_store_is_refused_with_the_known_ones_and_not_repeated(url: str) -> None:
    with pytest.raises(
        ConfigError, match=r"names no store of run records; known is sqlite:///path, and redis://"
    ) as error:
        open_store(url)

    assert "canary" not in str(error.value)
