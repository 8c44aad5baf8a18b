"""Which of several policies is best, when scores are uncertain. Pure functions of returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from metta_ray.sim.comparing import References, Returns, difference, score
from metta_ray.sim.statistics import Interval


class Promotion(NamedTuple):
    """best: index. gains: of each policy over the best before it (None for the first)."""

    best: int
    gains: tuple[Interval | None, ...]


def choose_best(players: Sequence[Returns], references: References) -> Promotion:
    """players: in the order of their versions. One takes the place of the best so far only if it is better beyond the
    interval of their difference over the same episodes: luck alone promotes nobody. ValueError without players."""
    if not players:
        raise ValueError("there is no policy to choose from")
    best, gains = 0, list[Interval | None]([None])
    for index in range(1, len(players)):
        gain = difference(players[index], players[best], references)
        gains.append(gain)
        if gain.low > 0:
            best = index
    return Promotion(best, tuple(gains))


class Regression(NamedTuple):
    """drop: the highest score so far less the latest one. is_certain: its interval excludes 0."""

    best: int
    latest: int
    drop: Interval

    @property
    def is_certain(self) -> bool:
        return self.drop.low > 0


def find_regression(
    players: Sequence[Returns], references: References, simulations: Sequence[str] | None = None
) -> Regression | None:
    """How far the last of ``players`` fell below the one of the highest score; None if there is only one, or it is."""
    latest = len(players) - 1
    scores = [score(player, references, simulations).value for player in players]
    best = max(range(len(players)), key=lambda index: (scores[index], index), default=latest)
    if best == latest:
        return None
    return Regression(best, latest, difference(players[best], players[latest], references, simulations))
