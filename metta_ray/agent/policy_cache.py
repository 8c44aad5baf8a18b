"""A bounded, locked cache: the least recently used entry goes first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from metta_ray.common.errors import ConfigError

Value = TypeVar("Value")


class PolicyCache(Generic[Value]):
    """At most ``max_size`` entries. Safe to use from several threads."""

    def __init__(self, max_size: int = 10) -> None:
        if max_size <= 0:
            raise ConfigError(f"policy_cache_size={max_size} holds nothing; choose 1 or more")
        self.max_size = max_size
        self._entries: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = threading.RLock()

    def get(self, key: Hashable) -> Value | None:
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key]

    def put(self, key: Hashable, value: Value) -> None:
        with self._lock:
            self._entries[key] = value
            self._entries.move_to_end(key)
            while len(self._entries) > self.max_size:
                self._entries.popitem(last=False)

    def get_or_load(self, key: Hashable, load: Callable[[], Value]) -> Value:
        """The cached value, else ``load()``, which runs outside the lock (twice, at worst, in a race)."""
        cached = self.get(key)
        if cached is None:
            cached = load()
            self.put(key, cached)
        return cached

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()

    def __len__(self) -> int:
        with self._lock:
            return len(self._entries)

    def __contains__(self, key: Hashable) -> bool:
        with self._lock:
            return key in self._entries
