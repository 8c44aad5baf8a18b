"""From a URL to a store of run records."""

from __future__ import annotations

from metta_ray.common.errors import ConfigError
from metta_ray.state.base import StateStore
from metta_ray.state.sqlite_store import SqliteStore

SQLITE = "sqlite:///"


def open_store(url: str) -> StateStore:
    """``sqlite:///relative/path`` or ``sqlite:////absolute/path``. ConfigError for anything else."""
    if url.startswith(SQLITE) and len(url) > len(SQLITE):
        return SqliteStore(url.removeprefix(SQLITE))
    scheme = url.partition("://")[0]  # the rest may hold a password, which belongs in no message
    if scheme in ("redis", "rediss"):
        raise ConfigError("state.url: Redis comes with a later version; known is sqlite:///path")
    raise ConfigError(f"state.url: {scheme!r} names no store of run records; known is sqlite:///path")
