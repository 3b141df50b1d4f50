"""Bounds of comparisons: of two rates of different items, and of how well a score tells members from others.

Everything here takes numbers and returns numbers, in float64.

Shapes: M members, U others.
Source: Newcombe 1998, Statistics in Medicine 17(8), 873-890; DeLong, DeLong & Clarke-Pearson 1988, Biometrics 44(3).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from scipy.stats import beta, betabinom, binom, norm

from worker.engine.statistics import ALPHA, Floats, upper_bound


def difference_upper(hits_a: int, n_a: int, hits_b: int, n_b: int, *, alpha: float = ALPHA) -> float:
    """One-sided upper bound of rate a less rate b, of different items: Newcombe's hybrid score interval, his method 10.

    The lower bound is that of the reverse with its sign turned.

    Raises:
        ValueError: no trials, or more hits than trials.
    """
    (_, high), (low, _) = (_wilson(hits, n, alpha) for hits, n in ((hits_a, n_a), (hits_b, n_b)))
    a, b = hits_a / n_a, hits_b / n_b
    return a - b + sqrt((high - a) ** 2 + (b - low) ** 2)


def _wilson(hits: int, n: int, alpha: float) -> tuple[float, float]:
    if n < 1 or not 0 <= hits <= n:
        raise ValueError(f"expected 0 <= hits <= n with n >= 1, got hits={hits}, n={n}")
    z = float(norm.ppf(1 - alpha))
    middle, spread = 2 * hits + z * z, z * sqrt(z * z + 4 * hits * (1 - hits / n))
    return (middle - spread) / (2 * (n + z * z)), (middle + spread) / (2 * (n + z * z))


@dataclass(frozen=True)
class Auc:
    """Area under the ROC curve: how often a member scores above another, ties counting half; two one-sided bounds."""

    value: float
    lower: float
    upper: float


def auc(members_M: Floats, others_U: Floats, *, alpha: float = ALPHA) -> Auc:
    """The AUC of a score, with the normal bounds of DeLong's variance, cut to [0, 1].

    Raises:
        ValueError: fewer than two of either, or a score that is not finite.
    """
    if min(len(members_M), len(others_U)) < 2 or not (np.isfinite(members_M).all() and np.isfinite(others_U).all()):
        raise ValueError(f"expected at least two finite scores of either, got {len(members_M)} and {len(others_U)}")
    above_M, above_U = _placements(members_M, others_U), 1 - _placements(others_U, members_M)
    value = float(above_M.mean())
    error = sqrt(above_M.var(ddof=1) / len(above_M) + above_U.var(ddof=1) / len(above_U))
    reach = float(norm.ppf(1 - alpha)) * error
    return Auc(value, max(0.0, value - reach), min(1.0, value + reach))


def _placements(scores_M: Floats, among_U: Floats) -> Floats:
    """(M,) the share of the others that a score is above; of equal ones half."""
    ordered_U = np.sort(among_U)
    below, not_above = (np.searchsorted(ordered_U, scores_M, side=side) for side in ("left", "right"))
    return np.asarray((below + not_above) / (2 * len(ordered_U)), dtype=np.float64)


LEARNED = 1.6
"""By how much more than a given score's the AUC of one that is learned by cross-validation varies where there is nothing to
learn: of 40 sets of 400 and 200 the standard deviation was .038 for .025, and the mean .489. Which way it points is chance
then, and what it learned of nine tenths is wrong of the tenth."""


def chance_error(members: int, others: int) -> float:
    """Standard error of the AUC of a score that tells nothing: that of the Mann-Whitney statistic as a share."""
    return sqrt((members + others + 1) / (12 * members * others))


QUANTILES = 2**16
"""By which an expectation is taken."""


def hits_at(members_M: Floats, others_U: Floats, false_positive_rate: float) -> int:
    """How many members score above all but this share of the others."""
    return int((members_M > np.sort(others_U)[::-1][int(false_positive_rate * len(others_U))]).sum())


def chance_of_as_many(hits: int, members: int, others: int, false_positive_rate: float, *, auc: float = 0.5) -> float:
    """How likely at least so many `hits_at` are where members score as others do; see `chance_of_hits`.

    Beside few others the bound of a binomial rate takes luck for knowledge: the score that 1 % of twenty lie above is anywhere.

    Args:
        auc: how often a member scores above another for reasons that are known. The share of members above a score is then
            1 - (1 - s)^(auc / (1 - auc)), where s is that of others (Lehmann 1953, Ann. Math. Statist. 24(1), 23-43).
    """
    rank = int(false_positive_rate * others) + 1
    if auc == 0.5:
        return float(betabinom.sf(hits - 1, members, rank, others - rank + 1))
    share_Q = beta.ppf((np.arange(QUANTILES) + 0.5) / QUANTILES, rank, others - rank + 1)
    return float(binom.sf(hits - 1, members, 1 - (1 - share_Q) ** (auc / (1 - auc))).mean())


def chance_of_hits(members: int, others: int, false_positive_rate: float, max_rate: float, *, alpha: float = ALPHA) -> float:
    """How likely the bound of `hits_at`, as a rate, is at most `max_rate` where members score as others do.

    Exactly: what lies above the r-th of U exchangeable scores is Beta(r, U - r + 1), so that the hits are beta-binomial.
    """
    allowed = -1
    while allowed + 1 <= members and upper_bound(allowed + 1, members, alpha=alpha) <= max_rate:
        allowed += 1
    rank = int(false_positive_rate * others) + 1
    return float(betabinom.cdf(allowed, members, rank, others - rank + 1)) if allowed >= 0 else 0.0
