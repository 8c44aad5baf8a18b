"""Writing a few numbers per agent and step into large buffers.

On the host torch takes two to four microseconds for each such assignment, numpy a fifth of that; a rollout step makes
a dozen of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

Writable = np.ndarray[Any, Any] | Tensor


def writable(buffer: Tensor) -> Writable:
    """The buffer's own memory as an array; on a device the buffer itself."""
    return buffer.numpy() if buffer.is_cpu else buffer


def put(buffer: Writable, index: Any, values: Tensor | float) -> None:
    """``buffer[index] = values``; no gradient is kept."""
    if isinstance(values, Tensor):
        buffer[index] = values.numpy(force=True) if isinstance(buffer, np.ndarray) else values.detach()
    else:
        buffer[index] = values
