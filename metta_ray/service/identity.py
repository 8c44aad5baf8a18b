"""Who a child of the coordinator is, for names in the dashboard, log prefixes and fencing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Identity:
    """run: name of the run. role: ``rollout``, ``learner`` or ``evaluator``.

    number: never used twice in a run. For a rollout worker it is its random stream: environments draw their seeds
    from (run seed, number), so no two lives of any worker repeat an episode. incarnation: a random id that is
    returned with every answer. generation: of the coordinator that created it; orders from older ones are refused.
    """

    run: str
    role: str
    number: int
    incarnation: str
    generation: int

    @property
    def actor_name(self) -> str:
        return f"metta/{self.run}/{self.role}-{self.number}"

    def __str__(self) -> str:
        return f"{self.role}-{self.number}(run={self.run})"


def namespace_of(run: str) -> str:
    """Ray namespace of a run's actors."""
    return f"metta-{run}"


def coordinator_name(run: str) -> str:
    return f"metta/{run}/coordinator"
