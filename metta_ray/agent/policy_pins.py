"""Pins: files in a policy's directory that protect it from deletion by any process. Loads no torch."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import socket
import time
from pathlib import Path

from metta_ray.common.errors import PolicyMissingError
from metta_ray.common.util import fs
from metta_ray.common.util.state_directory import MANIFEST

PIN_PREFIX = "pin."


def pin(directory: Path, holder: str | None, seconds: float) -> str:
    """Writes the holder's pin file; returns the holder's name. PolicyMissingError where there is no policy."""
    name = holder or _this_process()
    if not _is_there(directory):
        raise PolicyMissingError(f"{directory} is not there any more; choose another policy")
    fs.atomic_write_text(_pin_file(directory, name), json.dumps({"expires_at": time.time() + seconds}))
    if not _is_there(directory):
        fs.remove_tree(directory)  # the writing of the pin has made it anew
        raise PolicyMissingError(f"{directory} was deleted before it could be pinned; choose another policy")
    return name


def unpin(directory: Path, holder: str | None) -> None:
    _pin_file(directory, holder or _this_process()).unlink(missing_ok=True)


def is_pinned(directory: Path) -> bool:
    return any(_expires_at(file) > time.time() for file in directory.glob(f"{PIN_PREFIX}*"))


def fingerprint(directory: Path) -> str:
    """Tells a policy from any other that lies or will lie at the same place."""
    try:
        return hashlib.sha256((directory / MANIFEST).read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise PolicyMissingError(f"{directory} holds no complete policy: {error.strerror}; choose another") from None


def _is_there(directory: Path) -> bool:
    return (directory / MANIFEST).is_file()


def _expires_at(pin_file: Path) -> float:
    try:
        return float(json.loads(pin_file.read_text())["expires_at"])
    except FileNotFoundError:
        return 0.0
    except (ValueError, KeyError, TypeError):
        return math.inf  # unreadable: keep what somebody may still need


def _pin_file(directory: Path, holder: str) -> Path:
    return directory / (PIN_PREFIX + re.sub(r"[^\w.-]", "_", holder))


def _this_process() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"
