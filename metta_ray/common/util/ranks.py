"""Which of several processes of one run this is, without importing torch."""

from __future__ import annotations

import os
import sys
from typing import Any


def process_rank() -> int:
    """Rank in the torch process group if there is one, else what torchrun's environment says, else 0."""
    distributed = _distributed()
    return int(distributed.get_rank()) if distributed else int(os.environ.get("RANK", "0"))


def process_count() -> int:
    """World size, found the same way; at least 1."""
    distributed = _distributed()
    return int(distributed.get_world_size()) if distributed else int(os.environ.get("WORLD_SIZE", "1"))


def is_master() -> bool:
    """Rank 0 writes files and logs; the others do not."""
    return process_rank() == 0


def _distributed() -> Any:
    torch = sys.modules.get("torch")
    distributed = getattr(torch, "distributed", None)
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed
