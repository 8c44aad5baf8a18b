"""What pages and commands show of evaluations: one function per table, rows of plain values.

Scores are shares of what is possible, (policy - random) / (scripted - random), where both references played the
suite (``measure`` is ``share``), else returns per agent (``return``). ``low`` and ``high`` are the ends of the 95 %
bootstrap interval; None where there is too little to tell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from metta_ray.common.errors import ConfigError, StatsDBError
from metta_ray.common.util.typed_config import did_you_mean
from metta_ray.eval.eval_stats_db import EvalStatsDB
from metta_ray.eval.promotion import choose_best, find_regression
from metta_ray.sim import comparing
from metta_ray.sim.comparing import RANDOM, SCRIPTED, References, Returns
from metta_ray.sim.results import REWARD, PolicyKey, SuiteResult
from metta_ray.sim.statistics import Interval

Row = dict[str, Any]


@dataclass
class Played:
    """What one policy got in a suite. incomplete: episodes that the time limit cut off, by simulation."""

    policy: PolicyKey
    run: str
    agent_step: int | None = None
    returns: dict[str, dict[str, float]] = field(default_factory=dict)
    incomplete: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, result: SuiteResult, policy: PolicyKey, run: str = "") -> Played:
        incomplete = {simulation.name: simulation.incomplete for simulation in result.simulations}
        return cls(policy, run or policy.uri, None, comparing.returns_of(result), incomplete)


def references_among(played: Sequence[Played]) -> References:
    by_name: Mapping[str, Returns] = {one.policy.uri: one.returns for one in played}
    return References(by_name.get(RANDOM), by_name.get(SCRIPTED))


# --- from a database ---------------------------------------------------------------------------------------


def suites(db: EvalStatsDB) -> list[str]:
    return [row["suite"] for row in db.query("SELECT DISTINCT suite FROM simulations ORDER BY 1")]


def suite_scores(db: EvalStatsDB, suite: str) -> list[Row]:
    """A row per policy version: its score over the whole suite, best first."""
    rows = [row for row in score_rows(_played(db, suite)) if row["simulation"] is None]
    return sorted(rows, key=lambda row: math.inf if row["score"] is None else -row["score"])


def simulation_scores(db: EvalStatsDB, suite: str, policy: PolicyKey | None = None) -> list[Row]:
    """A row per policy version and simulation."""
    rows = [row for row in score_rows(_played(db, suite)) if row["simulation"] is not None]
    return [row for row in rows if policy is None or (row["policy"], row["version"]) == policy]


def scores_over_versions(db: EvalStatsDB, suite: str, run: str) -> list[Row]:
    """A row per version of a run's policy, in order. is_best: the one to promote (see ``promotion``). gain, gain_low,
    gain_high: over the best version before it."""
    played = _played(db, suite)
    versions = _versions(played, run)
    promotion = choose_best([one.returns for one in versions], references_among(played))
    overall = {(row["policy"], row["version"]): row for row in score_rows(played) if row["simulation"] is None}
    return [
        overall[one.policy] | {"is_best": index == promotion.best, **_ends("gain", gain)}
        for index, (one, gain) in enumerate(zip(versions, promotion.gains, strict=True))
    ]


def head_to_head(db: EvalStatsDB, suite: str, one: PolicyKey, other: PolicyKey) -> list[Row]:
    """One policy's score less another's over the episodes that both met: a row per simulation, the suite last."""
    played = {player.policy: player for player in _played(db, suite)}
    for policy in (one, other):
        if policy not in played:
            known = ", ".join(f"{uri} (version {version})" for uri, version in played)
            raise StatsDBError(
                f"{policy.uri}, version {policy.version}, has no results in suite {suite}; known: {known}"
            )
    return difference_rows(played[one], played[other], references_among(list(played.values())))


def regressions(db: EvalStatsDB, suite: str, run: str) -> list[Row]:
    """Where a run's latest version scores less than its best one: the suite (simulation None) and each simulation.
    is_regression: the interval of the drop excludes 0."""
    played = _played(db, suite)
    versions = _versions(played, run)
    references = references_among(played)
    rows = []
    for simulation in (None, *versions[-1].returns):
        names = None if simulation is None else [simulation]
        # A version that was not played there says nothing about it.
        players = [one for one in versions if simulation is None or one.returns.get(simulation)]
        found = find_regression([one.returns for one in players], references, names) if len(players) > 1 else None
        if found is not None:
            rows.append(
                {
                    "suite": suite,
                    "simulation": simulation,
                    "run": run,
                    "best_version": players[found.best].policy.version,
                    "latest_version": players[found.latest].policy.version,
                    **_ends("drop", found.drop),
                    "is_regression": found.is_certain,
                }
            )
    return rows


def opponents(db: EvalStatsDB, suite: str | None = None) -> list[Row]:
    """Games in which more than one policy drove agents: the mean return of each, a row per simulation and policy.
    role: ``evaluated`` or ``other``."""
    rows = db.query(
        """
        SELECT s.suite, s.name AS simulation, s.policy_key AS evaluated, s.policy_version AS evaluated_version,
               ap.policy_key AS policy, ap.policy_version AS version, e.id AS episode, AVG(am.value) AS value
        FROM simulations s JOIN episodes e ON e.simulation_id = s.id
        JOIN agent_policies ap ON ap.episode_id = e.id
        JOIN agent_metrics am ON am.episode_id = e.id AND am.agent_id = ap.agent_id AND am.metric = ?
        WHERE EXISTS (SELECT 1 FROM agent_groups g WHERE g.episode_id = e.id AND g.group_id = 1)
              AND (? IS NULL OR s.suite = ?)
        GROUP BY e.id, ap.policy_key, ap.policy_version ORDER BY s.suite, s.name, s.created_at, ap.policy_key
        """,
        (REWARD, suite, suite),
    )
    names = ("suite", "simulation", "evaluated", "evaluated_version", "policy", "version")
    games: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in rows:
        games.setdefault(tuple(row[name] for name in names), {})[row["episode"]] = row["value"]
    return [
        {
            **dict(zip(names, key, strict=True)),
            "role": "evaluated" if key[2:4] == key[4:6] else "other",
            "episodes": len(returns),
            **_ends("mean_return", comparing.mean_return({"": returns}, "")),
        }
        for key, returns in games.items()
    ]


def episodes(db: EvalStatsDB, suite: str | None = None, policy: PolicyKey | None = None) -> list[Row]:
    """A row per episode, with its replay where there is one."""
    key, version = policy or (None, None)
    return db.query(
        """
        SELECT s.suite, s.name AS simulation, s.policy_key AS policy, s.policy_version AS version, e.id AS episode,
               e.step_count AS steps, e.completed_at, e.replay_url,
               (SELECT AVG(value) FROM agent_metrics m JOIN agent_policies p USING (episode_id, agent_id)
                WHERE m.episode_id = e.id AND m.metric = ? AND p.policy_key = s.policy_key
                      AND p.policy_version = s.policy_version) AS mean_return,
               (SELECT value FROM episode_attributes a WHERE a.episode_id = e.id AND a.attribute = 'task_id') AS task
        FROM episodes e JOIN simulations s ON s.id = e.simulation_id
        WHERE (? IS NULL OR s.suite = ?) AND (? IS NULL OR (s.policy_key = ? AND s.policy_version = ?))
        ORDER BY s.suite, s.name, s.policy_key, s.policy_version, e.completed_at
        """,
        (REWARD, suite, suite, key, key, version),
    )


def policies(db: EvalStatsDB) -> list[Row]:
    """A row per policy version that was evaluated."""
    return db.query(
        """
        SELECT p.policy_key AS policy, p.policy_version AS version, p.run, p.agent_step,
               COUNT(DISTINCT s.id) AS simulations, COUNT(e.id) AS episodes, MAX(s.finished_at) AS last_evaluated_at
        FROM policies p JOIN simulations s USING (policy_key, policy_version)
        LEFT JOIN episodes e ON e.simulation_id = s.id
        GROUP BY p.policy_key, p.policy_version ORDER BY p.run, p.policy_version
        """
    )


# --- rows --------------------------------------------------------------------------------------------------


def score_rows(played: Sequence[Played]) -> list[Row]:
    """For each player a row per simulation, then one for the suite (simulation None)."""
    references = references_among(played)
    rows = []
    for player in played:
        for simulation in (*player.returns, None):
            names = list(player.returns) if simulation is None else [simulation]
            one = comparing.mean_return(player.returns, names[0]) if simulation is not None else None
            rows.append(
                {
                    "policy": player.policy.uri,
                    "version": player.policy.version,
                    "run": player.run,
                    "agent_step": player.agent_step,
                    "simulation": simulation,
                    "measure": references.measure,
                    **_ends("score", comparing.score(player.returns, references, names), plain_ends=True),
                    **(_ends("mean_return", one) if one is not None else {}),
                    "episodes": sum(len(player.returns[name]) for name in names),
                    "incomplete": sum(player.incomplete.get(name, 0) for name in names),
                }
            )
    return rows


def difference_rows(one: Played, other: Played, references: References) -> list[Row]:
    """A row per simulation that both played, then one for the suite (simulation None)."""
    shared = [name for name in one.returns if name in other.returns]
    return [
        {
            "simulation": simulation,
            "one": one.policy.uri,
            "other": other.policy.uri,
            "measure": references.measure,
            **_ends("difference", comparing.difference(one.returns, other.returns, references, names)),
            "episodes": sum(comparing.num_paired(name, one.returns, other.returns) for name in names),
        }
        for simulation, names in [*((name, [name]) for name in shared), (None, shared)]
    ]


def _ends(name: str, interval: Interval | None, *, plain_ends: bool = False) -> Row:
    """``{name: …, name_low: …, name_high: …}``"""
    value, low, high = (None, None, None) if interval is None else interval.to_json().values()
    prefix = "" if plain_ends else f"{name}_"
    return {name: value, f"{prefix}low": low, f"{prefix}high": high}


def _played(db: EvalStatsDB, suite: str) -> list[Played]:
    """All policies in a suite. Of an episode that a policy played twice the latter counts."""
    rows = db.query(
        """
        SELECT s.policy_key, s.policy_version, p.run, p.agent_step, s.name, s.settings, e.id AS episode,
               (SELECT value FROM episode_attributes a WHERE a.episode_id = e.id AND a.attribute = 'seed') AS seed,
               (SELECT value FROM episode_attributes a WHERE a.episode_id = e.id AND a.attribute = 'task_id') AS task,
               (SELECT AVG(value) FROM agent_metrics m JOIN agent_policies ap USING (episode_id, agent_id)
                WHERE m.episode_id = e.id AND m.metric = ? AND ap.policy_key = s.policy_key
                      AND ap.policy_version = s.policy_version) AS value,
               s.incomplete_episodes AS incomplete
        FROM simulations s JOIN policies p USING (policy_key, policy_version)
        LEFT JOIN episodes e ON e.simulation_id = s.id
        WHERE s.suite = ? ORDER BY p.run, s.policy_version, s.created_at
        """,
        (REWARD, suite),
    )
    if not rows:
        known = suites(db)
        raise StatsDBError(
            f"{db.path} has no results of suite {suite!r}{did_you_mean(suite, known)}; "
            "play it with metta-ray evaluate POLICY --suite NAME"
        )
    found: dict[PolicyKey, Played] = {}
    for row in rows:
        policy = PolicyKey(row["policy_key"], row["policy_version"])
        one = found.setdefault(policy, Played(policy, row["run"], row["agent_step"]))
        returns = one.returns.setdefault(row["name"], {})
        one.incomplete[row["name"]] = row["incomplete"]
        if row["episode"] is not None:
            returns[f"{row['settings']} {row['seed']} {row['task']}"] = row["value"]
    return list(found.values())


def _versions(played: Sequence[Played], run: str) -> list[Played]:
    versions = sorted((one for one in played if one.run == run), key=lambda one: one.policy.version)
    if not versions:
        runs = {one.run for one in played}
        raise ConfigError(f"run {run!r} was not evaluated in this suite{did_you_mean(run, runs)}")
    return versions
