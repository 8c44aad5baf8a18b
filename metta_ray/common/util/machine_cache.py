"""What was measured on this machine, kept so that it is measured once: one small JSON file per question.

They lie in ``$METTA_RAY_CACHE``, else in ``~/.cache/metta_ray``. An answer holds for this processor, this number of
usable cores and this version of torch. Whatever is wrong with a file only means measuring again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from metta_ray.common.util.fs import atomic_write_text

CACHE_VARIABLE = "METTA_RAY_CACHE"
# What decides which kernels torch and oneDNN choose.
_INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
Json = Any


class MachineCache:
    """Answers to questions of one kind, ``name``, e.g. ``formulations``. Any number of processes may share it.

    directory: where the files lie; None: see the module's text.
    """

    def __init__(self, name: str, directory: Path | str | None = None) -> None:
        self.name = name
        self.directory = Path(directory) if directory is not None else cache_directory()

    def get_or_measure(self, key: Mapping[str, Any], measure: Callable[[], Json]) -> Json:
        """The kept answer, or that of ``measure()``, which is then kept if the file can be written.

        key: JSON values that, beside the machine, decide the answer. Errors of ``measure`` are passed on.
        """
        question = {"machine": machine(), "key": dict(key)}
        path = self.path(key)
        if (kept := _read(path, question)) is not None:
            return kept["answer"]
        answer = measure()
        text = json.dumps({"question": question, "answer": answer}, indent=1)
        with contextlib.suppress(OSError):
            try:
                atomic_write_text(path, text, replace=False)
            except OSError:
                # Whoever measured at the same time and was done first is right: all are to do the same afterwards.
                if (kept := _read(path, question)) is not None:
                    return kept["answer"]
                atomic_write_text(path, text)  # over a damaged one, or where the file system knows no links
        return answer

    def path(self, key: Mapping[str, Any]) -> Path:
        """The file that holds the answer to ``key`` on this machine."""
        text = json.dumps([machine(), dict(key)], sort_keys=True)
        return self.directory / f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def cache_directory() -> Path:
    """``$METTA_RAY_CACHE``, else ``~/.cache/metta_ray``."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given) if given else Path(os.path.expanduser("~")) / ".cache" / "metta_ray"


def machine() -> dict[str, Any]:
    """Processor, its instruction sets that matter, usable cores and torch version, as JSON values."""
    model, flags = _processor()
    return {
        "processor": model,
        "instruction_sets": [name for name in _INSTRUCTION_SETS if name in flags],
        "cores": len(os.sched_getaffinity(0)),
        "torch": metadata.version("torch"),
    }


def _processor() -> tuple[str, set[str]]:
    """Model name and flags as Linux tells them; elsewhere what Python knows."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip().lower(), value.strip())
    model = fields.get("model name") or platform.processor() or platform.machine()
    return model, set((fields.get("flags") or fields.get("features") or "").split())


def _read(path: Path, question: Json) -> Json:
    """What is kept of this question: ``{"question": …, "answer": …}``, or None."""
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(kept, dict) or "answer" not in kept:
        return None
    return kept if kept.get("question") == json.loads(json.dumps(question)) else None
