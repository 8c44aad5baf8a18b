"""Admission: is an arriving fragment trained on, or dropped, and why.

Asked twice for each fragment: when it arrives, and again when its batch is put together, because the learner
may have gone on in between. The bound on staleness is hard: nothing beyond it is ever trained on. It cannot
starve the learner: the version only grows by training, so more than ``max_staleness`` updates were committed
while a fragment became too stale.
"""

from __future__ import annotations

from dataclasses import dataclass, field

FOREIGN = "foreign"
"""Sent by an earlier generation of the run, or by a worker that has been replaced."""
INVALID = "invalid"
"""Not finite, out of range, of another shape: no number of it reaches the learner."""
STALE = "stale"
"""Collected with a policy too many versions old, or with one that a roll-back undid."""

REASONS = (FOREIGN, INVALID, STALE)


@dataclass(frozen=True)
class Admit:
    """The fragment is trained on."""


@dataclass(frozen=True)
class Drop:
    """The fragment is not trained on. ``reason`` is one of REASONS (ledger, metric label), ``detail`` for the log."""

    reason: str
    detail: str = field(default="", compare=False)


Decision = Admit | Drop


def admit(
    *,
    policy_version: int,
    train_version: int,
    max_staleness: int,
    generation: int,
    current_generation: int,
    incarnation: str,
    known_incarnation: str | None,
    fault: str | None,
) -> Decision:
    """staleness = train_version - policy_version; equal to ``max_staleness`` is admitted, one more is not.

    ``policy_version`` is the oldest version that acted in the fragment, ``train_version`` the learner's before
    the update. ``known_incarnation`` is None for a worker that is no longer one of ours. Who sent it is asked
    first: the content of a stranger's fragment says nothing about our environments.
    """
    if generation != current_generation:
        return Drop(FOREIGN, f"generation {generation}, the run is at {current_generation}")
    if incarnation != known_incarnation:
        return Drop(FOREIGN, f"incarnation {incarnation}, known is {known_incarnation}")
    if fault is not None:
        return Drop(INVALID, fault)
    staleness = train_version - policy_version
    if not 0 <= staleness <= max_staleness:
        return Drop(STALE, f"staleness {staleness}, allowed are 0 to {max_staleness}")
    return Admit()
