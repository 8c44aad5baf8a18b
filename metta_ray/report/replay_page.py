"""The page of one replay: the player's program with the replay's data in it."""

from __future__ import annotations

from typing import Any

from metta_ray.report.page import build_page
from metta_ray.report.replay_model import AgentSeries, Replay, Series, Thing

Change = list[list[Any]]


def replay_page(replay: Replay, title: str, facts: dict[str, Any] | None = None) -> str:
    """HTML. facts: shown beside the title, before those of the replay itself."""
    return build_page(
        title,
        replay_data(replay, title, facts or {}),
        body="replay.html",
        scripts=("uplot.min.js", "common.js", "replay.js"),
        styles=("uplot.min.css", "page.css"),
    )


def replay_data(replay: Replay, title: str, facts: dict[str, Any]) -> dict[str, Any]:
    """What the page's program reads. Things that never change are one list of cells for each type."""
    types = sorted({thing.type_name for thing in replay.things})
    number = {name: index for index, name in enumerate(types)}
    still: dict[int, list[int]] = {}
    moving: list[dict[str, Any]] = []
    for thing in replay.things:
        if _is_still(thing):
            still.setdefault(number[thing.type_name], []).extend(thing.location.at(0))
        else:
            moving.append(_thing_data(thing, number[thing.type_name]))
    return {
        "title": title,
        "facts": [[name, str(value)] for name, value in {**facts, **replay.facts}.items()],
        "version": replay.version,
        "steps": replay.steps,
        "size": [replay.width, replay.height],
        "actions": list(replay.action_names),
        "items": list(replay.item_names),
        "types": types,
        "still": [[kind, cells] for kind, cells in sorted(still.items())],
        "things": moving,
    }


def _is_still(thing: Thing) -> bool:
    changing = (thing.location, thing.alive, thing.inventory)
    return thing.agent is None and all(series.is_constant for series in changing) and not thing.inventory.at(0)


def _thing_data(thing: Thing, kind: int) -> dict[str, Any]:
    cells = thing.location
    data: dict[str, Any] = {
        "type": kind,
        "at": [list(cells.steps), [cell[0] for cell in cells.values], [cell[1] for cell in cells.values]],
        "items": _changes(thing.inventory),
    }
    if not (thing.alive.is_constant and thing.alive.at(0)):
        data["alive"] = _changes(thing.alive)
    return data | (_agent_data(thing.agent) if thing.agent else {})


def _agent_data(agent: AgentSeries) -> dict[str, Any]:
    data = {
        "agent": agent.agent_id,
        "group": agent.group,
        "window": agent.window,
        "action": _changes(agent.action),
        "ok": _changes(agent.succeeded),
        "reward": _changes(agent.reward),
        "total": _changes(agent.total_reward),
    }
    return data | ({"value": _changes(agent.value)} if agent.value else {})


def _changes(series: Series) -> Change:
    return [list(series.steps), list(series.values)]
