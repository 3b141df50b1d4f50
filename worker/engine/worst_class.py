"""What each of many classes lost, and whether all of them can be shown to have lost little.

An average hides a class, so each is compared with what it was, item by item. All must be shown to have lost less than a limit;
the class that is least sure is held to alpha and the surest to alpha over their number, as in Holm's procedure. A class of so
few items that it could not pass in the surest's place, were all answers as before, proves nothing; it must not hide what another
has lost, so it is left out and named.

Source: Holm 1979, Scand. J. Statistics 6(2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from worker.engine.errors import BadInput
from worker.engine.statistics import paired_difference_upper


@dataclass(frozen=True)
class Drop:
    """What a class lost, or all of them: items right before and wrong after, the reverse, and how many there are."""

    class_index: int | None
    lost: int
    gained: int
    n: int

    @classmethod
    def of(cls, k: int | None, before_N: np.ndarray, after_N: np.ndarray) -> Drop:
        """Of paired answers."""
        return cls(k, int((before_N & ~after_N).sum()), int((after_N & ~before_N).sum()), len(before_N))

    @property
    def value(self) -> float:
        """Accuracy lost."""
        return (self.lost - self.gained) / self.n

    def upper(self, alpha: float) -> float:
        """Of it."""
        return paired_difference_upper(self.lost, self.gained, self.n, alpha=alpha)

    def lower(self, alpha: float) -> float:
        """Of it."""
        return -paired_difference_upper(self.gained, self.lost, self.n, alpha=alpha)

    def best(self, alpha: float) -> float:
        """The bound of a model that answers as before."""
        return paired_difference_upper(0, 0, self.n, alpha=alpha)


@dataclass(frozen=True)
class Held:
    """The class that the others stand or fall with, the level of its bounds, and the classes that could not be held to anything."""

    worst: Drop
    level: float
    gates: bool
    refuted: bool
    of: int
    """Classes that it is the worst of."""
    rest: tuple[Drop, ...]


def hold(drops: Sequence[Drop], alpha: float, limit: float) -> Held:
    """Of classes that are to have lost less than `limit`, the one that decides.

    One that has surely lost more, of however few items; else the highest bound among those that could pass, each at the level
    that Holm's order gives it; else, where no class could pass, the least certain of all, which does not gate.

    Raises:
        BadInput: no classes.
    """
    if not drops:
        raise BadInput("expected a retained class, found none")
    share = alpha / len(drops)
    surest = max(drops, key=lambda drop: drop.lower(share))
    can = {n: paired_difference_upper(0, 0, n, alpha=share) <= limit for n in {drop.n for drop in drops}}
    able, rest = [drop for drop in drops if can[drop.n]], [drop for drop in drops if not can[drop.n]]
    if surest.lower(share) > limit:
        return Held(surest, share, True, True, len(drops), tuple(drop for drop in rest if drop is not surest))
    if not able:
        worst, level = _least_certain(drops, alpha)
        return Held(worst, level, False, False, len(drops), ())
    worst, level = _least_certain(able, alpha)
    return Held(worst, level, True, False, len(able), tuple(rest))


def _least_certain(drops: Sequence[Drop], alpha: float) -> tuple[Drop, float]:
    by_bound = sorted(drops, key=lambda drop: drop.upper(alpha))  # the surest first, it has the smallest p-value
    levels = [alpha / (len(drops) - i) for i in range(len(drops))]
    return max(zip(by_bound, levels, strict=True), key=lambda pair: pair[0].upper(pair[1]))
