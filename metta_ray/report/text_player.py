"""A replay in a terminal: one screen of characters for each step.

``#`` is a wall, a digit or small letter an agent, a capital the first letter of what else is there.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from string import ascii_lowercase, ascii_uppercase, digits
from typing import TextIO

from metta_ray.report.replay_model import Replay, Thing

WALL, FLOOR = "#", "·"
AGENTS = digits + ascii_lowercase
HOME_AND_CLEAR = "\x1b[H\x1b[J"


def play_text(
    replay: Replay, stream: TextIO, *, agent: int = 0, every: int = 1, steps_per_second: float = 10.0
) -> None:
    """Writes all screens. On a terminal each replaces the one before, ``steps_per_second`` of them (0: at once), and
    shows the part of the map around ``agent`` that fits; in a pipe they follow each other, whole."""
    is_terminal = stream.isatty()
    area = _terminal_cells() if is_terminal else None
    for number, screen in enumerate(screens(replay, agent=agent, every=every, area=area)):
        if is_terminal:
            stream.write(HOME_AND_CLEAR)
        elif number:
            stream.write("\n")
        stream.write(screen)
        stream.flush()
        if is_terminal and steps_per_second > 0:
            time.sleep(1 / steps_per_second)


def screens(replay: Replay, *, agent: int = 0, every: int = 1, area: tuple[int, int] | None = None) -> Iterator[str]:
    """One screen for each ``every``-th step, and for the last. area: columns and rows of the map that fit."""
    letters = letters_of(replay)
    steps = [*range(0, replay.steps, every)]
    if steps[-1] != replay.steps - 1:
        steps.append(replay.steps - 1)
    for step in steps:
        yield _screen(replay, step, agent, letters, area)


def letters_of(replay: Replay) -> dict[str, str]:
    """Type → its character: the first capital of its name that no other has, else any capital left."""
    letters: dict[str, str] = {"wall": WALL}
    for name in sorted({thing.type_name for thing in replay.things if thing.agent is None} - {"wall"}):
        wanted = [*name.upper(), *ascii_uppercase]
        free = [letter for letter in wanted if letter in ascii_uppercase and letter not in letters.values()]
        letters[name] = free[0] if free else "?"
    return letters


def _screen(replay: Replay, step: int, agent: int, letters: dict[str, str], area: tuple[int, int] | None) -> str:
    rows = [[FLOOR] * replay.width for _ in range(replay.height)]
    for thing in sorted(replay.things, key=lambda thing: thing.agent is not None):  # agents on top
        cell = thing.location.at(step)
        if cell is None or not thing.alive.at(step):
            continue
        x, y = cell
        if 0 <= x < replay.width and 0 <= y < replay.height:
            rows[y][x] = _agent_letter(thing) if thing.agent else letters[thing.type_name]
    followed = replay.agents[agent]
    left, top, right, bottom = _part(replay, followed, step, area)
    lines = ["".join(row[left:right]) for row in rows[top:bottom]]
    legend = "  ".join(f"{letter} {name}" for name, letter in letters.items())
    return "\n".join([*_facts(replay, followed, step), *lines, f"{legend}  0-9a-z agents", ""])


def _facts(replay: Replay, thing: Thing, step: int) -> list[str]:
    agent = thing.agent
    assert agent is not None
    worked = "" if agent.succeeded.at(step) else " (failed)"
    value = agent.value.at(step) if agent.value else None
    items = ", ".join(f"{replay.item_name(item)} {amount}" for item, amount in thing.inventory.at(step)) or "nothing"
    return [
        f"step {step} of {replay.steps - 1} · agent {agent.agent_id}: "
        f"{replay.action_name(agent.action.at(step))}{worked} · reward {agent.reward.at(step):.4g} · "
        f"so far {agent.total_reward.at(step):.4g}" + ("" if value is None else f" · expected {value:.4g}"),
        f"holds {items}",
    ]


def _agent_letter(thing: Thing) -> str:
    assert thing.agent is not None
    return AGENTS[thing.agent.agent_id] if thing.agent.agent_id < len(AGENTS) else "@"


def _part(replay: Replay, thing: Thing, step: int, area: tuple[int, int] | None) -> tuple[int, int, int, int]:
    """left, top, right, bottom of what is shown."""
    if area is None:
        return 0, 0, replay.width, replay.height
    x, y = thing.location.at(step) or (0, 0)
    left = max(0, min(x - area[0] // 2, replay.width - area[0]))
    top = max(0, min(y - area[1] // 2, replay.height - area[1]))
    return left, top, min(replay.width, left + area[0]), min(replay.height, top + area[1])


def _terminal_cells() -> tuple[int, int]:
    """Columns and rows left for the map, below two lines of facts and above the legend."""
    size = shutil.get_terminal_size()
    return size.columns, max(3, size.lines - 4)
