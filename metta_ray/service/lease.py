"""The right to exist of a process that outlives its creator: it ends by itself when nobody renews it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)


class Lease:
    """Ends this process ``seconds`` after the last ``renew``.

    Children of a coordinator are detached, so that its death does not end them; without a lease they would stay
    for ever where it never comes back.
    """

    def __init__(self, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._renewed = clock()
        threading.Thread(target=self._watch, name="lease", daemon=True).start()

    def renew(self) -> None:
        self._renewed = self._clock()

    @property
    def is_expired(self) -> bool:
        return self._clock() - self._renewed > self._seconds

    def _watch(self) -> None:
        while not self.is_expired:
            time.sleep(min(1.0, self._seconds / 5))
        logger.warning("no coordinator for %.0f s: this process ends", self._seconds)
        os._exit(0)
