"""How well a policy navigates maps that training never draws.

    python -m metta_ray.sim.held_out POLICY_URI [--reference] [--variants] [--json]

Every one of the 256 held-out maps is played once, 999 env steps, 64 environments at a time. The measure is hearts
per agent; its share is of the altars there are, all of which the scripted shortest-path policy takes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from metta_ray.agent.policy_store import PolicyStore
from metta_ray.common.errors import MettaRayError
from metta_ray.envs.registry import MettaGridFactory
from metta_ray.mettagrid.held_out import ALTAR_BINS, fixed_table, held_out_tasks
from metta_ray.mettagrid.task_spec import MIXED_TERRAIN, SIZES, STYLES, TaskSpec
from metta_ray.sim.players import Player, PolicyPlayer, RandomPlayer, ScriptedPlayer
from metta_ray.sim.results import REWARD, Estimate, PlayedEpisode, SimulationResult
from metta_ray.sim.simulation import Simulation
from metta_ray.sim.simulation_config import SingleEnvSimulationConfig
from metta_ray.sim.statistics import Interval, bootstrap, mean

NAME = "navigation/held_out"
MAX_STEPS = 999
NUM_ENVS = 64
MIXED = "mixed"
_BINS = tuple(f"{fewest}-{most} altars" for fewest, most in ALTAR_BINS)
GROUPS = ("all", *STYLES, MIXED, *reversed(SIZES), *_BINS)


@dataclass(frozen=True)
class HeldOutResult:
    """What one player got. hearts: per agent, by group of maps; errors and intervals are over maps.
    share: hearts / altars, by group. seconds: wall time."""

    player: str
    hearts: dict[str, Estimate]
    intervals: dict[str, Interval]
    share: dict[str, float]
    seconds: float

    @classmethod
    def of(cls, player: str, result: SimulationResult) -> HeldOutResult:
        hearts: dict[str, Estimate] = {}
        intervals: dict[str, Interval] = {}
        share: dict[str, float] = {}
        for group in GROUPS:
            episodes = [episode for episode in result.episodes if group in _groups_of(episode)]
            if episodes:
                gathered = [_hearts(episode) for episode in episodes]
                hearts[group] = Estimate.of(gathered)
                intervals[group] = bootstrap([np.array(gathered)[:, None]], mean())
                share[group] = sum(gathered) / sum(_altars(episode) for episode in episodes)
        return cls(player, hearts, intervals, share, result.elapsed_s)

    def to_json(self) -> dict[str, Any]:
        return {
            "player": self.player,
            "hearts": {group: estimate.mean for group, estimate in self.hearts.items()},
            "standard_error": {group: estimate.standard_error for group, estimate in self.hearts.items()},
            "interval": {group: interval.to_json() for group, interval in self.intervals.items()},
            "share": self.share,
            "seconds": self.seconds,
        }


def play_held_out(
    player: Player, name: str, *, seed: int = 0, num_envs: int = NUM_ENVS, tasks: list[TaskSpec] | None = None
) -> HeldOutResult:
    """Plays the held-out maps (or other navigation ``tasks``) with ``player``, called ``name`` in the result."""
    return HeldOutResult.of(name, play_maps(player, seed=seed, num_envs=num_envs, tasks=tasks))


def play_maps(
    player: Player,
    *,
    seed: int = 0,
    num_envs: int = NUM_ENVS,
    tasks: list[TaskSpec] | None = None,
    max_steps: int = MAX_STEPS,
) -> SimulationResult:
    """One episode of ``max_steps`` env steps on each map; each has a task id of its own."""
    maps = [task.model_copy(update={"max_steps": max_steps}) for task in tasks or held_out_tasks()]
    num_envs = min(num_envs, len(maps))
    config = SingleEnvSimulationConfig(env="mettagrid:navigation", num_episodes=len(maps), max_time_s=86_400.0)
    factory = MettaGridFactory("mettagrid:navigation", table=fixed_table(maps, num_envs), stagger=False)
    return Simulation(NAME, config, seed=seed, max_envs=num_envs, factory=factory).run(player)


def table(results: list[HeldOutResult]) -> str:
    """Hearts per agent and, in brackets, their share of all; a line per group of maps, a column per player."""
    groups = [group for group in GROUPS if group in results[0].hearts]
    rows = [["hearts per agent", *(result.player for result in results)]]
    for group in groups:
        cells = [f"{result.hearts[group].mean:.2f} ({result.share[group]:.0%})" for result in results]
        rows.append([group, *cells])
    ends = [result.intervals["all"] for result in results]
    rows.append(["95 % interval of all", *(f"[{one.low:.2f}, {one.high:.2f}]" for one in ends)])
    rows.append(["seconds", *(f"{result.seconds:.0f}" for result in results)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m metta_ray.sim.held_out", description=__doc__.split("\n")[0])
    parser.add_argument("policy_uri", help="policy or run directory, e.g. train_dir/my_run")
    parser.add_argument("--selector", default="latest", help="which policy of several: latest, top, rand")
    parser.add_argument("--reference", action="store_true", help="play also the random and the scripted policy")
    parser.add_argument("--variants", action="store_true", help="play also greedily, and with the memory emptied")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0, help="of drawn actions and of the engine")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        players = _players(options)
        results = [_played(name, make, options.seed) for name, make in players.items()]
    except MettaRayError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps([result.to_json() for result in results]) if options.json else table(results))
    return 0


def _players(options: argparse.Namespace) -> dict[str, Callable[[], Player]]:
    record = PolicyStore(options.device).policy_record(options.policy_uri, options.selector)
    players: dict[str, Callable[[], Player]] = {record.run_name: lambda: PolicyPlayer(record)}
    if options.variants:
        players["greedy"] = lambda: PolicyPlayer(record, greedy=True)
        players["no memory"] = lambda: PolicyPlayer(record, has_memory=False)
    if options.reference:
        players |= {"random": RandomPlayer, "scripted": ScriptedPlayer}
    return players


def _played(name: str, make: Callable[[], Player], seed: int) -> HeldOutResult:
    result = play_held_out(make(), name, seed=seed)
    print(f"{name}: {result.seconds:.0f} s", file=sys.stderr)
    return result


def _groups_of(episode: PlayedEpisode) -> tuple[str, ...]:
    terrain = episode.attributes["config.terrain"]
    altars = int(_altars(episode))
    altar_bin = [name for name, (fewest, most) in zip(_BINS, ALTAR_BINS, strict=True) if fewest <= altars <= most]
    if terrain == MIXED_TERRAIN:
        return ("all", MIXED, *altar_bin)
    return ("all", *terrain.rpartition("/")[2].rsplit("_", 1), *altar_bin)


def _hearts(episode: PlayedEpisode) -> float:
    return float(np.mean([metrics[REWARD] for metrics in episode.agent_metrics]))


def _altars(episode: PlayedEpisode) -> float:
    return float(episode.attributes["config.altars"])


if __name__ == "__main__":
    sys.exit(main())
