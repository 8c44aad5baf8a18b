"""A run in an object store, as its coordinator sees it: uploads that fail are told, tried again, and stop nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metta_ray.common.util.mirror import Mirror
from metta_ray.service.announcer import Announcer


class Uploads:
    """remote: URL of the run; None: there is nothing to do, and ``facts`` are empty."""

    def __init__(self, run_dir: str, remote: str | None, announcer: Announcer) -> None:
        self._run_dir = run_dir
        self._announcer = announcer
        self._is_failing = False
        self._mirror = Mirror(Path(run_dir), remote).start() if remote is not None else None

    def facts(self) -> dict[str, Any]:
        return self._mirror.facts() if self._mirror is not None else {}

    def look_after(self) -> None:
        """Tells when uploading begins to fail, and when it works again."""
        facts = self.facts()
        is_failing = bool(facts.get("error"))
        if is_failing and not self._is_failing:
            self._announcer.event(
                "upload_failed",
                f"{facts['place']} does not take what is new: {facts['error']}; training goes on, all of it stays in "
                f"{self._run_dir} and is tried again",
            )
        elif self._is_failing and not is_failing:
            self._announcer.event("uploaded", f"{facts['place']} takes what is new again")
        self._is_failing = is_failing

    def finish(self, deadline_s: float) -> None:
        """At a run's end: the rest goes, or a person is told that it did not."""
        if self._mirror is None:
            return
        is_complete = self._mirror.stop(deadline_s)
        facts = self._mirror.facts()
        if is_complete:
            self._announcer.note(f"uploaded: {facts['place']}")
        else:
            self._announcer.event(
                "upload_failed",
                f"not all of the run is in {facts['place']} ({facts['error'] or 'out of time'}); it is whole in "
                f"{self._run_dir}, and the next start of the run uploads it",
            )
