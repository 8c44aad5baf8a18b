"""What a person sees of a running training: a live display on a terminal, else one plain line per epoch.

    with training_display(sys.stdout) as display:
        display.note("run nav-7: …")
        display.show(progress)

``progress`` has the keys of a run's status, all optional: ``epoch``, ``agent_step``, ``total_timesteps``,
``agent_steps_per_second``, ``efficiency``, ``reward``, ``workers`` {wanted, ready}, ``staleness`` {mean, max},
``bottleneck``, ``state``, ``waiting_for``; a ``text`` of its own goes before the line made of these. A line is printed
when it has something to say that the one before had not, so showing a state again costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import TextWrapper
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

BAR_WIDTH = 20
LIVE_BAR_WIDTH, MIN_BAR_WIDTH = 40, 5
Progress = Mapping[str, Any]


class Display(Protocol):
    """Where a training is shown."""

    def note(self, text: str) -> None:
        """A line that stays: what was restored, an evaluation's table, a failure's cause."""

    def show(self, progress: Progress) -> None:
        """The state of the training, as it is now."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def training_display(stream: TextIO) -> Display:
    """Live on a terminal; lines without colour codes anywhere else, so that logs stay readable."""
    return LiveDisplay(stream) if stream.isatty() else PlainDisplay(stream)


class PlainDisplay:
    """One line per epoch, and one where the state changed."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._epoch: int | None = None
        self._state = ""

    def note(self, text: str) -> None:
        # A log that nobody reads any more is no reason to end a training.
        try:
            print(text, file=self._stream, flush=True)
        except (BrokenPipeError, ValueError):
            return

    def show(self, progress: Progress) -> None:
        epoch, state = progress.get("epoch"), state_text(progress)
        if epoch is not None and epoch != self._epoch and epoch > 0:
            self._epoch = epoch
            self.note(progress.get("text") or progress_line(progress))
        if state and state != self._state:
            self._state = state
            self.note(state)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class LiveDisplay:
    """A few lines at the bottom of the terminal that are drawn anew; notes scroll by above them."""

    def __init__(self, stream: TextIO):
        # Loaded here: whoever is not on a terminal need not have it.
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=stream)
        self._live = Live(console=self._console, refresh_per_second=4, transient=False)

    def note(self, text: str) -> None:
        # Wrapped between words; a path that is longer than a line stays whole, to be copied.
        wrapper = TextWrapper(self._console.width, break_long_words=False, break_on_hyphens=False)
        text = "\n".join(part for line in text.splitlines() for part in wrapper.wrap(line) or [""])
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, progress: Progress) -> None:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        total = progress.get("total_timesteps") or 0
        bar, steps = Table.grid(padding=(0, 1)), _step_text(progress)
        width = max(MIN_BAR_WIDTH, min(LIVE_BAR_WIDTH, self._console.width - len(steps) - 2))
        bar.add_row(ProgressBar(total=total or 1, completed=progress.get("agent_step") or 0, width=width), Text(steps))
        lines = [
            _join(_speed_text(progress), _reward_text(progress), _worker_text(progress), _staleness_text(progress))
        ]
        lines += [text for text in (progress.get("bottleneck"), state_text(progress)) if text]
        self._live.update(Group(bar, *(Text(line) for line in lines)))

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()


def progress_line(progress: Progress) -> str:
    """``[##······]  10% epoch 1 · 2,048 agent steps · 12,377/s · reward 0.33 · workers 2/2 · staleness 0.8 · …``."""
    epoch = progress.get("epoch")
    return _join(
        f"{_bar(progress)} epoch {epoch}" if epoch is not None else _bar(progress),
        f"{progress['agent_step']:,} agent steps" if progress.get("agent_step") is not None else "",
        _speed_text(progress),
        _reward_text(progress),
        _worker_text(progress),
        _staleness_text(progress),
        progress.get("bottleneck") or "",
    )


def state_text(progress: Progress) -> str:
    """What is to be said of any state but running: ``waiting for 1 CPU``, ``paused``."""
    state = str(progress.get("state") or "")
    waiting_for = progress.get("waiting_for")
    if waiting_for:
        return f"waiting for {waiting_for}"
    return "" if state in ("", "running", "done") else state


def _bar(progress: Progress) -> str:
    share = _share(progress)
    filled = int(share * BAR_WIDTH)
    return f"[{'#' * filled}{'·' * (BAR_WIDTH - filled)}] {share:4.0%}"


def _share(progress: Progress) -> float:
    total = progress.get("total_timesteps") or 0
    return min((progress.get("agent_step") or 0) / total, 1.0) if total else 0.0


def _step_text(progress: Progress) -> str:
    steps, total = progress.get("agent_step") or 0, progress.get("total_timesteps") or 0
    return f"{_share(progress):.0%} · {steps:,} of {total:,} agent steps · epoch {progress.get('epoch') or 0}"


def _speed_text(progress: Progress) -> str:
    speed = progress.get("agent_steps_per_second")
    efficiency = progress.get("efficiency")
    of_floor = "" if efficiency is None else f" ({efficiency:.0%} of the floor)"
    return "" if speed is None else f"{speed:,.0f}/s{of_floor}"


def _reward_text(progress: Progress) -> str:
    reward = progress.get("reward")
    return "" if reward is None else f"reward {reward:.2f}"


def _worker_text(progress: Progress) -> str:
    workers = progress.get("workers") or {}
    return f"workers {workers.get('ready', 0)}/{workers['wanted']}" if "wanted" in workers else ""


def _staleness_text(progress: Progress) -> str:
    mean = (progress.get("staleness") or {}).get("mean")
    return "" if mean is None else f"staleness {mean:.1f}"


def _join(*parts: str) -> str:
    return " · ".join(part for part in parts if part)
