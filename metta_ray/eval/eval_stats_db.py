"""Results of evaluations in one SQLite file.

Tables as in Metta's statistics: ``policies`` (with the run they are of), ``simulations`` (one policy in one
environment; ``settings`` is JSON, only results of the same settings can be compared), ``episodes``,
``episode_attributes``, ``agent_groups`` (0: the policy under evaluation, 1: others), ``agent_metrics``,
``agent_policies``. Two views join them per policy. Several processes may write at once (write-ahead log, one
transaction per simulation); files of several machines are brought together with ``merge``.

The score of a metric is Σ recorded values / number of agent-episodes that recorded anything: an agent that
did not record this metric counts as 0, an agent without any record does not count.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from metta_ray.common.errors import StatsDBError
from metta_ray.sim.results import SCORE, PlayedEpisode, PolicyKey, SimulationResult, SuiteResult

SCHEMA_VERSION = 2
BUSY_TIMEOUT_S = 60.0
TABLES = (
    *("policies", "simulations", "episodes", "episode_attributes"),
    *("agent_groups", "agent_metrics", "agent_policies"),
)

_POLICIES = """
CREATE TABLE policies (
    policy_key TEXT NOT NULL, policy_version INTEGER NOT NULL, run TEXT NOT NULL, agent_step INTEGER,
    PRIMARY KEY (policy_key, policy_version)
) STRICT;
"""
_SCHEMA = f"""{_POLICIES}
CREATE TABLE simulations (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, category TEXT NOT NULL, short_name TEXT NOT NULL,
    suite TEXT NOT NULL, env TEXT NOT NULL, policy_key TEXT NOT NULL, policy_version INTEGER NOT NULL,
    created_at REAL NOT NULL, finished_at REAL NOT NULL, incomplete_episodes INTEGER NOT NULL,
    settings TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE TABLE episodes (
    id TEXT PRIMARY KEY, step_count INTEGER NOT NULL, created_at REAL NOT NULL, completed_at REAL NOT NULL,
    simulation_id TEXT NOT NULL REFERENCES simulations(id), replay_url TEXT
) STRICT;
CREATE TABLE episode_attributes (
    episode_id TEXT NOT NULL REFERENCES episodes(id), attribute TEXT NOT NULL, value TEXT NOT NULL,
    PRIMARY KEY (episode_id, attribute)
) STRICT;
CREATE TABLE agent_groups (
    episode_id TEXT NOT NULL REFERENCES episodes(id), group_id INTEGER NOT NULL, agent_id INTEGER NOT NULL,
    PRIMARY KEY (episode_id, agent_id)
) STRICT;
CREATE TABLE agent_metrics (
    episode_id TEXT NOT NULL REFERENCES episodes(id), agent_id INTEGER NOT NULL, metric TEXT NOT NULL,
    value REAL NOT NULL, PRIMARY KEY (episode_id, agent_id, metric)
) STRICT;
CREATE TABLE agent_policies (
    episode_id TEXT NOT NULL REFERENCES episodes(id), agent_id INTEGER NOT NULL, policy_key TEXT NOT NULL,
    policy_version INTEGER NOT NULL, PRIMARY KEY (episode_id, agent_id)
) STRICT;
CREATE INDEX episodes_by_simulation ON episodes (simulation_id);
CREATE INDEX agent_policies_by_policy ON agent_policies (policy_key, policy_version);

CREATE VIEW policy_simulation_agent_samples AS  -- one row per agent-episode that recorded anything
SELECT ap.policy_key, ap.policy_version, s.suite AS sim_suite, s.name AS sim_name, s.category AS sim_category,
       s.short_name AS sim_short_name, s.env AS sim_env, e.id AS episode_id, ap.agent_id, e.replay_url
FROM agent_policies ap
JOIN episodes e ON e.id = ap.episode_id
JOIN simulations s ON s.id = e.simulation_id
WHERE EXISTS (
    SELECT 1 FROM agent_metrics am WHERE am.episode_id = ap.episode_id AND am.agent_id = ap.agent_id
);

CREATE VIEW policy_simulation_agent_metrics AS
SELECT samples.*, am.metric, am.value
FROM policy_simulation_agent_samples samples
JOIN agent_metrics am ON am.episode_id = samples.episode_id AND am.agent_id = samples.agent_id;
"""


class EvalStatsDB:
    """One open statistics file; created with its directory where it does not exist. Use from one thread."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # isolation_level None: transactions are begun by hand, as writers at once.
        self._db = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        try:
            self._db.execute("PRAGMA foreign_keys = ON")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._create_or_check_schema()
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise StatsDBError(f"{self.path} cannot be used: {error}; move the file away to start a new one") from error
        except StatsDBError:
            self._db.close()
            raise

    def _create_or_check_schema(self) -> None:
        with self._transaction():
            tables = {name for (name,) in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not tables:
                for statement in _statements(_SCHEMA):
                    self._db.execute(statement)
                self._db.execute("CREATE TABLE schema_version (version INTEGER NOT NULL) STRICT")
                self._db.execute("INSERT INTO schema_version VALUES (?)", (SCHEMA_VERSION,))
            elif "schema_version" not in tables:
                raise StatsDBError(f"{self.path} is an SQLite file of something else; choose another path")
            else:
                (version,) = self._db.execute("SELECT version FROM schema_version").fetchone()
                if version == 1:
                    version = self._migrate_from_1()
                if version != SCHEMA_VERSION:
                    raise StatsDBError(
                        f"{self.path} has schema version {version}, this version of metta_ray reads "
                        f"{SCHEMA_VERSION}; move the file away to start a new one"
                    )

    def _migrate_from_1(self) -> int:
        for statement in _statements(_POLICIES):
            self._db.execute(statement)
        self._db.execute("ALTER TABLE simulations ADD COLUMN settings TEXT NOT NULL DEFAULT ''")
        known = "SELECT DISTINCT policy_key, policy_version FROM agent_policies"
        for policy in self._db.execute(known).fetchall():
            self._note_policy(PolicyKey(*policy))
        self._db.execute("UPDATE schema_version SET version = ?", (SCHEMA_VERSION,))
        return SCHEMA_VERSION

    # ---- writing ----

    def record(self, result: SimulationResult, simulation_id: str | None = None) -> str:
        """Stores a simulation with its episodes, all or nothing; returns its id.

        simulation_id: where the caller may try again, so that the result is stored once.
        """
        simulation_id = simulation_id or uuid.uuid4().hex
        with self._transaction():
            if self._db.execute("SELECT 1 FROM simulations WHERE id = ?", (simulation_id,)).fetchone():
                return simulation_id
            self._note_policy(result.policy)
            self._db.execute(
                "INSERT INTO simulations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    simulation_id,
                    result.name,
                    result.category,
                    result.short_name,
                    result.suite,
                    result.env,
                    *result.policy,
                    result.started_at,
                    result.started_at + result.elapsed_s,
                    result.incomplete,
                    result.settings,
                ),
            )
            for episode in result.episodes:
                self._insert_episode(simulation_id, episode, result.policy)
        return simulation_id

    def record_policy(self, policy: PolicyKey, agent_step: int) -> None:
        """What a curve over training needs to know of a policy beside its version."""
        with self._transaction():
            self._note_policy(policy)
            self._db.execute(
                "UPDATE policies SET agent_step = ? WHERE policy_key = ? AND policy_version = ?", (agent_step, *policy)
            )

    def _note_policy(self, policy: PolicyKey) -> None:
        self._db.execute("INSERT OR IGNORE INTO policies VALUES (?, ?, ?, NULL)", (*policy, run_of(policy.uri)))

    def record_suite(self, result: SuiteResult) -> list[str]:
        return [self.record(simulation) for simulation in result.simulations]

    def _insert_episode(self, simulation_id: str, episode: PlayedEpisode, candidate: PolicyKey) -> None:
        put = self._db.executemany
        put(
            "INSERT INTO episodes VALUES (?, ?, ?, ?, ?, ?)",
            [
                (
                    episode.id,
                    episode.steps,
                    episode.created_at,
                    episode.completed_at,
                    simulation_id,
                    episode.replay_path,
                )
            ],
        )
        attributes = {
            "task_id": episode.task_id,
            "seed": " ".join(map(str, episode.seed)),
            **episode.attributes,
        }
        put(
            "INSERT INTO episode_attributes VALUES (?, ?, ?)",
            [(episode.id, *item) for item in attributes.items()],
        )
        policies = list(enumerate(episode.agent_policies))
        for policy in set(episode.agent_policies):
            self._note_policy(policy)
        put(
            "INSERT INTO agent_groups VALUES (?, ?, ?)",
            [(episode.id, 0 if policy == candidate else 1, agent) for agent, policy in policies],
        )
        put(
            "INSERT INTO agent_policies VALUES (?, ?, ?, ?)",
            [(episode.id, agent, *policy) for agent, policy in policies],
        )
        put(
            "INSERT INTO agent_metrics VALUES (?, ?, ?, ?)",
            [
                (episode.id, agent, metric, float(value))
                for agent, metrics in enumerate(episode.agent_metrics)
                for metric, value in {SCORE: episode.score, **metrics}.items()
            ],
        )

    def merge(self, shard: str | Path) -> None:
        """Copies everything of another statistics file into this one; what is already here stays once."""
        if not Path(shard).is_file():
            raise StatsDBError(f"statistics file {shard} does not exist")
        EvalStatsDB(shard).close()  # refuses other versions
        self._db.execute("ATTACH DATABASE ? AS shard", (str(shard),))
        try:
            with self._transaction():
                for table in TABLES:
                    self._db.execute(f"INSERT OR IGNORE INTO {table} SELECT * FROM shard.{table}")
        finally:
            self._db.execute("DETACH DATABASE shard")

    # ---- reading ----

    def policies(self) -> list[PolicyKey]:
        """Policies under evaluation, by key and version."""
        rows = self._db.execute("SELECT DISTINCT policy_key, policy_version FROM simulations ORDER BY 1, 2")
        return [PolicyKey(*row) for row in rows]

    def metric_names(self, policy: PolicyKey) -> list[str]:
        rows = self._db.execute(
            "SELECT DISTINCT metric FROM policy_simulation_agent_metrics "
            "WHERE policy_key = ? AND policy_version = ? ORDER BY 1",
            policy,
        )
        return [name for (name,) in rows]

    def sample_count(self, policy: PolicyKey, category: str | None = None, simulation: str | None = None) -> int:
        """Agent-episodes that recorded anything. simulation: full name, with the category."""
        where, values = _where(policy, category, simulation)
        (count,) = self._db.execute(
            f"SELECT COUNT(*) FROM policy_simulation_agent_samples WHERE {where}", values
        ).fetchone()
        return int(count)

    def average_metric(
        self,
        policy: PolicyKey,
        metric: str = SCORE,
        category: str | None = None,
        simulation: str | None = None,
    ) -> float | None:
        """The score of ``metric`` (see the top of this file); None without any agent-episode."""
        samples = self.sample_count(policy, category, simulation)
        if samples == 0:
            return None
        where, values = _where(policy, category, simulation)
        (total,) = self._db.execute(
            f"SELECT COALESCE(SUM(value), 0.0) FROM policy_simulation_agent_metrics WHERE {where} AND metric = ?",
            (*values, metric),
        ).fetchone()
        return float(total) / samples

    def category_scores(self, policy: PolicyKey, metric: str = SCORE) -> dict[str, float]:
        rows = self._db.execute(
            "SELECT DISTINCT sim_category FROM policy_simulation_agent_samples "
            "WHERE policy_key = ? AND policy_version = ? ORDER BY 1",
            policy,
        ).fetchall()
        scores = {category: self.average_metric(policy, metric, category=category) for (category,) in rows}
        return {category: score for category, score in scores.items() if score is not None}

    def simulation_scores(self, policy: PolicyKey, metric: str = SCORE) -> dict[tuple[str, str], float]:
        """{(category, short name): score}."""
        rows = self._db.execute(
            "SELECT DISTINCT sim_category, sim_short_name, sim_name FROM policy_simulation_agent_samples "
            "WHERE policy_key = ? AND policy_version = ? ORDER BY 1, 2",
            policy,
        ).fetchall()
        scores = {
            (category, short): self.average_metric(policy, metric, simulation=name) for category, short, name in rows
        }
        return {key: score for key, score in scores.items() if score is not None}

    def replay_urls(self, policy: PolicyKey, simulation: str | None = None) -> list[str]:
        where, values = _where(policy, None, simulation)
        rows = self._db.execute(
            f"SELECT DISTINCT replay_url FROM policy_simulation_agent_samples WHERE {where} AND replay_url IS NOT NULL",
            values,
        )
        return [url for (url,) in rows]

    def query(self, sql: str, values: tuple[Any, ...] = ()) -> list[dict[str, Any]]:
        """Rows of any SELECT, for notebooks and reports."""
        cursor = self._db.execute(sql, values)
        names = [column[0] for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    @classmethod
    def existing(cls, path: str | Path) -> EvalStatsDB:
        """Opens a file that must be there already. StatsDBError where it is not."""
        if not Path(path).is_file():
            raise StatsDBError(f"no evaluations in {path}: the file does not exist; play some with metta-ray evaluate")
        return cls(path)

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        # IMMEDIATE takes the write lock at the start, so two writers wait for each other instead of failing.
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def run_of(uri: str) -> str:
    """``file:///data/first/checkpoints/model_0012`` → ``first``; names such as ``random`` are their own run."""
    place, slash, _ = uri.removeprefix("file://").rstrip("/").rpartition("/")
    return (place.removesuffix("/checkpoints").rpartition("/")[2] or uri) if slash else uri


def _where(policy: PolicyKey, category: str | None, simulation: str | None) -> tuple[str, tuple[Any, ...]]:
    clauses, values = ["policy_key = ?", "policy_version = ?"], [policy.uri, policy.version]
    for column, wanted in (("sim_category", category), ("sim_name", simulation)):
        if wanted is not None:
            clauses.append(f"{column} = ?")
            values.append(wanted)
    return " AND ".join(clauses), tuple(values)


def _statements(script: str) -> list[str]:
    return [statement for statement in script.split(";") if statement.strip()]
