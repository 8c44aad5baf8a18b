"""What one rollout worker made in one horizon, on its way to a learner. Loads no torch.

Letters: S segments (rows; one agent × one horizon each), T steps, K = T + 1, L LSTM layers, H hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metta_ray.common.util.packed_arrays import PackedArrays


@dataclass(frozen=True)
class FragmentHeader:
    """The few numbers about a fragment that travel apart from its arrays.

    run, generation, ticket: the order that it answers. stream, incarnation: the life of the worker that made it.
    policy_id: whose experience it is. policy_version: of the weights that acted, the same for all its steps.
    segments, horizon: S and T. counted_steps: agent steps that a mask lets count, at most S · T.
    outcomes: (task id, score) per episode that ended, in order, for the curriculum.
    stats: dotted path → values of those episodes, as ``accumulate_rollout_stats`` gathers them.
    seconds: where the worker's time went: ``environment``, ``inference``, ``transport``, ``waiting``.
    fault: why it must not be trained on (a number that is none), or None.
    sequence: how many fragments this life of the worker made before it.
    """

    run: str
    generation: int
    ticket: int
    stream: int
    incarnation: str
    policy_version: int
    segments: int
    horizon: int
    counted_steps: int
    size_bytes: int
    outcomes: tuple[tuple[str, float], ...] = ()
    stats: Mapping[str, list[Any]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    fault: str | None = None
    policy_id: str = "main"
    sequence: int = 0

    @property
    def agent_steps(self) -> int:
        """S · T: what the ticket asked for."""
        return self.segments * self.horizon


@dataclass(frozen=True)
class Fragment:
    """The arrays of S segments in one allocation.

    obs ``(S, T, …)`` in the environment's dtype, tokens without their padding; actions ``(S, T, …)``;
    values, logprobs float32 ``(S, T)``; rewards, dones, truncateds, truncation_values float32 and masks bool
    ``(S, K)``; last_values ``(S,)``; first_last_actions ``(S, …)``, first_lstm_h, first_lstm_c ``(S, L, H)``: what
    the policy carried into the first step. See ``rl/experience.py`` for what the columns mean.
    """

    packed: PackedArrays

    def arrays(self) -> dict[str, NDArray[Any]]:
        return self.packed.arrays()

    @property
    def size_bytes(self) -> int:
        return self.packed.size_bytes


def fault_of(arrays: Mapping[str, NDArray[Any]]) -> str | None:
    """Names the first number that is none; None where all are finite. Integers need no look."""
    for name, array in arrays.items():
        # One sum tells of every NaN and infinity in a fraction of the time that a look at each would take.
        if array.dtype.kind == "f" and not math.isfinite(float(np.sum(array, dtype=np.float64))):
            bad = np.argwhere(~np.isfinite(array))
            if len(bad):
                place = tuple(int(index) for index in bad[0])
                return f"{name}[{', '.join(map(str, place))}] is {array[place]}"
    return None
