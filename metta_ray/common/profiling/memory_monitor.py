"""How much memory objects hold, tensors and arrays counted by their storage.

``sys.getsizeof`` sees a tensor's header only, so an experience buffer of gigabytes would show as kilobytes.
Tensors are recognised by what they can do; nothing is imported for them.
"""

from __future__ import annotations

import sys
import types
import weakref
from typing import Any

import numpy as np

_SKIPPED = (type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType)


class MemoryMonitor:
    """Tracks objects without keeping them alive; ``stats`` says how many bytes each one holds."""

    def __init__(self) -> None:
        self._tracked: dict[str, tuple[weakref.ref[Any], bool]] = {}

    def add(self, obj: Any, name: str | None = None, track_attributes: bool = False) -> None:
        """``track_attributes`` also lists the object's attributes, as ``name.attribute``."""
        self._tracked[name or type(obj).__name__] = (weakref.ref(obj), track_attributes)

    def remove(self, name: str) -> None:
        self._tracked.pop(name, None)

    def get(self, name: str) -> int:
        """Bytes of one tracked object; 0 when it is gone."""
        obj = self._tracked[name][0]() if name in self._tracked else None
        return 0 if obj is None else size_bytes(obj)

    def stats(self) -> dict[str, int]:
        """{name: bytes}. Objects that no longer exist are forgotten."""
        sizes: dict[str, int] = {}
        for name, (reference, track_attributes) in list(self._tracked.items()):
            obj = reference()
            if obj is None:
                del self._tracked[name]
                continue
            sizes[name] = size_bytes(obj)
            if track_attributes:
                attributes = getattr(obj, "__dict__", {})
                sizes |= {f"{name}.{key}": size_bytes(value) for key, value in attributes.items()}
        return sizes

    def clear(self) -> None:
        self._tracked.clear()


def size_bytes(obj: Any) -> int:
    """Bytes reachable from ``obj``; every object and every shared storage counts once."""
    total = 0
    seen: set[Any] = set()
    kept: list[Any] = []  # ids are unique only while their objects live
    pending = [obj]
    while pending:
        item = pending.pop()
        if isinstance(item, _SKIPPED) or id(item) in seen:
            continue
        seen.add(id(item))
        kept.append(item)
        total += _own_size(item, seen)
        pending += _parts(item)
    return total


def _own_size(item: Any, seen: set[Any]) -> int:
    if _is_tensor(item):
        storage = item.untyped_storage()
        place = ("storage", str(item.device), storage.data_ptr())
        if place in seen:
            return 0
        seen.add(place)
        return int(storage.nbytes())
    return sys.getsizeof(item)  # of an array that owns its data this includes the data


def _parts(item: Any) -> list[Any]:
    if _is_tensor(item):
        gradient = item.grad if item.is_leaf else None
        return [] if gradient is None else [gradient]
    if isinstance(item, np.ndarray):
        return [] if item.base is None else [item.base]
    if isinstance(item, str | bytes | bytearray | int | float):
        return []
    if isinstance(item, dict):
        return [*item.keys(), *item.values()]
    if isinstance(item, list | tuple | set | frozenset) or type(item).__name__ == "deque":
        return list(item)
    parts = [vars(item)] if hasattr(item, "__dict__") else []
    slots = [getattr(item, name, None) for kind in type(item).__mro__ for name in _slots(kind)]
    return [*parts, *slots]


def _slots(kind: type) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _is_tensor(item: Any) -> bool:
    kind = type(item)
    return hasattr(kind, "untyped_storage") and hasattr(kind, "element_size")
