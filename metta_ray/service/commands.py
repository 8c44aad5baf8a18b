"""What a person may ask of a run while it goes on, all but to stop it."""

from __future__ import annotations

from concurrent.futures import Future as Answer
from typing import Any

from metta_ray.common.errors import ConfigError
from metta_ray.common.util.typed_config import apply_overrides
from metta_ray.control.run_state import RunState
from metta_ray.service.curriculum_rows import task_table
from metta_ray.service.evaluations import Wish
from metta_ray.service.wiring import Parts

LIVE_SECTIONS = ("optimizer", "ppo", "vtrace", "prioritized_experience_replay", "total_timesteps")

Reply = dict[str, Any]


class Commands:
    """Each command may be given twice with the effect of once: an answer may be lost on the way."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def follow(self, command: str, args: tuple[Any, ...], answer: Answer[Reply], *, has_begun: bool) -> Reply | None:
        """What came of it; None where ``answer`` will be told later. ConfigError for what cannot be asked."""
        match command, args:
            case "scale", (text,):
                return self._scale(text, has_begun)
            case "pause", ():
                return self._pause()
            case "unpause", ():
                return self._unpause()
            case "checkpoint", ():
                return self._checkpoint(answer, has_begun)
            case "evaluate", (suite, epoch, episodes, seed):
                return self._evaluate(Wish(self._version, "user", suite, episodes, seed), epoch, answer, has_begun)
            case "evaluation", (number,):
                return self._evaluation(number)
            case "curriculum", ():
                return self._curriculum()
            case "set", (name, value):
                return self._set(name, value)
        raise ConfigError(f"unknown command {command!r} with {len(args)} values")

    def _scale(self, text: str, has_begun: bool) -> Reply:
        parts = self._parts
        warning = parts.count.ask(text)
        parts.books.record({"kind": "workers", "text": text}, sync=True)
        if has_begun:
            parts.pool.wanted = parts.count.wanted
        parts.announcer.event("scale", f"scaled to {text}{'; ' + warning if warning else ''}")
        return {"ok": True, "message": warning or f"{parts.count.wanted} worker(s) wanted"}

    def _pause(self) -> Reply:
        self._parts.pipeline.paused = True
        self._parts.announcer.enter(RunState.PAUSED, "what is under way is finished, nothing is ordered")
        return {"ok": True, "message": "paused: what is under way is finished, nothing is ordered"}

    def _unpause(self) -> Reply:
        self._parts.pipeline.paused = False
        self._parts.pipeline.restart_clock()
        self._parts.announcer.enter(RunState.RUNNING, "goes on")
        return {"ok": True, "message": "the run goes on"}

    def _checkpoint(self, answer: Answer[Reply], has_begun: bool) -> Reply | None:
        checkpointer = self._parts.checkpointer
        if not has_begun:
            return {"ok": False, "message": "nothing to save yet: the learners are starting"}
        if checkpointer.newest is not None and checkpointer.holds(self._parts.books.ledger.version):
            return {"ok": True, "message": f"{checkpointer.newest.path} holds this very state already"}
        checkpointer.want(answer)
        return None

    @property
    def _version(self) -> int:
        return self._parts.books.ledger.version

    def _evaluate(self, wish: Wish, epoch: int | None, answer: Answer[Reply], has_begun: bool) -> Reply | None:
        if not has_begun:
            return {"ok": False, "message": "there is no policy yet: the learners are starting"}
        return self._parts.evaluations.ask_by_command(wish, epoch, answer)

    def _evaluation(self, number: int) -> Reply:
        one = self._parts.books.evaluations.get(number)
        if one is None:
            return {"ok": False, "message": f"there is no evaluation {number}, or it was forgotten"}
        return {"ok": True, **one.summary(), "text": one.result.get("text", "")}

    def _curriculum(self) -> Reply:
        ledger = self._parts.books.ledger
        return {**task_table(self._parts.books.curriculum), "epoch": ledger.version, "agent_step": ledger.agent_step}

    def _set(self, name: str, value: Any) -> Reply:
        parts, name = self._parts, name.replace("-", "_")
        section = name.removeprefix("trainer.").split(".")[0]
        if not name.startswith("trainer.") or section not in LIVE_SECTIONS:
            allowed = ", ".join(f"trainer.{section}" for section in LIVE_SECTIONS)
            raise ConfigError(f"{name} cannot be changed while the run goes on; what can is below {allowed}")
        found: Any = apply_overrides(parts.config, {**parts.books.settings, name: value})
        for part in name.split("."):
            found = getattr(found, part)
        if found is not None and not isinstance(found, bool | int | float | str):
            raise ConfigError(f"{name} is a section; name one setting in it")
        parts.books.record({"kind": "setting", "name": name, "value": found}, sync=True)
        if name == "trainer.total_timesteps":
            parts.pipeline.total_timesteps = int(found or 0)
        parts.announcer.event("setting", f"{name} = {found} from update {parts.books.ledger.version + 1} on")
        return {"ok": True, "message": f"{name} = {found}, from the next update on"}
