"""Curricula that have a name, written down as users write theirs (``config``). Names are paths in /env/mettagrid/."""

from __future__ import annotations

from typing import Any

from metta_ray.mettagrid.task_spec import SIZES, STYLES, TERRAINS

# By learning progress alone a task that scored 0 in its first episodes is never drawn again. Large mazes do,
# under a policy that knows nothing; so a quarter of the episodes is drawn from all buckets.
_SOME_UNIFORM = {"uniform_share": 0.25}
# For short runs: thousands of episodes, tens of outcomes per task.
_QUICK = {"ema_timescale": 0.1, **_SOME_UNIFORM}

ALTARS = {"range": (2, 18), "bins": 4}
"""[2, 6), [6, 10), [10, 14), [14, 18): 2 to 17 altars per room."""

_STATIONS = ("mine", "generator", "altar", "lasery", "armory")
# The window is too small to see the cue from the arms; -0.5 for the wrong one makes guessing pay.
_TMAZE = {"kind": "tmaze", "num_agents": 1, "max_steps": 60, "window": 5}


def _single(**task: Any) -> dict[str, Any]:
    return {"type": "single", "task": task}


def _sized(*sizes: str) -> list[str]:
    return [f"varied_terrain/{style}_{size}" for style in STYLES for size in sizes]


def _object_use(**task: Any) -> dict[str, Any]:
    """Each station for itself, and those that take something also with what leads to it."""
    common = {"kind": "object_use", "terrain": "varied_terrain/sparse_small", "max_steps": 100, **task}
    free = {f"{station}_free": _single(station=station, **common) for station in _STATIONS}
    fetched = {
        station: _single(station=station, needs_input=True, **common) for station in _STATIONS if station != "mine"
    }
    return free | fetched


_ARENA = {"kind": "arena", "num_agents": 24}

LIBRARY: dict[str, dict[str, Any]] = {
    # Single tasks.
    "navigation": _single(kind="navigation"),
    "arena": _single(**_ARENA),
    "arena/basic": _single(**_ARENA, combat=False, shaped=False),
    "arena/combat": _single(**_ARENA, shaped=False),
    "arena/shaped": _single(**_ARENA, combat=False),
    "memory/tmaze": _single(**_TMAZE),
    "navigation_sequence": _single(kind="sequence", terrain="varied_terrain/sparse_small"),
    "object_use": _single(kind="object_use", terrain="varied_terrain/sparse_small", max_steps=100),
    "smoke": _single(kind="smoke", num_agents=1, max_steps=32, window=5),
    "curriculum/simple": _single(kind="navigation"),
    # Navigation: hearts at altars.
    "curriculum/navigation/bucketed": {
        "type": "bucketed",
        "task": {"kind": "navigation"},
        "buckets": {"terrain": list(TERRAINS), "altars": ALTARS},
        "labels": {"altars": "altar"},
        "settings": _SOME_UNIFORM,
    },
    "curriculum/navigation/random": {
        "type": "sampled",
        "task": {"kind": "navigation"},
        "params": {"terrain": list(TERRAINS), "altars": {"range": (2, 18), "want_int": True}},
    },
    "curriculum/navigation/sparse": {
        "type": "sampled",
        "task": {"kind": "navigation", "terrain": "varied_terrain/sparse_large"},
        "params": {side: {"range": (60, 121), "want_int": True} for side in ("width", "height")}
        | {"altars": {"range": (1, 11), "want_int": True}},
    },
    "curriculum/navigation/sparse_bucketed": {
        "type": "bucketed",
        "task": {"kind": "navigation", "terrain": "varied_terrain/sparse_large"},
        "buckets": {
            "max_steps": {"range": (100, 2000), "bins": 5},
            "width": {"range": (60, 200), "bins": 4},
            "altars": {"range": (3, 20), "bins": 2},
        },
        "settings": _SOME_UNIFORM,
    },
    "curriculum/navigation/progressive": {
        "type": "progressive",
        "tasks": {
            size: {"type": "sampled", "task": {"kind": "navigation"}, "params": {"terrain": _sized(size)}}
            for size in SIZES
        },
        "settings": {"performance_threshold": 0.5},
    },
    "curriculum/navigation/growing": {"type": "growing_map", "task": {"kind": "navigation"}},
    "curriculum/navigation/trials": {
        "type": "sequential_trials",
        "task": {"kind": "navigation"},
        "trials": [{"terrain": _sized(size)} for size in SIZES],
        "settings": {"regression_threshold": 0.2, "episodes_per_trial": 16},
    },
    "curriculum/navigation/regressed": {
        "type": "prioritize_regressed",
        "tasks": {terrain.rpartition("/")[2]: _single(kind="navigation", terrain=terrain) for terrain in TERRAINS},
        "settings": _SOME_UNIFORM,
    },
    "curriculum/navigation/pool": {
        "type": "pool",
        "task": {"kind": "navigation"},
        "params": {"terrain": list(TERRAINS), "altars": {"range": (2, 18), "want_int": True}},
    },
    # Memory: a cue is out of sight when it matters.
    "curriculum/memory": {
        "type": "bucketed",
        "task": _TMAZE,
        "buckets": {"height": {"range": (6, 14), "bins": 4}, "width": [7, 11, 15]},
        "labels": {"height": "corridor", "width": "arms"},
        "settings": _QUICK,
    },
    # Ore to battery to heart, a chain for each agent.
    "curriculum/navigation_sequence": {
        "type": "bucketed",
        "task": {"kind": "sequence"},
        "buckets": {"terrain": _sized("small", "medium")},
        "settings": _QUICK,
    },
    # Each station for itself.
    "curriculum/object_use": {"type": "learning_progress", "tasks": _object_use(), "settings": _QUICK},
    # 24 agents in one economy.
    "curriculum/arena": {
        "type": "learning_progress",
        "tasks": {name: f"arena/{name}" for name in ("basic", "combat", "shaped")} | {"full": "arena"},
        "settings": _QUICK,
    },
    "curriculum/arena/random": {
        "type": "random",
        "tasks": {name: f"arena/{name}" for name in ("basic", "combat", "shaped")} | {"full": "arena"},
    },
    # Several agents in one place, with and against each other.
    "curriculum/multiagent": {
        "type": "random",
        "tasks": {
            f"altars_{size}": _single(
                kind="navigation", num_agents=8, shared_room=True, altars=24, terrain=f"varied_terrain/balanced_{size}"
            )
            for size in ("small", "medium")
        }
        | {
            "economy": _single(kind="arena", num_agents=8, combat=False),
            "combat": _single(kind="arena", num_agents=8),
        },
    },
    "curriculum/all": {
        "type": "random",
        "weights": {"arena": 5, "navigation": 3, "object_use": 2},
        "tasks": {
            "arena": "curriculum/arena",
            "navigation": {
                "type": "bucketed",
                "task": {"kind": "navigation", "num_agents": 24},
                "buckets": {"terrain": _sized("small", "medium"), "altars": ALTARS},
                "settings": _QUICK,
            },
            "object_use": {"type": "learning_progress", "tasks": _object_use(num_agents=24), "settings": _QUICK},
        },
    },
}

ALIASES = {"memory": "memory/tmaze", "tmaze": "memory/tmaze", "sequence": "navigation_sequence"}
