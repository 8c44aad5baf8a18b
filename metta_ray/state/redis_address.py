"""Where a Redis is, as a URL says it. No secret: the password comes from a file or a variable, never from the URL.

    redis[s]://[USER@]HOST[:PORT][/DATABASE][?ca=FILE&password_file=FILE&prefix=metta&insecure=true]

rediss is TLS; ``ca``: who may have signed the server's certificate, otherwise whom the system trusts. A URL is shown in
process lists, records and reports, so that one with a password in it is refused, and never repeated in a message.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import parse_qsl, unquote, urlsplit

from metta_ray.common.errors import ConfigError, StateStoreError

PASSWORD_VARIABLE = "METTA_RAY_STATE_PASSWORD"
FORM = "redis[s]://[USER@]HOST[:PORT][/DATABASE][?ca=FILE&password_file=FILE&prefix=metta&insecure=true]"
DEFAULT_PORT = 6379
_OPTIONS = ("ca", "password_file", "prefix", "insecure")


@dataclass(frozen=True)
class RedisAddress:
    """prefix: of all keys. is_insecure: another machine's Redis may be used without a password."""

    host: str
    port: int = DEFAULT_PORT
    database: int = 0
    username: str | None = None
    is_encrypted: bool = False
    ca_file: str | None = None
    password_file: str | None = None
    prefix: str = "metta"
    is_insecure: bool = False

    @classmethod
    def from_url(cls, url: str) -> Self:
        """ConfigError for what is none, and for one that holds a password."""
        try:
            parts = urlsplit(url)
            host, port, database = parts.hostname, parts.port, int(parts.path.strip("/") or 0)
            options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True)) if parts.query else {}
        except ValueError:  # its text repeats what may be a part of a password
            raise ConfigError(f"state.url is not of the form {FORM}") from None
        if parts.password is not None or "password" in options:
            raise ConfigError(
                "state.url holds a password, which process lists and records of runs would show: put it into the "
                f"variable {PASSWORD_VARIABLE}, or into a file and name that, ?password_file=FILE; and change it, for "
                "it may have been seen"
            )
        unknown = sorted(options.keys() - set(_OPTIONS))
        if not host or database < 0 or unknown or options.get("insecure", "true") != "true":
            raise ConfigError(f"state.url is not of the form {FORM}")
        return cls(
            host=host,
            port=port or DEFAULT_PORT,
            database=database,
            username=unquote(parts.username) if parts.username else None,
            is_encrypted=parts.scheme == "rediss",
            ca_file=options.get("ca"),
            password_file=options.get("password_file"),
            prefix=options.get("prefix") or cls.prefix,
            is_insecure="insecure" in options,
        )

    def __str__(self) -> str:
        user = f"{self.username}@" if self.username else ""
        return f"redis{'s' * self.is_encrypted}://{user}{self.host}:{self.port}/{self.database}"

    def password(self, environ: Mapping[str, str] = os.environ) -> str | None:
        """Read anew for every connection, so that it may be changed while a run goes on.

        StateStoreError if its file cannot be read, and for a Redis on another machine without any.
        """
        if self.password_file is not None:
            try:
                password = Path(self.password_file).read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                raise StateStoreError(f"the password file of {self} cannot be read: {error}") from None
        else:
            password = environ.get(PASSWORD_VARIABLE, "")
        if not password and not (self.is_insecure or self._is_on_this_machine):
            raise StateStoreError(
                f"there is no password for {self}: set {PASSWORD_VARIABLE} where this process runs, or add "
                "?password_file=FILE to the URL; ?insecure=true uses a Redis that asks for none"
            )
        return password or None

    @property
    def _is_on_this_machine(self) -> bool:
        return self.host == "localhost" or self.host == "::1" or self.host.startswith("127.")
