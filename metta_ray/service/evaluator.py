"""Plays finished policies of a run beside training or after it; its failure never touches training.

What it writes counts once, however often it is tried: a simulation is stored under an id that is made of what was
asked, so a second try of the same request finds the first one's rows and adds only what is missing.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metta_ray.agent.policy_pins import fingerprint
from metta_ray.agent.policy_record import PolicyRecord
from metta_ray.agent.policy_store import PolicyStore
from metta_ray.common.errors import CheckpointError, ConfigError, PolicyMismatchError, StatsDBError
from metta_ray.control.evaluation_queue import EvaluationRequest
from metta_ray.eval import score_tables
from metta_ray.eval.eval_stats_db import EvalStatsDB, run_of
from metta_ray.eval.evaluate_policies import evaluate_policies
from metta_ray.eval.evaluation import STATS_FILE
from metta_ray.eval.suites import replay_for, suite_for
from metta_ray.metrics.tables import plain_table
from metta_ray.rl.session import prepare_process, prepare_thread
from metta_ray.service.identity import Identity
from metta_ray.service.lease import Lease
from metta_ray.service.process_info import ProcessInfo
from metta_ray.service.run_config import RunConfig
from metta_ray.sim.comparing import RANDOM, SCRIPTED, SHARE
from metta_ray.sim.players import PolicyPlayer
from metta_ray.sim.results import PolicyKey, SimulationResult
from metta_ray.sim.simulation_config import SimulationSuiteConfig
from metta_ray.sim.simulation_suite import evaluate_policy
from metta_ray.sim.suites import named_suite

logger = logging.getLogger(__name__)

PLAYER_SHARE = 0.3
"""Of the time that an evaluation may take, for each player: the policy and two references. What does not end by then is
marked as cut off, and there is time left to say so."""

Row = dict[str, Any]


class Evaluator:
    """Evaluates policies of one run. Results go to the run's database and to the policy's own directory."""

    def __init__(self, identity: Identity, config: RunConfig | dict[str, Any], run_dir: str) -> None:
        self.identity = identity
        self._config = RunConfig.from_mapping(config)
        self._run_dir = Path(run_dir)
        self._database = self._run_dir / "stats" / STATS_FILE
        self._store = PolicyStore(device="cpu")
        self._last: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._lease = Lease(self._config.failure.lease_s)
        prepare_process(self._config.trainer.seed)

    def __repr__(self) -> str:
        return str(self.identity)

    def describe(self) -> ProcessInfo:
        self._lease.renew()
        return ProcessInfo.of_this_process(self.identity.incarnation)

    def evaluate(self, request: EvaluationRequest) -> dict[str, Any]:
        """What came out, as JSON values; ``{"refused": reason}`` for what no other try could do better.

        Asked again for what it played last, it answers from memory.
        """
        if self._last is None or self._last[0] != request.key:
            prepare_thread(1)
            try:
                result = self._evaluate(request)
            except (CheckpointError, ConfigError, PolicyMismatchError, StatsDBError) as error:
                result = {"refused": str(error)}
            self._last = (request.key, result)
        return self._last[1]

    def _evaluate(self, request: EvaluationRequest) -> dict[str, Any]:
        began = time.perf_counter()
        record = self._store.load_from_uri(request.policy_uri)
        if request.fingerprint and request.fingerprint != fingerprint(record.file_path):
            raise CheckpointError(f"{record.file_path} holds another policy than when its evaluation was asked for")
        player = PolicyPlayer(record)
        suite, simulations = self._play(request, record, player)
        with EvalStatsDB(self._database) as db:
            everyones = [row for row in score_tables.simulation_scores(db, suite) if row["simulation"] in simulations]
            versions = score_tables.scores_over_versions(db, suite, run_of(player.key.uri))
            standing = _standing(versions, player.key)
            regression = _regression(score_tables.regressions(db, suite, run_of(player.key.uri)), player.key)
        rows = [row for row in everyones if (row["policy"], row["version"]) == player.key]
        overall = next(row for row in versions if row["version"] == player.key.version)
        if not request.suite and overall["score"] is not None:
            self._store.add_scores(record.uri, overall["score"])  # what the selector `top` sorts by
        return {
            "policy": record.uri,
            "version": player.key.version,
            "agent_step": int(record.metadata.agent_step),
            "suite": suite,
            **{name: overall[name] for name in ("measure", "score", "low", "high", "episodes", "incomplete")},
            "simulations": [_without_names(row) for row in rows],
            "standing": standing,
            "regression": regression,
            "seconds": time.perf_counter() - began,
            "text": self._text(request, record, [*rows, overall], _by_reference(everyones)),
        }

    def _play(
        self, request: EvaluationRequest, record: PolicyRecord, player: PolicyPlayer
    ) -> tuple[str, frozenset[str]]:
        """Plays the policy, and the references unless the run has played them before. (suite, its simulations)"""
        suite: str | SimulationSuiteConfig = request.suite or self._own_suite()
        told = f"{request.suite}/{request.episodes}/{request.seed}"
        how: dict[str, Any] = {
            "against": [],
            "seed": request.seed,
            "time_limit_s": self._config.evaluator.deadline_s * PLAYER_SHARE,
            "policy_store": self._store,
        }
        with StatsOfRequest(self._database, f"{told}/{request.fingerprint}") as db:
            table = evaluate_policies([record], suite, episodes=request.episodes, stats_db=db, **how)
            settings = db.settings_of(player.key.uri)
        names = frozenset(row["simulation"] for row in table.scores if row["simulation"])
        vocabulary = player.spec.vocabulary
        references = [RANDOM, SCRIPTED] if vocabulary is not None else [RANDOM]
        with StatsOfRequest(self._database, f"{told}/{settings}") as db:
            missing = [name for name in references if db.count_of(name) < len(names)]
            if missing and isinstance(suite, str):
                assert vocabulary is not None, "a named suite was played"
                suite = named_suite(suite, window=vocabulary.width)
            for name in missing:
                try:
                    evaluate_policies([name], suite, episodes=request.episodes, stats_db=db, **how)
                except (ConfigError, PolicyMismatchError) as error:  # scores are plain returns without it
                    logger.warning("%s does not play %s: %s", name, table.suite, error)
        return table.suite, names

    def _own_suite(self) -> SimulationSuiteConfig:
        return suite_for(self._config.trainer.curriculum_or_env, self._config.trainer.env_overrides)

    def _text(
        self, request: EvaluationRequest, record: PolicyRecord, rows: Sequence[Row], references: dict[str, Row]
    ) -> str:
        """rows: of the policy. references: name → simulation → mean return."""
        meaning = "0 = chance, 1 = scripted" if rows[0]["measure"] == SHARE else "return per agent"
        cells = [
            [
                row["simulation"] or "all",
                _episodes(row),
                _interval(row),
                row.get("mean_return"),
                *(returns.get(row["simulation"]) for returns in references.values()),
            ]
            for row in rows
        ]
        lines = [
            f"evaluation of {record.run_name}; score ({meaning}) with its 95 % interval:",
            *plain_table(("simulation", "episodes", "score", "mean return", *references), cells),
            f"results:    {self._database}",
        ]
        trainer = self._config.trainer
        config = replay_for(trainer.curriculum_or_env, trainer.env_overrides)
        if config is not None and request.asked_by == "end":
            played = evaluate_policy(record, config, replay_dir=self._run_dir / "replays", seed=request.seed)
            lines += [f"replay:     {path}" for simulation in played.simulations for path in simulation.replay_paths]
        return "\n".join(lines)


class StatsOfRequest(EvalStatsDB):
    """Stores each simulation under an id that is made of ``asked``, the policy and its own name: once."""

    def __init__(self, path: Path, asked: str) -> None:
        super().__init__(path)
        self._asked = asked

    def record(self, result: SimulationResult, simulation_id: str | None = None) -> str:
        return super().record(result, simulation_id or f"{self._prefix(result.policy.uri)}{result.name}")

    def count_of(self, policy: str) -> int:
        """Simulations that are stored of what was asked."""
        prefix = self._prefix(policy)
        sql = "SELECT count(*) AS count FROM simulations WHERE substr(id, 1, ?) = ?"
        return int(self.query(sql, (len(prefix), prefix))[0]["count"])

    def settings_of(self, policy: str) -> str:
        """Tells suites apart whose names agree: results of different settings are not comparable."""
        prefix = self._prefix(policy)
        sql = "SELECT name, settings FROM simulations WHERE substr(id, 1, ?) = ? ORDER BY name"
        rows = self.query(sql, (len(prefix), prefix))
        return hashlib.sha256(repr([tuple(row.values()) for row in rows]).encode()).hexdigest()[:16]

    def _prefix(self, policy: str) -> str:
        return f"{self._asked}/{policy}/"


def _standing(versions: Sequence[Row], key: PolicyKey) -> Row:
    """The best version of the run so far, and what this one gained over the best before it."""
    best = next(row for row in versions if row["is_best"])
    own = next(row for row in versions if row["version"] == key.version)
    names = ("policy", "version", "agent_step", "score", "low", "high", "measure")
    return {
        "compared": len(versions),
        "best": {name: best[name] for name in names},
        **{name: own[name] for name in ("gain", "gain_low", "gain_high")},
    }


def _regression(rows: Sequence[Row], key: PolicyKey) -> Row | None:
    """Where this version, if it is the latest, is certainly worse than the best: in the suite, or parts of it."""
    found = [row for row in rows if row["is_regression"] and row["latest_version"] == key.version]
    overall = next((row for row in found if row["simulation"] is None), None)
    if overall is None:
        return None
    names = ("best_version", "drop", "drop_low", "drop_high")
    parts = [row["simulation"] for row in found if row["simulation"] is not None]
    return {**{name: overall[name] for name in names}, "simulations": parts}


def _without_names(row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in ("policy", "version", "run", "agent_step")}


def _episodes(row: Row) -> str:
    cut_off = f" ({row['incomplete']} cut off)" if row["incomplete"] else ""
    return f"{row['episodes']}{cut_off}"


def _by_reference(rows: Sequence[Row]) -> dict[str, Row]:
    """Who else played, for a look at the same numbers: ``{"random": {simulation: mean return}}``."""
    found: dict[str, Row] = {}
    for row in rows:
        if row["policy"] in (RANDOM, SCRIPTED):
            found.setdefault(row["policy"], {})[row["simulation"]] = row["mean_return"]
    return found


def _interval(row: Row) -> str:
    value, low, high = row["score"], row["low"], row["high"]
    if value is None:
        return "-"
    return f"{value:.3f}" if low is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"
