"""Random numbers by purpose, so that what one part of a training draws does not depend on what another drew.

Rollouts and minibatches may live in one process or in several: with a stream of its own, each draws the same
numbers either way. All streams follow from the seed that ``torch.manual_seed`` (or ``prepare_process``) was given.
"""

from __future__ import annotations

import numpy as np
import torch

ACTIONS = 1
MINIBATCHES = 2
UPDATES = 3


def random_stream(purpose: int, device: torch.device | str) -> torch.Generator:
    """A generator for ``purpose``, the same for the same seed of this process."""
    generator = torch.Generator(device=device)
    generator.manual_seed(stream_seed(torch.initial_seed(), purpose))
    return generator


def stream_seed(root: int, purpose: int, *keys: int) -> int:
    """A seed for one use (``keys``, e.g. an epoch) of a purpose. root: torch's initial seed."""
    sequence = np.random.SeedSequence(root % 2**64, spawn_key=(purpose, *keys))
    return int(sequence.generate_state(1, np.uint64)[0])
