"""Watches a run until it ends, as ``train`` and ``attach`` do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from metta_ray.control.run_state import RunState
from metta_ray.metrics.console import Display
from metta_ray.service.run_handle import RunHandle

BAD_INPUT = 2
EXIT_CODES = {RunState.DONE: 0, RunState.FAILED: 3, RunState.STOPPED: 130}


RECENT = 10


def follow(
    handle: RunHandle, display: Display, *, recent: int = RECENT, beat: Callable[[], None] = lambda: None
) -> int:
    """Shows progress until the run has ended, and returns the exit code that says how.

    recent: of what was said before, so many lines.
    beat: called between two answers, at least every few seconds; what it raises ends the watching.
    """
    seen = -1
    while True:
        answer = handle.progress(seen)
        for line in answer["lines"][-recent:] if seen < 0 else answer["lines"]:
            seen = max(seen, line["number"])
            show(line, display)
        state = RunState(answer["state"])
        if state.is_final:
            return exit_code(state, answer.get("result"))
        beat()


def exit_code(state: RunState, result: Mapping[str, Any] | None) -> int:
    """Of a run that has ended. Says the first cause of a failure where errors go."""
    if state is not RunState.FAILED:
        return EXIT_CODES[state]
    cause = result or {}
    print(f"error: {cause.get('text') or 'the run failed'}", file=sys.stderr, flush=True)
    return BAD_INPUT if cause.get("bad_input") else EXIT_CODES[state]


def show(line: dict[str, object], display: Display) -> None:
    """Lines of an epoch are progress; all others are notes that stay."""
    if line.get("epoch") is not None and line.get("agent_step") is not None:
        display.show(line)
    elif line.get("text"):
        display.note(str(line["text"]))
