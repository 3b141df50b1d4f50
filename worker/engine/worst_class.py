"""What each of many classes lost, and whether all of them can be shown to have lost little.

An average hides a class, so each is compared with what it was, item by item. All must be shown to have lost less than a limit;
the class that is least sure is held to alpha and the surest to alpha over their number, as in Holm's procedure. A class of so
few items that it could not pass in the surest's place, were all answers as before, proves nothing; it must not hide what
another has lost, so it is left out and named.

Source: Holm 1979, Scand. J. Statistics 6(2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from worker.contract import Finding
from worker.engine.errors import BadInput
from worker.engine.rates import underpowered
from worker.engine.statistics import paired_difference_upper
from worker.engine.verifier import Env


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
    """The class that the others stand or fall with, the level of its bound, and the classes that could be held to nothing."""

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


def findings(env: Env, check: str, drops: Sequence[Drop], limit: float | None, *, what: str) -> list[Finding]:
    """`worst_class_drop` of the class that decides, and an underpowered one of the classes that could not pass, if any.

    Its lower bound is at alpha over the number of classes: so the worst of many is refuted no more often than one is.

    Args:
        limit: None reports, and gates nothing.
        what: the items, in the plural.
    """
    held = hold(drops, env.alpha, 1.0 if limit is None else limit)
    upper, lower = held.worst.upper(held.level), held.worst.lower(env.alpha / len(drops))
    worst = _finding(env, check, held.worst, (lower, upper), limit, f"the class that lost most of {held.of}", what)
    if limit is None:
        return [worst]
    if not held.gates:
        return [underpowered(_too_few(worst))]
    worst = worst.model_copy(update={"open": not held.refuted and upper > limit})
    if not held.rest:
        return [worst]
    few = max(held.rest, key=lambda drop: drop.upper(env.alpha))
    bounds = few.lower(env.alpha), few.upper(env.alpha)
    said = f"the least certain of {len(held.rest)} that so few could not show of a model that lost nothing"
    return [worst, underpowered(_finding(env, check, few, bounds, limit, said, what))]


def _too_few(finding: Finding) -> Finding:
    return finding.model_copy(update={"detail": f"{finding.detail}; so few could not show it of a model that lost nothing"})


def _finding(
    env: Env, check: str, drop: Drop, bounds: tuple[float, float], limit: float | None, said: str, what: str
) -> Finding:
    lower, upper = bounds
    assert drop.class_index is not None, "of all classes together there is no worst"
    name = env.spec.class_names[drop.class_index]
    return Finding(
        check=check,
        metric="worst_class_drop",
        subject="candidate",
        gating=limit is not None,
        passed=None if limit is None else upper <= limit,
        value=drop.value,
        lower95=lower,
        upper95=upper,
        comparator=None if limit is None else "le",
        threshold=limit,
        n=drop.n,
        count=drop.lost,
        class_index=drop.class_index,
        class_name=name,
        detail=f"of {drop.n} {what} of {name!r}, {said}, {drop.lost} were recognised only before and {drop.gained} only after",
    )


def _least_certain(drops: Sequence[Drop], alpha: float) -> tuple[Drop, float]:
    by_bound = sorted(drops, key=lambda drop: drop.upper(alpha))  # the surest first, it has the smallest p-value
    levels = [alpha / (len(drops) - i) for i in range(len(drops))]
    return max(zip(by_bound, levels, strict=True), key=lambda pair: pair[0].upper(pair[1]))
