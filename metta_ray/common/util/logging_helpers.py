"""Logging of a program that may run as several ranks: rank 0 speaks, the others only warn."""

from __future__ import annotations

import logging
import sys

from metta_ray.common.util.ranks import process_count, process_rank


def setup_logging(level: int | str = logging.INFO) -> logging.Logger:
    """Sends the package's messages to stderr and returns its logger. Calling it again changes the level.

    Ranks above 0 stay silent below WARNING; with several ranks every line names its own.
    """
    logger = logging.getLogger("metta_ray")
    rank = process_rank()
    name = f"[rank {rank}] " if process_count() > 1 else ""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {name}%(message)s", "%H:%M:%S"))
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level)
    if rank > 0:
        logger.setLevel(max(logger.level, logging.WARNING))
    return logger
