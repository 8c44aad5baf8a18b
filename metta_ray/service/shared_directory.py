"""Proof that two processes see the same run directory: one leaves a random word in it, the other reads it."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

from metta_ray.common.errors import ConfigError
from metta_ray.common.util import fs

NONCE_FILE = ".nonce"


def leave_nonce(run_dir: str) -> str:
    nonce = secrets.token_hex(8)
    fs.atomic_write_text(Path(run_dir) / NONCE_FILE, nonce)
    return nonce


def require_same_directory(run_dir: str, nonce: str) -> None:
    """ConfigError where ``run_dir`` here is not the directory in which ``nonce`` was left."""
    path = Path(run_dir) / NONCE_FILE
    found = path.read_text() if path.exists() else "nothing"
    if found != nonce:
        raise ConfigError(
            f"run directory {run_dir} on {socket.gethostname()} is not the coordinator's (found {found!r} in "
            f"{NONCE_FILE}); set data_dir to a place that all nodes share"
        )
