"""The coordinator's children as handles: how they are called, waited for and ended. One implementation is Ray's.

Pool and learner group know only these protocols, so tests and benchmarks drive them with children in this process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from metta_ray.service.identity import Identity
from metta_ray.service.process_info import ProcessInfo

Future = Any
"""What a call gives at once: an ObjectRef, or in a test any object that ``Children.wait`` understands."""


class Child(Protocol):
    """A process of the run. ``call`` starts a method and returns its future; ``results`` > 1: a list of futures."""

    identity: Identity

    def call(self, method: str, *args: Any, results: int = 1) -> Any: ...

    def retire(self) -> None:
        """Ends it between two calls."""
        ...

    def kill(self, info: ProcessInfo | None) -> None:
        """Ends it at once, whatever it does. ``info`` names the process for where the polite way takes too long."""
        ...


class Children(Protocol):
    """Starts children and waits for what they were asked."""

    def start(self, role: str, identity: Identity, *args: Any) -> Child: ...

    def find(self, identity: Identity) -> Child | None:
        """A living child of an earlier coordinator; None if it is gone."""
        ...

    def wait(self, futures: Sequence[Future], timeout_s: float) -> list[Future]:
        """Those that are done; returns at the first, or with none when the time is over."""
        ...

    def result(self, future: Future, timeout_s: float = 5.0) -> Any:
        """The value; raises what the call raised, or what became of the process."""
        ...

    def leaving_nodes(self) -> set[str]:
        """Ids of nodes that will soon be taken away."""
        ...

    def missing_resources(self, role: str, count: int) -> str | None:
        """What up to ``count`` children of a role without a process lack, in words; None if they lack nothing."""
        ...
