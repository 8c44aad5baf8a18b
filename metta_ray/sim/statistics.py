"""Bootstrap intervals of scores that are made of means over episodes. Pure functions of arrays.

Data of one simulation is an array ``(episodes, players)`` of returns: all players met the same episodes, so a row is
drawn as a whole. A statistic is a function of the players' means in each simulation; episodes are drawn anew within
each simulation, means and statistic computed, a few thousand times, and the middle 95 % of the results is the interval.
With fewer than about ten episodes such intervals are too narrow; with one there is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
CONFIDENCE = 0.95

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]
"""Means ``(…, simulations, players)`` → the number of interest ``(…)``."""


class Interval(NamedTuple):
    """A number and the ends of its interval; NaN where there is too little to tell."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def to_json(self) -> dict[str, float | None]:
        """What is not finite is no JSON, and no number to show."""
        return {name: number if math.isfinite(number) else None for name, number in self._asdict().items()}


NOTHING = Interval(math.nan, math.nan, math.nan)


def bootstrap(
    data: Sequence[Array],
    statistic: Statistic,
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """data: ``(episodes, players)`` for each simulation, with the same players. Simulations without an episode are left
    out; where none is left the result is ``NOTHING``. The same ``seed`` means the same interval."""
    data = [np.asarray(one, dtype=np.float64) for one in data if len(one)]
    if not data:
        return NOTHING
    rng = np.random.default_rng(seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(np.stack([one.mean(axis=0) for one in data])))
        if min(len(one) for one in data) < 2:
            return Interval(value, math.nan, math.nan)
        drawn = statistic(np.stack([_resampled_means(one, resamples, rng) for one in data], axis=1))
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn) or not math.isfinite(value):
        return Interval(value, math.nan, math.nan)
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def _resampled_means(data: Array, resamples: int, rng: np.random.Generator) -> Array:
    """``(resamples, players)``"""
    count = len(data)
    times_drawn = rng.multinomial(count, np.full(count, 1 / count), size=resamples)
    return np.asarray(times_drawn @ data / count, dtype=np.float64)


# Statistics. Players are columns.


def mean(column: int = 0) -> Statistic:
    """The mean over simulations."""
    return lambda means: means[..., column].mean(axis=-1)


def difference(one: int = 0, other: int = 1) -> Statistic:
    """One player's mean less another's."""
    return lambda means: (means[..., one] - means[..., other]).mean(axis=-1)


def share(player: int, random: int, scripted: int) -> Statistic:
    """(player - random) / (scripted - random) in each simulation, and the mean of these; 0: chance, 1: the script."""
    return lambda means: _shares(means, player, random, scripted).mean(axis=-1)


def share_difference(one: int, other: int, random: int, scripted: int) -> Statistic:
    """One player's share less another's."""

    def statistic(means: Array) -> Array:
        shares = _shares(means, one, random, scripted) - _shares(means, other, random, scripted)
        return np.asarray(shares.mean(axis=-1), dtype=np.float64)

    return statistic


def _shares(means: Array, player: int, random: int, scripted: int) -> Array:
    return np.asarray(
        (means[..., player] - means[..., random]) / (means[..., scripted] - means[..., random]), dtype=np.float64
    )
