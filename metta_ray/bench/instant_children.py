"""Children that answer at once, or after a while that they do not work: what is left of a training then is the
coordinator's work."""

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

    def open_store(self) -> tuple[str, int]:
        return "here", 0

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
    """Done at ``due``, by ``time.perf_counter``."""

    def __init__(self, value: Any, due: float = 0.0) -> None:
        self.value = value
        self.due = due


class InstantChild:
    """An object of this process as a child. fragment_s: after which each of its fragments is there, one after another;
    a hundredth more or less, so that workers do not stay in step."""

    def __init__(self, identity: Identity, process: Any, fragment_s: float = 0.0) -> None:
        self.identity = identity
        self.process = process
        self._fragment_s = fragment_s * (1.0 + (identity.number % 21 - 10) / 1000)
        self._free_at = time.perf_counter() + fragment_s * (identity.number % 97) / 97

    def call(self, method: str, *args: Any, results: int = 1) -> Any:
        value = getattr(self.process, method)(*args)
        due = self._due() if method == "collect" and self._fragment_s else 0.0
        return [InstantFuture(one, due) for one in value] if results > 1 else InstantFuture(value, due)

    def _due(self) -> float:
        self._free_at = max(self._free_at, time.perf_counter()) + self._fragment_s
        return self._free_at

    def retire(self) -> None:
        pass

    def kill(self, info: ProcessInfo | None) -> None:
        pass


class InstantChildren:
    """Starts them. fragment_s: how long a fragment takes; 0: no time."""

    def __init__(self, sizes: Sizes, fragment_s: float = 0.0) -> None:
        self.workers: list[InstantWorker] = []
        self._sizes = sizes
        self._fragment_s = fragment_s

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
        return InstantChild(identity, self.workers[-1], self._fragment_s)

    def find(self, identity: Identity) -> None:
        del identity

    def wait(self, futures: Sequence[InstantFuture], timeout_s: float) -> list[InstantFuture]:
        now = time.perf_counter()
        done = [future for future in futures if future.due <= now]
        if done or timeout_s <= 0:
            return done
        first = min((future.due for future in futures), default=now + timeout_s)
        time.sleep(max(0.0, min(timeout_s, first - now)))
        now = time.perf_counter()
        return [future for future in futures if future.due <= now]

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
