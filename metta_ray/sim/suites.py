"""Named suites: fixed, seeded maps, the same for every policy, and none that training draws.

Each simulation has a scripted reference policy (shortest path, or the production chain) and chance to compare with.
Names and purposes follow the 2025 suites; maps are generated, since those of 2025 were never published.

navigation           hearts at altars in 5 styles x 3 sizes of rooms, a room for each agent
memory               T-mazes whose cue is out of sight when it matters: corridors near, medium and far
navigation_sequence  ore to battery to heart in rooms of 5 styles x 2 sizes
arena                24 agents in one economy: basic, combat, shaped (what leads to hearts pays), full
object_use           each station for itself, free, and with what it takes to be fetched first
smoke                one altar in a bare room
all                  all of these but smoke
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metta_ray.common.errors import ConfigError
from metta_ray.common.util.typed_config import nearest_and_all
from metta_ray.mettagrid.task_spec import INPUTS, PRODUCTS, SIZES, STYLES
from metta_ray.sim.simulation_config import SimulationSuiteConfig, SingleEnvSimulationConfig

WINDOW = 11
# Map seeds of the held-out set begin with 777, those of generated training tasks with 905.
MAP_ENTROPY = 778
TIME_LIMIT_S = 600.0

_STEPS = {"small": 250, "medium": 500, "large": 1000}
Simulations = dict[str, SingleEnvSimulationConfig]


def known_suites() -> tuple[str, ...]:
    return (*_MEMBERS, "all")


def named_suite(name: str, *, window: int = WINDOW, episodes: int | None = None) -> SimulationSuiteConfig:
    """window: side of the observed square, which must be that of the policies. episodes: of each simulation; None: as
    many as the suite's cost suggests. ConfigError for an unknown suite."""
    if name not in known_suites():
        raise ConfigError(f"suite {name!r} is unknown{nearest_and_all(name, known_suites())}")
    members = [member for member in _MEMBERS if member != "smoke"] if name == "all" else [name]
    simulations = {title: one for member in members for title, one in _MEMBERS[member](window).items()}
    if episodes is not None:
        simulations = {title: one.model_copy(update={"num_episodes": episodes}) for title, one in simulations.items()}
    return SimulationSuiteConfig(name=name, max_time_s=TIME_LIMIT_S, simulations=simulations)


def _simulation(index: int, mission: str, episodes: int, **task: Any) -> SingleEnvSimulationConfig:
    """index: sets its maps apart from those of other simulations; never change one."""
    return SingleEnvSimulationConfig(
        env=f"mettagrid:{mission}",
        num_episodes=episodes,
        max_time_s=TIME_LIMIT_S,
        env_overrides=task,
        fixed_maps=[MAP_ENTROPY, index],
    )


def _navigation(window: int) -> Simulations:
    places = [(style, size) for size in SIZES for style in STYLES]
    return {
        f"navigation/{style}_{size}": _simulation(
            index, "navigation", 8, window=window, terrain=f"varied_terrain/{style}_{size}", max_steps=_STEPS[size]
        )
        for index, (style, size) in enumerate(places)
    }


def _memory(window: int) -> Simulations:
    # The cue stands beside the start. Beyond `radius` cells of corridor it is out of sight at the crossing.
    radius = window // 2
    lengths = {"near": radius + 1, "medium": radius + 4, "far": radius + 9}
    return {
        f"memory/{name}": _simulation(
            100 + index, "tmaze", 32, window=window, num_agents=4, height=length + 2, max_steps=60
        )
        for index, (name, length) in enumerate(lengths.items())
    }


def _navigation_sequence(window: int) -> Simulations:
    places = [(style, size) for size in ("small", "medium") for style in STYLES]
    return {
        f"navigation_sequence/{style}_{size}": _simulation(
            200 + index, "sequence", 8, window=window, terrain=f"varied_terrain/{style}_{size}", max_steps=_STEPS[size]
        )
        for index, (style, size) in enumerate(places)
    }


def _arena(window: int) -> Simulations:
    # Short: what 24 agents make of an economy shows within 100 env steps.
    rules = {
        "basic": {"combat": False, "shaped": False},
        "combat": {"shaped": False},
        "shaped": {"combat": False},
        "full": {},
    }
    return {
        f"arena/{name}": _simulation(300 + index, "arena", 4, window=window, num_agents=24, max_steps=100, **rule)
        for index, (name, rule) in enumerate(rules.items())
    }


def _object_use(window: int) -> Simulations:
    uses = [(station, False) for station in PRODUCTS] + [(station, True) for station in INPUTS]
    return {
        f"object_use/{station}{'' if needs_input else '_free'}": _simulation(
            400 + index,
            "object_use",
            8,
            window=window,
            station=station,
            needs_input=needs_input,
            terrain="varied_terrain/sparse_small",
            max_steps=200,
        )
        for index, (station, needs_input) in enumerate(uses)
    }


def _smoke(window: int) -> Simulations:
    return {"smoke/altar": _simulation(500, "smoke", 32, window=window, num_agents=1, max_steps=32)}


_MEMBERS: dict[str, Callable[[int], Simulations]] = {
    "navigation": _navigation,
    "memory": _memory,
    "navigation_sequence": _navigation_sequence,
    "arena": _arena,
    "object_use": _object_use,
    "smoke": _smoke,
}
