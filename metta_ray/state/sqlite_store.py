"""Run records in one SQLite file, shared by all processes of a machine.

Write-ahead log: readers never wait for the writer. synchronous=NORMAL: a crash of the machine may cost the last
writes, never the file; what must outlive it is in the run's journal. Not for network file systems, which cannot
share a write-ahead log between machines.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metta_ray.common.errors import StateStoreError
from metta_ray.state.base import MAX_EVENTS_PER_RUN
from metta_ray.state.records import EventRecord, RunRecord

SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 10.0
RETRY_S = 0.01

_SCHEMA = """
CREATE TABLE runs (
    name TEXT PRIMARY KEY, generation INTEGER NOT NULL, updated REAL NOT NULL, record TEXT NOT NULL
) STRICT;
CREATE TABLE events (
    number INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL, at REAL NOT NULL, kind TEXT NOT NULL,
    text TEXT NOT NULL
) STRICT;
CREATE INDEX events_by_run ON events (run, number);
"""


class SqliteStore:
    """One open file; created with its directory where it does not exist. May be used from several threads."""

    def __init__(self, path: Path | str, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self.path = Path(path)
        self._busy_timeout_s = busy_timeout_s
        self._lock = threading.Lock()  # one transaction of this connection at a time
        with self._errors_named():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # isolation_level None: transactions are begun by hand, as writers at once.
            self._db = sqlite3.connect(self.path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False)
        try:
            self._prepare()
        except StateStoreError:
            self._db.close()
            raise

    def put_run(self, record: RunRecord) -> bool:
        with self._transaction() as db:
            written = db.execute(
                "INSERT INTO runs VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET "
                "generation = excluded.generation, updated = excluded.updated, record = excluded.record "
                "WHERE excluded.generation >= generation",
                (record.name, record.generation, record.updated, json.dumps(record.to_json(), allow_nan=False)),
            )
            return written.rowcount == 1

    def get_run(self, name: str) -> RunRecord | None:
        rows = self._query("SELECT record FROM runs WHERE name = ?", name)
        return RunRecord.from_json(json.loads(rows[0][0])) if rows else None

    def list_runs(self) -> list[RunRecord]:
        rows = self._query("SELECT record FROM runs ORDER BY updated DESC, name")
        return [RunRecord.from_json(json.loads(text)) for (text,) in rows]

    def add_event(self, event: EventRecord) -> None:
        with self._transaction() as db:
            db.execute(
                "INSERT INTO events (run, at, kind, text) VALUES (?, ?, ?, ?)",
                (event.run, event.at, event.kind, event.text),
            )
            db.execute(
                "DELETE FROM events WHERE run = ?1 AND number <= "
                "(SELECT number FROM events WHERE run = ?1 ORDER BY number DESC LIMIT 1 OFFSET ?2)",
                (event.run, MAX_EVENTS_PER_RUN),
            )

    def events(self, run: str, limit: int = 20) -> list[EventRecord]:
        rows = self._query(
            "SELECT run, at, kind, text FROM events WHERE run = ? ORDER BY number DESC LIMIT ?", run, max(0, limit)
        )
        return [EventRecord(*row) for row in reversed(rows)]

    def close(self) -> None:
        with self._lock:
            self._db.close()

    # --- the file ----------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        with self._errors_named():
            self._turn_on_write_ahead_log(deadline=time.monotonic() + self._busy_timeout_s)
            self._db.execute("PRAGMA synchronous = NORMAL")
        with self._transaction() as db:  # a writer's: of two processes that open a new file, one creates the tables
            version = db.execute("PRAGMA user_version").fetchone()[0]
            tables = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
            if version == 0 and tables == 0:
                for statement in _SCHEMA.strip().split(";")[:-1]:
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            elif version != SCHEMA_VERSION:
                raise StateStoreError(
                    f"{self.path} has schema version {version}, this metta_ray knows {SCHEMA_VERSION}; "
                    "use the version that wrote it, or another file"
                )

    def _turn_on_write_ahead_log(self, deadline: float) -> None:
        # Of two processes that open a new file, SQLite refuses one at once, whatever the busy timeout says.
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(RETRY_S)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, also when the process dies in between."""
        with self._lock, self._errors_named():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # some errors, such as a full disk, have rolled it back already
                    self._db.execute("ROLLBACK")
                raise

    def _query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock, self._errors_named():
            return self._db.execute(sql, values).fetchall()

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StateStoreError(f"the store of run records at {self.path} cannot be used: {error}") from error
