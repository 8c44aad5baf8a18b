"""Where the time of a loop goes, from outside: functions are wrapped for a while, and each second counted once.

Time inside a wrapped function that another one called meanwhile belongs to the inner one; what no wrapped function took
is bookkeeping. Wrapping costs about a microsecond a call, so speeds are measured without it.
"""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

Place = tuple[Any, str, Callable[[], str]]
"""Owner, name of the function there, and what it is called at the moment."""


class PartTimes:
    """Seconds by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner: list[float] = []

    @contextmanager
    def watching(self, places: Sequence[Place]) -> Iterator[None]:
        originals = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
        began = time.perf_counter()
        for (owner, name, original), (_, _, label) in zip(originals, places, strict=True):
            setattr(owner, name, self._timed(original, label))
        try:
            yield
        finally:
            for owner, name, original in originals:
                setattr(owner, name, original)
            total = time.perf_counter() - began
            self.seconds["bookkeeping"] += total - sum(self.seconds.values())

    def _timed(self, function: Callable[..., Any], label: Callable[[], str]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            name = label()
            self._inner.append(0.0)
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                taken = time.perf_counter() - began
                self.seconds[name] += taken - self._inner.pop()
                if self._inner:
                    self._inner[-1] += taken

        return timed
