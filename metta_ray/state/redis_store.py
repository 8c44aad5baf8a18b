"""Run records in a Redis, shared by all machines that reach it.

    PREFIX:records       hash: name of a run → its record, JSON
    PREFIX:generations   hash: name of a run → the generation that wrote the record
    PREFIX:events:NAME   stream of a run's events: at, kind, text

Every call is over after about ``timeout_s``, answered or not, and nothing is tried twice: who cannot wait has a
Publisher. What comes back is JSON that is checked, never code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.retry import Retry

from metta_ray.common.errors import StateStoreError
from metta_ray.state.base import MAX_EVENTS_PER_RUN
from metta_ray.state.records import EventRecord, RunRecord
from metta_ray.state.redis_address import PASSWORD_VARIABLE, RedisAddress

MAX_BYTES = 1 << 20
"""Of one record or event: a Redis is shared, and its memory is small."""

# One step for the server, so that of two writers the newer generation wins, whoever comes last.
_PUT_RUN = """
local newest = redis.call('HGET', KEYS[2], ARGV[1])
if newest and tonumber(newest) > tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
return 1
"""


class RedisStore:
    """Connects when it is first used, and again after every failure. May be used from several threads."""

    def __init__(self, address: RedisAddress, *, timeout_s: float) -> None:
        self.address = address
        self._timeout_s = timeout_s
        self._is_closed = False
        tls: dict[str, Any] = {"ssl": True, "ssl_ca_certs": address.ca_file} if address.is_encrypted else {}
        self._redis: Any = redis.Redis(
            host=address.host,
            port=address.port,
            db=address.database,
            credential_provider=_Password(address),
            # Half for the connection, half for the first answer that does not come.
            socket_connect_timeout=timeout_s / 2,
            socket_timeout=timeout_s / 2,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            driver_info=None,  # it would cost two more questions for each connection, and another right
            decode_responses=True,
            **tls,
        )

    def put_run(self, record: RunRecord) -> bool:
        text = json.dumps(record.to_json(), allow_nan=False)
        self._check_size(f"the record of run {record.name}", text)
        with self._errors_named():
            written = self._redis.eval(
                _PUT_RUN, 2, self._key("records"), self._key("generations"), record.name, record.generation, text
            )
            return bool(written == 1)

    def get_run(self, name: str) -> RunRecord | None:
        with self._errors_named():
            text = self._redis.hget(self._key("records"), name)
        return None if text is None else self._record(name, text)

    def list_runs(self) -> list[RunRecord]:
        with self._errors_named():
            found = self._redis.hgetall(self._key("records"))
        records = [self._record(name, text) for name, text in found.items()]
        return sorted(records, key=lambda record: (-record.updated, record.name))

    def add_event(self, event: EventRecord) -> None:
        self._check_size(f"an event of run {event.run}", event.text)
        fields = {"at": repr(event.at), "kind": event.kind, "text": event.text}
        with self._errors_named():
            self._redis.xadd(self._events(event.run), fields, maxlen=MAX_EVENTS_PER_RUN, approximate=False)

    def events(self, run: str, limit: int = 20) -> list[EventRecord]:
        if limit <= 0:
            return []
        with self._errors_named():
            entries = self._redis.xrevrange(self._events(run), count=limit)
        try:
            return [EventRecord(run, float(found["at"]), found["kind"], found["text"]) for _, found in entries[::-1]]
        except (KeyError, ValueError):
            raise self._damaged(self._events(run)) from None

    def close(self) -> None:
        self._is_closed = True
        self._redis.close()

    # --- keys and values ---------------------------------------------------------------------------------

    def _key(self, name: str) -> str:
        return f"{self.address.prefix}:{name}"

    def _events(self, run: str) -> str:
        return self._key(f"events:{run}")

    def _record(self, name: str, text: str) -> RunRecord:
        try:
            values = json.loads(text)
            record = RunRecord.from_json(values if isinstance(values, dict) else {})
            if record.name == name and isinstance(record.updated, int | float):
                return record
        except (ValueError, RecursionError, StateStoreError):
            pass
        raise self._damaged(f"{self._key('records')} at {name!r}")

    def _damaged(self, key: str) -> StateStoreError:
        return StateStoreError(
            f"{key} in {self.address} was not written by metta_ray, or by a version that this one does not know; "
            "delete it, or use another prefix"
        )

    def _check_size(self, what: str, text: str) -> None:
        size = len(text.encode())
        if size > MAX_BYTES:
            raise StateStoreError(f"{what} has {size:,} bytes; {self.address} takes at most {MAX_BYTES:,}")

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        if self._is_closed:
            raise StateStoreError(f"the store of run records at {self.address} is closed")
        try:
            yield
        except (redis.RedisError, OSError, ValueError) as error:
            raise StateStoreError(
                f"the store of run records at {self.address} cannot be used: {self._reason(error)}"
            ) from None

    def _reason(self, error: Exception) -> str:
        text = " ".join(str(error).split())
        match error:
            case _NoPassword():
                return text
            case redis.AuthenticationError():
                return f"{text.rstrip('.')}; check the user's name in the URL and {PASSWORD_VARIABLE} or password_file"
            case redis.exceptions.NoPermissionError():
                return f"{text.rstrip('.')}; deploy/redis/users.acl has the rights that it needs"
            case _ if "CERTIFICATE_VERIFY_FAILED" in text:
                return f"{text}; name who signed its certificate, ?ca=FILE"
            case redis.TimeoutError():
                return f"no answer within {self._timeout_s:g} s"
            case _:
                return text


class _NoPassword(redis.AuthenticationError):
    """An error that redis-py knows, so that it closes the connection."""


class _Password(CredentialProvider):
    """Asked for every new connection; nothing keeps what it answers."""

    def __init__(self, address: RedisAddress) -> None:
        self._address = address

    def get_credentials(self) -> Any:
        """(password,), (user, password), or () for a server that asks for none."""
        try:
            password = self._address.password()
        except StateStoreError as error:
            raise _NoPassword(str(error)) from None
        if password is None:
            return ()
        return (self._address.username, password) if self._address.username else (password,)
