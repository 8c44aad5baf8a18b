"""The process around a training: its threads, its randomness, and how it is asked to stop."""

from __future__ import annotations

import os
import random
import signal
from types import FrameType

import numpy as np
import torch

from metta_ray.common.util.memory import keep_freed_memory
from metta_ray.rl.distributed import all_reduce_sum, setup_distributed_vars


def prepare_process(seed: int, *, threads: int = 1, rank: int | None = None) -> None:
    """Seeds every generator of this process, sets torch's threads (0: this rank's share of the cores) and keeps memory.

    Ranks get different numbers; ``rank`` None is that in the process group. Call it in the thread that computes.
    """
    keep_freed_memory()
    _, world_size, own_rank = setup_distributed_vars()
    words = np.random.SeedSequence(seed, spawn_key=(own_rank if rank is None else rank,)).generate_state(3)
    torch.manual_seed(int(words[0]))
    np.random.seed(int(words[1]))
    random.seed(int(words[2]))
    prepare_thread(threads or max(1, len(os.sched_getaffinity(0)) // world_size))


def prepare_thread(threads: int) -> None:
    """Settings that each computing thread of a process must be given anew.

    Denormal numbers are flushed to zero: they slow some kernels a hundredfold.
    """
    # The first question in a thread gives it the number that any thread set last: it must come before, not after.
    torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)


class StopRequest:
    """Turns the first SIGINT or SIGTERM into a wish to stop at the end of the epoch; the second one acts as usual.

    Ranks agree: if one was asked, all stop after the same epoch.
    """

    def __init__(self) -> None:
        self._asked = False
        self._previous = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}

    def is_set(self) -> bool:
        """Every rank must call it, once per epoch."""
        return bool(all_reduce_sum(torch.tensor(float(self._asked))) > 0)

    def restore(self) -> None:
        """Gives the signals back to whoever had them."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._asked = True
        signal.signal(number, self._previous[signal.Signals(number)])
