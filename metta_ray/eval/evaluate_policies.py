"""Several policies, one suite, the same episodes for each: a table of scores with intervals, and of differences."""

from __future__ import annotations

import contextlib
import math
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metta_ray.agent.policy_record import PolicyRecord
from metta_ray.agent.policy_store import PolicyStore
from metta_ray.common.errors import ConfigError, PolicyMismatchError
from metta_ray.eval import score_tables
from metta_ray.eval.eval_stats_db import EvalStatsDB, run_of
from metta_ray.eval.score_tables import Played, Row, references_among
from metta_ray.sim.comparing import RANDOM, SCRIPTED
from metta_ray.sim.players import REFERENCE_PLAYERS, Player, PolicyPlayer, named_player
from metta_ray.sim.results import PolicyKey
from metta_ray.sim.simulation import MAX_ENVS
from metta_ray.sim.simulation_config import SimulationSuiteConfig
from metta_ray.sim.simulation_suite import SimulationSuite
from metta_ray.sim.suites import WINDOW, named_suite

PIN_SECONDS = 3600.0


@dataclass(frozen=True)
class EvaluationTable:
    """labels: of the players, short, in the order in which they were asked for; references come last.

    scores: rows of ``score_tables.score_rows`` with the player's ``label`` and its ``seconds``. differences: rows of
    ``score_tables.difference_rows``, of the first policy less each other one, with their labels.
    """

    suite: str
    measure: str
    labels: tuple[str, ...]
    scores: tuple[Row, ...]
    differences: tuple[Row, ...]

    def score(self, label: str, simulation: str | None = None) -> Row:
        """The row of a player in a simulation, or in the whole suite."""
        return next(row for row in self.scores if (row["label"], row["simulation"]) == (label, simulation))

    def to_json(self) -> dict[str, Any]:
        return {
            "suite": self.suite,
            "measure": self.measure,
            "players": list(self.labels),
            "scores": list(self.scores),
            "differences": list(self.differences),
        }

    def text(self) -> str:
        """For a terminal: a line per simulation, a column per player, then the differences."""
        meaning = "0 = chance, 1 = scripted" if self.measure == "share" else "return per agent"
        rows = [["simulation", "episodes", *self.labels]]
        simulations = dict.fromkeys(row["simulation"] for row in self.scores)
        for simulation in [*filter(None, simulations), None]:
            cells = [self.score(label, simulation) for label in self.labels]
            name = "all, each with the same weight" if simulation is None else simulation
            rows.append([name, _episodes(cells), *(self._cell(row) for row in cells)])
        rows.append(["seconds", "", *(f"{self.score(label)['seconds']:.0f}" for label in self.labels)])
        lines = [f"suite {self.suite}, score ({meaning}) with its 95 % interval", *_aligned(rows)]
        for row in self.differences:
            if row["simulation"] is None:
                lines.append(f"{row['one_label']} less {row['other_label']}: {_interval(row, 'difference')}")
        if any(row["incomplete"] for row in self.scores):
            lines.append("incomplete: the time limit cut episodes off; scores are over those that all players finished")
        return "\n".join(lines)

    def _cell(self, row: Row) -> str:
        if self.measure == "share" and row["policy"] in REFERENCE_PLAYERS:
            # Its score is 0 or 1 by definition; what it got says more.
            return (
                "" if row["simulation"] is None else f"{row['mean_return']:.2f} per agent" if row["episodes"] else "-"
            )
        return _interval(row, "score", "")


def evaluate_policies(
    policies: Sequence[str | PolicyRecord | Player],
    suite: str | SimulationSuiteConfig = "navigation",
    *,
    against: Sequence[str] | None = None,
    episodes: int | None = None,
    seed: int = 0,
    time_limit_s: float | None = None,
    npc: str | None = None,
    policy_agents_pct: float = 0.5,
    stats_db: EvalStatsDB | None = None,
    replay_dir: str | Path | None = None,
    policy_store: PolicyStore | None = None,
    selector: str = "latest",
    max_envs: int = MAX_ENVS,
    on_played: Callable[[str, float], None] | None = None,
) -> EvaluationTable:
    """Plays a suite with each policy and with those it is compared ``against``, on the same maps, seeds and places.

    policies: URIs (of a policy, or of a directory or run, in which ``selector`` chooses), records, players, ``random``,
        ``scripted``. against: more of these by name; None: random, and scripted where there is one.
    suite: a name of ``sim.suites`` (built for the policies' window), or a configuration.
    episodes: of each simulation; None: as the suite has it. seed: of engine and drawn actions.
    time_limit_s: wall seconds for each player; episodes that do not end by then are left out, and rows say so.
    npc: who drives the other agents when the player drives only ``policy_agents_pct`` of them: a URI or a name.
    stats_db: gets every simulation as soon as it is played. on_played: told each label and its seconds.

    What a stored policy scores is also remembered with it, as metrics ``SUITE/score``, ``SUITE/score_low`` and
    ``SUITE/NAME`` for selectors and filters of ``PolicyStore``. Policies are pinned while they play.

    ConfigError for an unknown suite (with the known ones), PolicyMismatchError for a policy that does not fit, before
    anything is played.
    """
    store = policy_store or PolicyStore()
    players = [_player(policy, store, selector) for policy in policies]
    if not players:
        raise ConfigError("there is no policy to evaluate; name at least one")
    config = _configured(suite, players, episodes, npc, policy_agents_pct)
    ready = SimulationSuite(config, seed=seed, replay_dir=replay_dir, policy_store=store, max_envs=max_envs)
    players += _opponents(against, players, ready, store, selector)
    for player in players:
        for simulation in ready.simulations:
            player.check_fits(simulation.spec)

    labels, played, seconds = _labels([player.key for player in players]), [], []
    for label, player in zip(labels, players, strict=True):
        with _pinned(store, player):
            result = ready.run(player, stats_db, time_limit_s=math.inf if time_limit_s is None else time_limit_s)
        seconds.append(sum(simulation.elapsed_s for simulation in result.simulations))
        played.append(Played.of(result, player.key, run_of(player.key.uri)))
        if on_played is not None:
            on_played(label, seconds[-1])
    table = _table(config.name, labels, played, seconds)
    _remember(table, players, labels, store, stats_db)
    return table


def _player(policy: str | PolicyRecord | Player, store: PolicyStore, selector: str) -> Player:
    if isinstance(policy, str):
        return named_player(policy, store, selector)
    return PolicyPlayer(policy) if isinstance(policy, PolicyRecord) else policy


def _configured(
    suite: str | SimulationSuiteConfig,
    players: Sequence[Player],
    episodes: int | None,
    npc: str | None,
    policy_agents_pct: float,
) -> SimulationSuiteConfig:
    if isinstance(suite, str):
        suite = named_suite(suite, window=_window(suite, players), episodes=episodes)
    elif episodes is not None:
        suite = _changed(suite, {"num_episodes": episodes})
    if npc is not None:
        suite = _changed(suite, {"npc_policy_uri": npc, "policy_agents_pct": policy_agents_pct})
    return suite


def _changed(suite: SimulationSuiteConfig, changes: dict[str, Any]) -> SimulationSuiteConfig:
    simulations = {name: one.model_copy(update=changes) for name, one in suite.simulations.items()}
    return suite.model_copy(update={"simulations": simulations})


def _window(suite: str, players: Sequence[Player]) -> int:
    """The side of the square that all policies were built for."""
    windows: dict[int, str] = {}
    for player in players:
        if not isinstance(player, PolicyPlayer):
            continue
        vocabulary = player.spec.vocabulary
        if vocabulary is None:
            raise PolicyMismatchError(
                f"{player.key.uri} was built for {player.spec.name} with observations {player.spec.obs_shape}, "
                f"but suite {suite} has MettaGrid's tokens; give a suite configuration of its own environment"
            )
        windows[vocabulary.width] = player.key.uri
    if len(windows) > 1:
        kinds = ", ".join(f"{side}x{side} cells ({uri})" for side, uri in windows.items())
        raise PolicyMismatchError(
            f"policies with windows of {kinds} cannot meet the same episodes; evaluate them apart"
        )
    return next(iter(windows), WINDOW)


def _opponents(
    against: Sequence[str] | None, players: Sequence[Player], suite: SimulationSuite, store: PolicyStore, selector: str
) -> list[Player]:
    has_script = all(simulation.spec.vocabulary is not None for simulation in suite.simulations)
    names = against if against is not None else [RANDOM, SCRIPTED] if has_script else [RANDOM]
    there = {player.key.uri for player in players}
    return [named_player(name, store, selector) for name in names if name not in there]


def _labels(keys: Sequence[PolicyKey]) -> tuple[str, ...]:
    """``model_0012`` where that tells them apart, else ``run/model_0012``, else the whole URI."""
    for shortened in (_last_part, lambda uri: f"{run_of(uri)}/{_last_part(uri)}" if "/" in uri else uri, str):
        labels = tuple(shortened(key.uri) for key in keys)
        if len(set(labels)) == len(labels):
            return labels
    return tuple(f"{key.uri} ({number})" for number, key in enumerate(keys))


def _last_part(uri: str) -> str:
    return uri.rstrip("/").rpartition("/")[2]


@contextlib.contextmanager
def _pinned(store: PolicyStore, player: Player) -> Iterator[None]:
    """Training, which may go on, does not delete the policy meanwhile."""
    if not _is_stored(player):
        yield
        return
    holder = store.pin(player.key.uri, holder=f"evaluation-{uuid.uuid4().hex[:8]}", seconds=PIN_SECONDS)
    try:
        yield
    finally:
        store.unpin(player.key.uri, holder)


def _is_stored(player: Player) -> bool:
    return isinstance(player, PolicyPlayer) and "://" in player.key.uri


def _table(suite: str, labels: Sequence[str], played: Sequence[Played], seconds: Sequence[float]) -> EvaluationTable:
    references = references_among(played)
    per_player = len(played[0].returns) + 1
    rows = score_tables.score_rows(played)
    scores = [
        {"suite": suite, "label": labels[index // per_player], "seconds": seconds[index // per_player], **row}
        for index, row in enumerate(rows)
    ]
    differences = [
        {"one_label": labels[0], "other_label": label, **row}
        for label, other in zip(labels[1:], played[1:], strict=True)
        if other.policy.uri not in REFERENCE_PLAYERS
        for row in score_tables.difference_rows(played[0], other, references)
    ]
    return EvaluationTable(suite, references.measure, tuple(labels), tuple(scores), tuple(differences))


def _remember(
    table: EvaluationTable, players: Sequence[Player], labels: Sequence[str], store: PolicyStore, db: EvalStatsDB | None
) -> None:
    for player, label in zip(players, labels, strict=True):
        if not _is_stored(player):
            continue
        record = store.load_from_uri(player.key.uri)
        found: dict[str, float | None] = {}
        for row in (row for row in table.scores if row["label"] == label):
            if row["simulation"] is not None:
                found[row["simulation"]] = row["score"]
            else:
                suite = f"{table.suite}/score"
                found |= {suite: row["score"], f"{suite}_low": row["low"], f"{suite}_high": row["high"]}
        scores = {name: value for name, value in found.items() if value is not None}
        known = record.metadata.get("eval_scores") or {}
        store.add_scores(record.uri, eval_scores={**known, **scores})
        if db is not None:
            db.record_policy(player.key, int(record.metadata.agent_step))


def _episodes(rows: Sequence[Row]) -> str:
    fewest, missing = min(row["episodes"] for row in rows), max(row["incomplete"] for row in rows)
    return f"{fewest} (incomplete: {missing} cut off)" if missing else str(fewest)


def _interval(row: Row, name: str, prefix: str | None = None) -> str:
    prefix = f"{name}_" if prefix is None else prefix
    value, low, high = row[name], row[f"{prefix}low"], row[f"{prefix}high"]
    if value is None:
        return "-"
    return f"{value:.3f}" if low is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
