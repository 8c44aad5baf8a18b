"""Which part of the training limits it, and what to change first.

Workers and learner run side by side and wait for each other. The side that waits less is the one the other side
waits for; within it, the activity that takes most of the time is the bottleneck. Two things would mislead:

- workers beyond the useful number have nothing to do whatever the learner does: their share of the waiting is left out;
- where both sides wait at the same time neither limits the other. They do so for at least the share by which their
  waiting adds up to more than the whole, and what they wait for is on its way between them: transport, if that takes
  more than anything that either side does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Name = Literal["environments", "inference", "transport", "learner"]

TURNS = 0.2
"""Where even the side that waits less waits for this share of its time, the two take turns instead of overlapping."""


@dataclass(frozen=True)
class EpochTimes:
    """Where the time of one epoch went: seconds summed over workers, and seconds summed over learner replicas."""

    env_s: float
    inference_s: float
    transport_s: float
    """of workers: packing and storing fragments, fetching weights"""
    no_ticket_s: float
    """of workers: waiting for a ticket"""
    training_s: float
    staging_s: float
    """of the learner: copying fragments into its tensors"""
    no_data_s: float
    """of the learner: waiting for a batch"""
    num_workers: int
    useful_workers: int
    num_replicas: int = 1
    target_staleness: int = 1


@dataclass(frozen=True)
class Bottleneck:
    """What limits the training. ``found``: the shares that say so; ``lever``: what to change first."""

    name: Name
    shares: dict[str, float]
    """Of worker time: environments, inference, transport, no_ticket. Of learner time: training, staging, no_data."""
    found: str
    lever: str

    @property
    def text(self) -> str:
        """One sentence for people."""
        return f"limited by {self.name} ({self.found}): {self.lever}"


def verdict(times: EpochTimes) -> Bottleneck | None:
    """None while the workers or the learner have spent no time yet."""
    shares = _shares(times)
    if shares is None:
        return None
    on_its_way = shares["no_data"] + shares["no_ticket"] - 1.0
    name: Name
    if on_its_way > max(shares[part] for part in (*_WORKER_PARTS, "training", "staging")):
        name = "transport"
        found = f"workers waited {_percent(shares['no_ticket'])}, the learner {_percent(shares['no_data'])}"
        lever = f"{_LONGER_FRAGMENTS}, or raise pacing.target_staleness, so that more is under way at a time"
    elif shares["no_data"] >= shares["no_ticket"]:
        name = max(_WORKER_PARTS, key=shares.__getitem__)
        found = f"{_percent(shares[name])} of worker time; learner waited {_percent(shares['no_data'])}"
        lever = _worker_lever(name, times)
    else:
        name = "learner" if shares["training"] >= shares["staging"] else "transport"
        busy = "training" if name == "learner" else "staging"
        found = f"{busy} {_percent(shares[busy])} of learner time; workers waited {_percent(shares['no_ticket'])}"
        lever = _learner_lever(name, times)
    if times.target_staleness == 0 and min(shares["no_data"], shares["no_ticket"]) >= TURNS:
        lever = "set pacing.target_staleness to 1, so that collecting and training overlap"
    return Bottleneck(name, shares, found, lever)


_WORKER_PARTS: tuple[Name, ...] = ("environments", "inference", "transport")
_LONGER_FRAGMENTS = "make fragments longer (rollout.fragment_steps)"


def _shares(times: EpochTimes) -> dict[str, float] | None:
    of_workers = {
        "environments": times.env_s,
        "inference": times.inference_s,
        "transport": times.transport_s,
        "no_ticket": _waiting_of_useful_workers(times),
    }
    of_learner = {"training": times.training_s, "staging": times.staging_s, "no_data": times.no_data_s}
    worker_s, learner_s = sum(of_workers.values()), sum(of_learner.values())
    if worker_s <= 0 or learner_s <= 0:
        return None
    return {name: seconds / worker_s for name, seconds in of_workers.items()} | {
        name: seconds / learner_s for name, seconds in of_learner.items()
    }


def _waiting_of_useful_workers(times: EpochTimes) -> float:
    surplus = max(0, times.num_workers - times.useful_workers) / max(1, times.num_workers)
    all_s = times.env_s + times.inference_s + times.transport_s + times.no_ticket_s
    return max(0.0, times.no_ticket_s - surplus * all_s)


def _worker_lever(name: Name, times: EpochTimes) -> str:
    if name == "transport":
        return f"{_LONGER_FRAGMENTS}, so that each one's fixed cost counts less"
    if times.num_workers < times.useful_workers:
        return f"add rollout workers ({times.num_workers} now, up to {times.useful_workers} are useful)"
    if name == "inference":
        return "give the workers more environments each (rollout.num_envs), more threads or a share of a GPU"
    return (
        f"raise batch_size or lower rollout.fragment_steps, so that more than {times.useful_workers} rollout workers "
        "are useful, and add some"
    )


def _learner_lever(name: Name, times: EpochTimes) -> str:
    if name == "transport":
        return f"{_LONGER_FRAGMENTS}, so that fewer are copied per batch"
    return f"add learner replicas ({times.num_replicas} now), raise minibatch_size or lower update_epochs"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
