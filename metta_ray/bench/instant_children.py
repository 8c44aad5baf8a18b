"""Children that answer at once (or sleep a while first): what is left of a training then is the coordinator's work."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from metta_ray.rl.fragment import FragmentHeader
from metta_ray.service.identity import Identity
from metta_ray.service.orders import Restored, Staged, Ticket, UpdateOrder, UpdateResult
from metta_ray.service.process_info import ProcessInfo
from metta_ray.service.sizes import Sizes

SECONDS = {"environment": 6e-4, "inference": 3e-4, "transport": 1e-4, "waiting": 0.0}


class InstantWorker:
    """Headers without fragments, each after ``sleep_s``. dispatch_s: how long each answered order waited for the one
    after it."""

    def __init__(self, identity: Identity, sizes: Sizes, sleep_s: float = 0.0) -> None:
        self.dispatch_s: list[float] = []
        self._identity = identity
        self._sizes = sizes
        self._sleep_s = sleep_s
        self._answered: deque[float] = deque()
        self._horizon = sizes.fragment_steps // sizes.agents_per_worker

    def collect(self, ticket: Ticket) -> tuple[FragmentHeader, None]:
        now = time.perf_counter()
        if self._answered:
            self.dispatch_s.append(now - self._answered.popleft())
        if self._sleep_s:
            time.sleep(self._sleep_s)
        self._answered.append(time.perf_counter())
        header = FragmentHeader(
            run=self._identity.run,
            generation=ticket.generation,
            ticket=ticket.number,
            stream=self._identity.number,
            incarnation=self._identity.incarnation,
            policy_version=ticket.weights.version,
            segments=self._sizes.agents_per_worker,
            horizon=self._horizon,
            counted_steps=self._sizes.fragment_steps,
            size_bytes=600_000,
            stats={"episode/return": [1.0, 2.0, 3.0], "episode/length": [30, 40, 50]},
            seconds=SECONDS,
        )
        return header, None

    def describe(self) -> ProcessInfo:
        return _info(self._identity)


class InstantLearner:
    """Updates without weights."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._version = self._rank = 0

    def begin(self, checkpoint_dir: str | None) -> tuple[Restored, None, None]:
        del checkpoint_dir
        return Restored(), None, None

    def join(self, place: Any, generation: int, version: int, *state: Any) -> ProcessInfo:
        del generation, state
        self._version, self._rank = version, place.rank
        return _info(self._identity)

    def stage(self, generation: int, group: int, batch: int, *fragments: Any) -> Staged:
        del generation, group, fragments
        return Staged(batch, 0, {})

    def train(self, order: UpdateOrder) -> tuple[UpdateResult, None, None]:
        self._version = order.version + 1
        result = UpdateResult(
            incarnation=self._identity.incarnation,
            rank=self._rank,
            version=self._version,
            agent_step=order.agent_step,
            tickets=order.tickets,
            losses={"policy_loss": 0.5, "value_loss": 0.5},
            hyperparameters={"learning_rate": 1e-3},
            metrics={},
            seconds={"waiting": 0.0, "training": 1e-3},
            skipped_updates=0,
        )
        return result, None, None

    def describe(self) -> tuple[ProcessInfo, int]:
        return _info(self._identity), self._version


class InstantFuture:
    """Done."""

    def __init__(self, value: Any) -> None:
        self.value = value


class InstantChild:
    """An object of this process as a child."""

    def __init__(self, identity: Identity, process: Any) -> None:
        self.identity = identity
        self.process = process

    def call(self, method: str, *args: Any, results: int = 1) -> Any:
        value = getattr(self.process, method)(*args)
        return [InstantFuture(one) for one in value] if results > 1 else InstantFuture(value)

    def retire(self) -> None:
        pass

    def kill(self, info: ProcessInfo | None) -> None:
        pass


class InstantChildren:
    """Starts them."""

    def __init__(self, sizes: Sizes) -> None:
        self.workers: list[InstantWorker] = []
        self._sizes = sizes

    def take_dispatch_s(self) -> list[float]:
        """Of all workers, since the last time."""
        taken = [seconds for worker in self.workers for seconds in worker.dispatch_s]
        for worker in self.workers:
            worker.dispatch_s.clear()
        return taken

    def start(self, role: str, identity: Identity, *args: Any) -> InstantChild:
        del args
        if role == "learner":
            return InstantChild(identity, InstantLearner(identity))
        self.workers.append(InstantWorker(identity, self._sizes))
        return InstantChild(identity, self.workers[-1])

    def find(self, identity: Identity) -> None:
        del identity

    def wait(self, futures: Sequence[InstantFuture], timeout_s: float) -> list[InstantFuture]:
        if not futures:
            time.sleep(timeout_s)
        return list(futures)

    def result(self, future: InstantFuture, timeout_s: float = 5.0) -> Any:
        del timeout_s
        return future.value

    def missing_resources(self, role: str, count: int) -> str | None:
        del role, count
        return None

    def leaving_nodes(self) -> set[str]:
        return set()


def _info(identity: Identity) -> ProcessInfo:
    return ProcessInfo(identity.incarnation, 0, 0.0, "here", "here", {}, 0)
