"""From a URL to a store of run records."""

from __future__ import annotations

from pathlib import Path

from metta_ray.common.errors import ConfigError
from metta_ray.state.base import StateStore
from metta_ray.state.redis_address import RedisAddress
from metta_ray.state.sqlite_store import SqliteStore

SQLITE = "sqlite:///"
REDIS = ("redis://", "rediss://")
SETTING = "state.url (--state, METTA_RAY_STATE)"
PATIENCE_S = 5.0
"""How long a person waits for an answer."""


def open_store(url: str, *, timeout_s: float = PATIENCE_S) -> StateStore:
    """``sqlite:///relative/path``, ``sqlite:////absolute/path``, or a Redis as in ``redis_address``.

    timeout_s: of a call over the network; a file's own timeout is SqliteStore's.

    ConfigError for anything else, StateStoreError where a file cannot be used. A Redis is first asked when the store
    is used.
    """
    check_store_url(url)
    if url.startswith(SQLITE):
        return SqliteStore(url.removeprefix(SQLITE))
    from metta_ray.state.redis_store import RedisStore  # the client of a server that most runs have no use for

    return RedisStore(RedisAddress.from_url(url), timeout_s=timeout_s)


def check_store_url(url: str) -> None:
    """ConfigError for what ``open_store`` refuses. The message never repeats a URL, which may hold a password."""
    if url.startswith(REDIS):
        RedisAddress.from_url(url)
    elif not url.startswith(SQLITE) or url == SQLITE:
        raise ConfigError(f"{SETTING}: {_what_is_wrong(url)}; known is sqlite:///path, and redis:// or rediss://")


def _what_is_wrong(url: str) -> str:
    scheme, separator, _ = url.partition("://")
    if separator:
        return f"{scheme + separator!r} names no store of run records"
    if "@" in url:
        return "it names no store of run records"
    path = Path(url).absolute()
    file = path / "runs.sqlite" if path.is_dir() else path
    return f"{url!r} is a path, and a file of run records is named by its URL, here {SQLITE}{file}"
