"""What a TaskSpec means: the engine's rules for it, a grid for each episode, and how well an episode went.

navigation  each altar holds one heart; a heart pays 1. A room for each agent, or one for all.
arena       mine → ore → generator → battery → altar → heart, cooldown 10; lasery and armory for combat.
            Hearts pay 1; ore 0.1, battery 0.8, laser 0.5, armor 0.5 pay up to 1 each. Without ``combat``
            neither lasery nor armory; without ``shaped`` only hearts pay.
sequence    the arena's chain without cooldown and combat, one of each in a room for each agent.
object_use  one station, in a room for each agent, whose product pays 1; cooldown 10. It takes nothing, or with
            ``needs_input`` what the stations before it in the chain make.
tmaze       the cue beside the start tells which of two like altars pays 1; the other pays
            ``wrong_altar_reward``. With -1 a touch is worth 0 on average until the cue is used, so agents
            first learn to stay away; -0.5 is the clean test of memory. Its leaks: after the choice the agent
            sees its own inventory, and the ``last_action`` token remembers one step. Judge by ``success``
            (the first altar touched), not by the return.
smoke       one altar without limit in a bare 5 x 5 room.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from metta_ray.mettagrid import terrain
from metta_ray.mettagrid.engine import (
    Blueprint,
    agent_config,
    choice,
    cue,
    game_config,
    reward_for,
    source,
)
from metta_ray.mettagrid.task_spec import INPUTS, MIXED_TERRAIN, PRODUCTS, SIZES, STYLES, TaskSpec
from metta_ray.mettagrid.task_spec import num_tokens as num_tokens  # where users of a task look for it
from metta_ray.mettagrid.terrain import CELLS, Cell, Grid

ARENA_SIDE = 25
ARENA_AGENTS_PER_QUARTER = 6
COOLDOWN = 10
TMAZE_HEIGHT, TMAZE_WIDTH = 8, 11
_ARENA_THINGS = {Cell.MINE: 10, Cell.GENERATOR: 5, Cell.ALTAR: 5}
_ARMS = {Cell.LASERY: 1, Cell.ARMORY: 1}

_HEARTS = {"heart": reward_for("heart")}
_SHAPED = _HEARTS | {
    item: reward_for(item, weight, most=1.0)
    for item, weight in {"ore_red": 0.1, "battery_red": 0.8, "laser": 0.5, "armor": 0.5}.items()
}


def blueprint(spec: TaskSpec) -> Blueprint:
    """The rules of the task. Tasks that differ only in their maps share one."""
    maps = ("terrain", "width", "height", "shared_room", "altars", "map_seed")
    return _blueprint(spec.model_copy(update={name: TaskSpec.model_fields[name].default for name in maps}))


@lru_cache(maxsize=64)
def _blueprint(spec: TaskSpec) -> Blueprint:
    fights = False
    rewards = _HEARTS
    cooling: tuple[str, ...] = ()
    if spec.kind == "navigation":
        objects = {"altar": source("altar", "heart", stock=1)}
    elif spec.kind == "smoke":
        objects = {"altar": source("altar", "heart")}
    elif spec.kind == "tmaze":
        right, wrong = "laser", "hp"  # tokens of the choice; the altars look alike until touched
        rewards = {"right": reward_for(right), "wrong": reward_for(wrong, spec.wrong_altar_reward)}
        objects = {
            "cue_left": cue("cue_left", vibe=1),
            "cue_right": cue("cue_right", vibe=2),
            "good_altar": choice("good_altar", right, (right, wrong), stat="first_choice.right"),
            "bad_altar": choice("bad_altar", wrong, (right, wrong), stat="first_choice.wrong"),
        }
    else:
        is_free = spec.kind == "object_use" and not spec.needs_input
        cooldown = 0 if spec.kind == "sequence" else COOLDOWN
        arms = ("armory", "lasery") if spec.kind == "arena" and spec.combat else ()
        objects = {
            name: source(name, PRODUCTS[name], take=None if is_free else INPUTS.get(name), cooldown=cooldown)
            for name in (*spec.chain, *arms)
        }
        cooling = tuple(objects) if cooldown else ()
        fights = bool(arms)
        if spec.kind == "arena" and spec.shaped:
            rewards = _SHAPED
        elif spec.kind == "object_use":
            rewards = {PRODUCTS[spec.station]: reward_for(PRODUCTS[spec.station])}
    return Blueprint(
        spec.kind,
        game_config(
            num_agents=spec.num_agents,
            max_steps=spec.max_steps,
            window=spec.window,
            num_tokens=num_tokens(spec),
            objects=dict(objects),
            agent=agent_config(rewards, fights=fights),
            cooling=cooling,
            line_of_sight=spec.line_of_sight,
        ),
    )


def build_grid(spec: TaskSpec, rng: np.random.Generator) -> Grid:
    """The map of an episode; of ``spec.map_seed`` instead of ``rng`` where it is set.

    Raises ConfigError where the rooms are too small for what they must hold.
    """
    if spec.map_seed is not None:
        rng = np.random.default_rng(spec.map_seed)
    if spec.kind == "arena":
        quarters = -(-spec.num_agents // ARENA_AGENTS_PER_QUARTER)
        agents = [
            min(ARENA_AGENTS_PER_QUARTER, spec.num_agents - i * ARENA_AGENTS_PER_QUARTER) for i in range(quarters)
        ]
        things = _ARENA_THINGS | (_ARMS if spec.combat else {})
        parts = [terrain.room(rng, "strewn", ARENA_SIDE, ARENA_SIDE, things, here) for here in agents]
        return terrain.tiled(parts, gap=0)
    if spec.kind == "tmaze":
        corridor, width = (spec.height or TMAZE_HEIGHT) - 2, spec.width or TMAZE_WIDTH
        return terrain.tiled([terrain.tmaze(rng, corridor, width) for _ in range(spec.num_agents)])
    if spec.kind == "smoke":
        return terrain.tiled([terrain.room(rng, "bare", 5, 5, {Cell.ALTAR: 1}) for _ in range(spec.num_agents)])
    if spec.kind == "navigation":
        return _rooms(spec, rng, {Cell.ALTAR: spec.altars})
    return _rooms(spec, rng, {Cell[station.upper()]: 1 for station in spec.chain})


def _rooms(spec: TaskSpec, rng: np.random.Generator, things: dict[Cell, int]) -> Grid:
    style, side = style_and_side(spec.terrain)
    height, width = spec.height or side, spec.width or side
    agents = [spec.num_agents] if spec.shared_room else [1] * spec.num_agents
    return terrain.tiled(
        [terrain.room(rng, style or STYLES[rng.integers(len(STYLES))], height, width, things, here) for here in agents]
    )


def style_and_side(name: str) -> tuple[str | None, int]:
    """(style of the rooms, or None where each has its own; side in cells) of a terrain."""
    if name == MIXED_TERRAIN:
        return None, SIZES["medium"]
    style, size = name.removeprefix("varied_terrain/").rsplit("_", 1)
    return style, SIZES[size]


def score(spec: TaskSpec, agent_stats: dict[str, float]) -> float:
    """How well an episode went, in [0, 1], from the agents' mean statistics.

    navigation: hearts gathered / hearts there were. smoke: hearts / steps. tmaze: share of agents whose first
    altar was the good one. object_use: products / as many as the cooldown allows. arena, sequence: hearts are
    unlimited, so h / (h + h0) with h0 one heart per 100 steps (the scripted policy makes about three in the arena).
    """
    hearts = agent_stats["heart.amount"]
    if spec.kind == "navigation":
        hearts_per_agent = spec.altars / (spec.num_agents if spec.shared_room else 1)
        return hearts / hearts_per_agent
    if spec.kind == "smoke":
        return hearts / spec.max_steps
    if spec.kind == "tmaze":
        return agent_stats["first_choice.right"]
    if spec.kind == "object_use":
        return min(agent_stats[f"{PRODUCTS[spec.station]}.gained"] / (spec.max_steps / COOLDOWN), 1.0)
    return hearts / (hearts + spec.max_steps / 100)


# Statistics that the engine reports only once they are touched; absent means 0.
_ALWAYS_REPORTED = (
    "action.failed",
    "action.move.failed",
    "action.move.success",
    "action.noop.success",
    "heart.amount",
    "heart.gained",
)
_REPORTED_BY_KIND: dict[str, tuple[str, ...]] = {
    "arena": (
        *(f"{item}.{what}" for item in ("ore_red", "battery_red", "laser", "armor") for what in ("gained", "lost")),
        "heart.lost",
        "attack.hit",
        "attack.hit_by",
        "attack.blocked",
    ),
    "sequence": tuple(f"{item}.{what}" for item in ("ore_red", "battery_red") for what in ("gained", "lost")),
    "object_use": tuple(f"{item}.{what}" for item in PRODUCTS.values() for what in ("gained", "lost")),
    "tmaze": ("first_choice.right", "first_choice.wrong", "laser.gained", "hp.gained"),
}


def mean_agent_stats(spec: TaskSpec, agents: list[dict[str, float]]) -> dict[str, float]:
    """The engine's statistics of each agent → their means over all agents, an absent one counting 0.

    tmaze adds ``success`` and ``touched``: shares of agents that touched the good altar first / any altar.
    """
    totals = dict.fromkeys(_ALWAYS_REPORTED + _REPORTED_BY_KIND.get(spec.kind, ()), 0.0)
    for stats in agents:
        for name, value in stats.items():
            totals[name] = totals.get(name, 0.0) + value
    means = {name: total / len(agents) for name, total in totals.items()}
    if spec.kind == "tmaze":
        means["success"] = means["first_choice.right"]
        means["touched"] = means["first_choice.right"] + means["first_choice.wrong"]
    return means


def game_stats(stats: dict[str, float]) -> dict[str, float]:
    """The engine's statistics of the game without the counts of agents by name, which are no measurements."""
    agent_cells = f"objects.{CELLS[Cell.AGENT].split('.')[0]}."
    return {name: value for name, value in stats.items() if not name.startswith(agent_cells)}
