"""A run as its commands see it: the coordinator's methods, each with a deadline and readable failures."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from metta_ray.common.errors import MettaRayError, RunUnreachableError

ANSWER_TIMEOUT_S = 15.0
# A command is obeyed between two updates, and a checkpoint may wait for the one before it.
COMMAND_TIMEOUT_S = 65.0
CHECKPOINT_TIMEOUT_S = 125.0
RETRY_INTERVAL_S = 0.5

Answer = dict[str, Any]


class Call(Protocol):
    """Calls a method of the coordinator. Raises RunUnreachableError if it is gone or silent for ``timeout_s``."""

    def __call__(self, method: str, *arguments: Any, timeout_s: float) -> Any: ...


class RunHandle:
    """Everything that can be asked of a run. All methods raise RunUnreachableError if its coordinator does not answer,
    and what the coordinator itself raised, such as ConfigError for a setting that is unknown."""

    def __init__(self, run: str, call: Call):
        self.run = run
        self._call = call

    def status(self) -> Answer:
        return self._ask("status")

    def progress(self, after: int, timeout_s: float = 5.0) -> Answer:
        """Lines with numbers above ``after``; the coordinator waits up to ``timeout_s`` for one."""
        return self._ask("progress", after, timeout_s, timeout_s=ANSWER_TIMEOUT_S + timeout_s)

    def scale(self, workers: str) -> Answer:
        """``8``, or ``2:16`` for an automatic number."""
        return self._ask("scale", workers, timeout_s=COMMAND_TIMEOUT_S)

    def pause(self) -> Answer:
        return self._ask("pause", timeout_s=COMMAND_TIMEOUT_S)

    def unpause(self) -> Answer:
        return self._ask("unpause", timeout_s=COMMAND_TIMEOUT_S)

    def checkpoint(self) -> Answer:
        return self._ask("checkpoint", timeout_s=CHECKPOINT_TIMEOUT_S)

    def evaluate(self, suite: str = "", epoch: int | None = None, episodes: int | None = None, seed: int = 0) -> Answer:
        """Asks for an evaluation of the run's policy as it is now, or of the checkpoint of an epoch.

        Its ``number`` is in the answer. suite: a name, or "" for what suits the training environment."""
        return self._ask("evaluate", suite, epoch, episodes, seed, timeout_s=CHECKPOINT_TIMEOUT_S)

    def evaluation(self, number: int) -> Answer:
        """What became of an evaluation so far: ``state``, ``score``, ``low``, ``high``, ``text``, …"""
        return self._ask("evaluation", number, timeout_s=COMMAND_TIMEOUT_S)

    def await_evaluation(self, number: int, interval_s: float = 1.0) -> Answer:
        """The same once it has ended; there is no deadline but its own."""
        while (answer := self.evaluation(number)).get("state") in ("waiting", "running"):
            time.sleep(interval_s)
        return answer

    def curriculum(self) -> Answer:
        """How every task of the curriculum stands: ``rows``."""
        return self._ask("curriculum", timeout_s=COMMAND_TIMEOUT_S)

    def set(self, name: str, value: str) -> Answer:
        return self._ask("set", name, value, timeout_s=COMMAND_TIMEOUT_S)

    def stop(self, force: bool = False) -> Answer:
        return self._ask("stop", force, timeout_s=COMMAND_TIMEOUT_S)

    def attach(self, driver_id: str, heartbeat: int) -> Answer:
        """The life sign of an attached driver."""
        return self._ask("attach", driver_id, heartbeat)

    def close(self) -> Answer:
        """The end has been seen: the coordinator need not wait for anybody."""
        return self._ask("close")

    def _ask(self, method: str, *arguments: Any, timeout_s: float = ANSWER_TIMEOUT_S) -> Answer:
        answer: Answer = self._call(method, *arguments, timeout_s=timeout_s)
        return answer


class CoordinatorCall:
    """Calls through a Ray actor handle. A coordinator that is being restarted is waited for until the deadline.

    Every command may be given twice with the effect of once, so a call whose answer was lost is simply repeated.
    """

    def __init__(self, run: str, actor: Any, clock: Callable[[], float] = time.monotonic):
        self._run = run
        self._actor = actor
        self._clock = clock

    def __call__(self, method: str, *arguments: Any, timeout_s: float) -> Any:
        import ray
        from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayTaskError

        deadline = self._clock() + timeout_s
        while True:
            try:
                remote = getattr(self._actor, method).remote(*arguments)
                return ray.get(remote, timeout=max(deadline - self._clock(), 0.001))
            except ActorUnavailableError as error:
                if self._clock() + RETRY_INTERVAL_S >= deadline:
                    raise coordinator_gone(self._run, first_line(error)) from None
                time.sleep(RETRY_INTERVAL_S)
            except GetTimeoutError:
                raise RunUnreachableError(
                    f"the coordinator of run {self._run} did not answer {method} within {timeout_s:g} s; it may be "
                    f"restarting or its node overloaded: try again, or metta-ray stop {self._run} --force"
                ) from None
            except RayActorError as error:
                raise coordinator_gone(self._run, first_line(error)) from None
            except RayTaskError as error:
                cause = error.cause
                if isinstance(cause, MettaRayError):
                    raise cause from None
                raise RunUnreachableError(f"the coordinator of run {self._run} failed in {method}: {cause!r}") from None
            except AttributeError:
                raise RunUnreachableError(
                    f"the coordinator of run {self._run} knows no {method}: it runs another version of metta_ray"
                ) from None


def coordinator_gone(run: str, detail: str = "") -> RunUnreachableError:
    """The error for a run without a coordinator, with both ways on."""
    said = f" ({detail})" if detail else ""
    return RunUnreachableError(
        f"the coordinator of run {run} is gone{said}; to go on from its last checkpoint: metta-ray train --run {run}; "
        f"to remove what is left of it: metta-ray stop {run} --force"
    )


def first_line(error: BaseException) -> str:
    """The first line of a message that may go on for pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
