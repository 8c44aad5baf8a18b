"""One evaluation in an actor of its own: started, looked at now and then, never waited for."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from metta_ray.service.causes import failure_of
from metta_ray.service.children import Children
from metta_ray.service.identity import Identity

DEADLINE_S = 900.0


class EvaluationJob:
    """An evaluation that fails is told in its text; it never fails the run."""

    def __init__(
        self,
        children: Children,
        identity: Identity,
        config: dict[str, Any],
        run_dir: str,
        policy_uri: str,
        clock: Callable[[], float],
    ) -> None:
        self._children = children
        self._clock = clock
        self._child = children.start("evaluator", identity, config, run_dir)
        self._future = self._child.call("evaluate", policy_uri)
        self._deadline = clock() + DEADLINE_S

    def poll(self) -> str | None:
        """The table, or why there is none; None while it plays."""
        if not self._children.wait([self._future], 0.0) and self._clock() < self._deadline:
            return None
        try:
            text: str = self._children.result(self._future, 0.1)
        except Exception as error:
            text = f"the evaluation failed: {failure_of(error).text}"
        self.cancel()
        return text

    def cancel(self) -> None:
        self._child.retire()


def evaluator_identity(run: str, number: int, generation: int) -> Identity:
    return Identity(run, "evaluator", number, secrets.token_hex(8), generation)
