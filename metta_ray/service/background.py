"""Questions that may take long, asked so that nobody waits for the answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")


class LastAnswer(Generic[_T]):
    """Each ``get`` asks, in a thread and unless the question before is still open, and returns what was answered last.

    first: the answer until there is one. A question that raises leaves the answer as it was.
    """

    def __init__(self, ask: Callable[[], _T], first: _T, name: str) -> None:
        self._ask = ask
        self._answer = first
        self._name = name
        self._is_open = False

    def get(self) -> _T:
        if not self._is_open:
            self._is_open = True
            threading.Thread(target=self._answer_it, name=self._name, daemon=True).start()
        return self._answer

    def _answer_it(self) -> None:
        try:
            self._answer = self._ask()
        finally:
            self._is_open = False
