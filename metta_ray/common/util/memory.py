"""What a process does with memory that it has no use for at the moment."""

from __future__ import annotations

import ctypes
import os

KEPT_BYTES = 1 << 30
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> None:
    """Lets this process keep blocks of up to KEPT_BYTES that it frees, and so much free memory in all.

    glibc gives large blocks back at once, so that each update has the system find and clear the same pages again: some
    130,000 page faults with the default network, 7 to 8 % of its time. Nothing happens where the C library is another
    one, or where the user has set its memory up.
    """
    if any(name in os.environ for name in _SETTINGS):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES)
