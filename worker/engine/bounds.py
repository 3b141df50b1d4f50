"""Bounds beside those of rates and distances: of a mean, of a quantile, and of the worst of several.

Numbers in, numbers out, in float64, exact at any n. See `statistics` for the rest.

Shapes: N items, S settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.stats import binom

from worker.engine.statistics import ALPHA, TOLERANCE, Floats, lower_bound, upper_bound

STAKE = 0.75
"""Of what may be lost in one round of the bet, how much is risked at most. One item far off then never ends the game."""


def mean_upper(values_N: Floats, *, alpha: float = ALPHA) -> float:
    """One-sided upper bound of the mean of a distribution on [0, 1], whatever its shape.

    A game that is fair where the mean is m: each item in turn multiplies a capital by 1 + stake (m - x), the stake chosen
    before x is seen. By Ville's inequality the capital ever passes 1 / alpha at most alpha of the time, so all m are rejected
    for which it does. Of 200 items near zero the bound is about 0.02, where Hoeffding's is 0.09.

    Args:
        values_N: independent, in [0, 1], in the order in which they were drawn.

    Raises:
        ValueError: no items, or a value outside of [0, 1].

    Source: Waudby-Smith & Ramdas 2024, "Estimating means of bounded random variables by betting", JRSS B 86(1), section 4, with
        their predictable plug-in stakes.
    """
    n = len(values_N)
    if n < 1 or not ((values_N >= 0) & (values_N <= 1)).all():
        raise ValueError(f"expected values from 0 to 1, got {n} of which some are not")
    wanted_N = _stakes(values_N, alpha)
    passed, rejected = float(values_N.mean()), 1.0
    while rejected - passed > TOLERANCE / 4:
        middle = (passed + rejected) / 2
        if _best_capital(values_N, wanted_N, middle) >= np.log(1 / alpha):
            rejected = middle
        else:
            passed = middle
    return rejected


def mean_lower(values_N: Floats, *, alpha: float = ALPHA) -> float:
    """The same from below. Raises: ValueError; see `mean_upper`."""
    return 1.0 - mean_upper(1.0 - values_N, alpha=alpha)


def _stakes(values_N: Floats, alpha: float) -> Floats:
    """(N,) what is best staked in each round, by the variance of the rounds before: sqrt(2 log(1/alpha) / (n v))."""
    n, seen_N = len(values_N), np.arange(1, len(values_N) + 1)
    mean_N = (0.5 + values_N.cumsum()) / (seen_N + 1)
    variance_N = (0.25 + np.square(values_N - mean_N).cumsum()) / (seen_N + 1)
    before_N = np.concatenate([[0.25], variance_N[:-1]])
    stakes_N: Floats = np.sqrt(2 * np.log(1 / alpha) / (n * before_N))
    return stakes_N


def _best_capital(values_N: Floats, wanted_N: Floats, mean: float) -> float:
    """Log of the most that the capital ever is."""
    stake_N = np.minimum(wanted_N, STAKE / (1 - mean))
    return float(np.log1p(stake_N * (mean - values_N)).cumsum().max())


def quantile_bounds(values_N: Floats, q: float, *, alpha: float = ALPHA) -> tuple[float | None, float | None]:
    """One-sided lower and upper bound of the q-quantile, each an item; None where so few items bound it on no side.

    The r-th smallest item is above the quantile with probability P(X < r), X binomial of n and q.

    Source: David & Nagaraja 2003, "Order Statistics", section 7.1.
    """
    below_N, n = np.sort(values_N), len(values_N)
    chance_N = binom.cdf(np.arange(n), n, q)  # of at most r - 1, for r = 1 to n
    above, under = np.flatnonzero(chance_N >= 1 - alpha), np.flatnonzero(chance_N <= alpha)
    return (float(below_N[under[-1]]) if len(under) else None), (float(below_N[above[0]]) if len(above) else None)


def worst_upper(hits_S: Sequence[int], n: int | Sequence[int], *, alpha: float = ALPHA) -> list[float]:
    """Clopper-Pearson upper bounds of several rates, of n trials each, so that all hold together: Holm's levels.

    The largest is at most a threshold exactly if Holm's procedure rejects for every setting that its rate is above it: the
    setting that is surest to be below is tested at alpha / S, the next at alpha / (S - 1), the last at alpha.

    Args:
        n: of all, or of each: then the order is that of their bounds at alpha, which is that of p-values where n is one.

    Source: Holm 1979, Scandinavian J. Statistics 6(2).
    """
    n_S = [n] * len(hits_S) if isinstance(n, int) else n
    order = sorted(range(len(hits_S)), key=lambda s: upper_bound(hits_S[s], n_S[s], alpha=alpha))
    bounds = [0.0] * len(hits_S)
    for place, s in enumerate(order):
        bounds[s] = upper_bound(hits_S[s], n_S[s], alpha=alpha / (len(hits_S) - place))
    return bounds


@dataclass(frozen=True)
class Worst:
    """The largest of several rates, none of which may be above a threshold."""

    index: int
    """Whose it is."""
    lower: float
    """At alpha / S: a threshold below it is refuted, by any of them."""
    upper: float
    """At Holm's levels."""
    least: float
    """What the upper bound would be if none had a hit: nobody can be held to less."""

    @classmethod
    def of(cls, hits_S: Sequence[int], n_S: Sequence[int], *, alpha: float = ALPHA) -> Self:
        """Of hits in so many trials, each. Raises: ValueError: a rate of no trials."""
        lower_S = [lower_bound(hits, n, alpha=alpha / len(hits_S)) for hits, n in zip(hits_S, n_S, strict=True)]
        index = max(range(len(hits_S)), key=lambda s: (lower_S[s], hits_S[s] / n_S[s]))
        upper, least = (max(worst_upper(some, n_S, alpha=alpha)) for some in (hits_S, [0] * len(hits_S)))
        return cls(index, lower_S[index], upper, least)
