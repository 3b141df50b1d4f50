"""The statistics a verdict rests on: exact bounds for rates, for paired differences, and a bootstrap for distances.

Everything here takes numbers and returns numbers, in float64, with the random generator as an argument.

Shapes: N items, D features, R resamples; Q rates and Y counts that an exact test goes through.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, gammaln, rel_entr, xlog1py, xlogy
from scipy.stats import beta, binomtest
from scipy.stats import t as student

ALPHA = 0.05
"""Of all one-sided tests of one gate together, so that a result that deserves to fail passes at most one time in twenty."""

SPARED = 0.001
"""Of alpha, what the interval of a nuisance rate may miss, but never more than a tenth of it; see `paired_difference_upper`."""

TOLERANCE = 1e-4
"""To so much a bound is searched for; what is returned is the cautious end."""

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

TAIL = 20
"""Resamples that lie beyond a bound: of two, a quantile is as uncertain as the largest of all."""

GROUPS = 20
"""Of a jackknife: enough for its Student quantile to be near the normal one, few enough for a statistic that takes seconds."""
KERNEL_ROWS = 1024
"""Rows of a kernel matrix that are made at a time: all of N x N may be larger than this machine."""


def _checked(hits: int, n: int) -> None:
    if n < 1 or not 0 <= hits <= n:
        raise ValueError(f"expected 0 <= hits <= n with n >= 1, got hits={hits}, n={n}")


def confidence(alpha: float) -> str:
    """Of a bound at this level, for people: "95 %"."""
    return f"{100 * (1 - alpha):.3g} %"


def upper_bound(hits: int, n: int, *, alpha: float = ALPHA) -> float:
    """One-sided Clopper-Pearson upper bound of a rate: the largest p with P(X <= hits | n, p) >= alpha.

    Raises:
        ValueError: no trials, or more hits than trials.

    Source: Clopper & Pearson 1934, Biometrika 26(4), in its beta-quantile form.
    """
    _checked(hits, n)
    return 1.0 if hits == n else float(beta.ppf(1 - alpha, hits + 1, n - hits))


def lower_bound(hits: int, n: int, *, alpha: float = ALPHA) -> float:
    """One-sided Clopper-Pearson lower bound of a rate: the smallest p with P(X >= hits | n, p) >= alpha.

    Raises:
        ValueError: no trials, or more hits than trials.

    Source: Clopper & Pearson 1934, Biometrika 26(4), in its beta-quantile form.
    """
    _checked(hits, n)
    return 0.0 if hits == 0 else float(beta.ppf(alpha, hits, n - hits + 1))


def wilson_interval(hits: int, n: int) -> tuple[float, float]:
    """Two-sided 95 % Wilson interval of a rate: for people to read, never for the gate (it can undercover).

    Source: Wilson 1927, JASA 22(158).
    """
    _checked(hits, n)
    interval = binomtest(hits, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def paired_drop_upper(worse: int, better: int, n: int, *, alpha: float = ALPHA) -> float:
    """Upper bound of an accuracy drop, measured on the same n noises before and after.

    The drop is P(right before, wrong after) - P(wrong before, right after). Each rate is bounded exactly at alpha/2, so
    by Bonferroni the difference holds at alpha whatever their dependence: conservative, and valid at any n.

    Args:
        worse: items right before and wrong after.
        better: items wrong before and right after.
        n: items, both kinds and the concordant ones.

    Raises:
        ValueError: counts that do not fit into n.
    """
    if worse + better > n:
        raise ValueError(f"expected worse + better <= n, got {worse} + {better} > {n}")
    return upper_bound(worse, n, alpha=alpha / 2) - lower_bound(better, n, alpha=alpha / 2)


def paired_difference_upper(more: int, fewer: int, n: int, *, alpha: float = ALPHA) -> float:
    """Upper bound of the difference of two rates, of hits by one and by another on the same n items.

    All differences are in it that an exact test of "no less than so much" does not reject. Outcomes are ordered by the score
    statistic. How often the other alone hits is not known: the test takes the worst of the rates that an exact interval holds,
    and pays for what the interval may miss. It is as valid at any n as `paired_drop_upper`, and a third narrower where many
    items differ, as they do between two that both guess; where hardly any does, they are alike.

    Args:
        more: items that the one hits and the other misses.
        fewer: items that the other hits and the one misses.
        n: items, both kinds and the concordant ones.

    Raises:
        ValueError: counts that do not fit into n.

    Source: Tango 1998, Statistics in Medicine 17(8), for the statistic; Hsueh, Liu & Chen 2001, Biometrics 57(2), for the
        exact test; Berger & Boos 1994, JASA 89(427), for the interval. Its maximum is looked for at 21 rates.
    """
    if more < 0 or fewer < 0 or n < 1 or more + fewer > n:
        raise ValueError(f"expected n >= 1 items that hold more >= 0 and fewer >= 0, got n={n}, {more} and {fewer}")
    spared = min(SPARED, alpha / 10)  # what is paid for the interval must leave something of alpha: Holm's shares are small
    rejected, kept = 1.0, (more - fewer) / n
    while rejected - kept > TOLERANCE:
        middle = (kept + rejected) / 2
        if _paired_p_value(more, fewer, n, middle, spared) <= alpha:
            rejected = middle
        else:
            kept = middle
    return rejected


def _paired_p_value(more: int, fewer: int, n: int, delta: float, spared: float) -> float:
    """How likely an outcome is that speaks no less for a smaller difference, at worst, where the difference is `delta`."""
    low, high = lower_bound(fewer, n, alpha=spared / 2), upper_bound(fewer, n, alpha=spared / 2)
    q_Q1 = np.linspace(low, high, 21).clip(max(0.0, -delta), (1 - delta) / 2)[:, None]
    reach = 6 * math.sqrt(n * float(q_Q1[-1, 0])) + 6  # six standard deviations; what lies beyond is less than 1e-8
    y_Y = np.arange(max(0, int(n * q_Q1[0, 0] - reach)), min(n, math.ceil(n * q_Q1[-1, 0] + reach)) + 1, dtype=np.float64)
    most_Y = _most(y_Y, n, delta, float(_paired_score(more, np.float64(fewer), n, delta)))
    log_ways_Y = gammaln(n + 1) - gammaln(y_Y + 1) - gammaln(n - y_Y + 1)
    here_QY = np.exp(log_ways_Y + xlogy(y_Y, q_Q1) + xlog1py(n - y_Y, -q_Q1))
    p_Q1 = ((q_Q1 + delta) / np.maximum(1 - q_Q1, 1e-12)).clip(0, 1)
    at_most_QY = 1 - betainc(most_Y.clip(0) + 1, (n - y_Y - most_Y).clip(1e-9), p_Q1)
    at_most_QY = np.where(most_Y < 0, 0, np.where(most_Y >= n - y_Y, 1, at_most_QY))
    return float((at_most_QY * here_QY).sum(axis=1).max()) + spared


def _most(y_Y: Floats, n: int, delta: float, score: float) -> Floats:
    """(Y,) beside so many hits of the other alone, how many of the one alone have at most this score; -1: not even none."""
    low_Y, high_Y = np.full(len(y_Y), -1.0), n - y_Y
    while (high_Y > low_Y).any():
        middle_Y = np.ceil((low_Y + high_Y) / 2)
        within_Y = _paired_score(middle_Y, y_Y, n, delta) <= score + 1e-9
        low_Y, high_Y = np.where(within_Y, middle_Y, low_Y), np.where(within_Y, high_Y, middle_Y - 1)
    return low_Y


def _paired_score(more: Floats | int, fewer: Floats, n: int, delta: float) -> Floats:
    """(more - fewer - n delta) over its standard deviation, at the likeliest rates whose difference is delta."""
    b = (2 * n - more + fewer) * delta - more - fewer
    q = (np.sqrt(np.maximum(b * b + 8 * n * fewer * delta * (1 - delta), 0)) - b) / (4 * n)
    spread: Floats = np.sqrt(np.maximum(n * (2 * q + delta * (1 - delta)), 1e-12))
    return (more - fewer - n * delta) / spread


def moments(features_ND: Floats, weights_N: Floats) -> tuple[Floats, Floats]:
    """Weighted mean (D,) and covariance (D, D) of features, in float64.

    Raises:
        ValueError: fewer than two items, or a value that is not finite.
    """
    if len(features_ND) < 2 or not np.isfinite(features_ND).all():
        raise ValueError(f"expected at least two rows of finite features, got {len(features_ND)} rows")
    features_ND = features_ND.astype(np.float64, copy=False)
    weights_N = weights_N / weights_N.sum()
    mean_D = weights_N @ features_ND
    centred_ND = features_ND - mean_D
    unbiased = 1.0 - float(weights_N @ weights_N)
    return mean_D, (centred_ND * weights_N[:, None]).T @ centred_ND / unbiased


def frechet_distance(a: tuple[Floats, Floats], b: tuple[Floats, Floats]) -> float:
    """Squared 2-Wasserstein distance of two Gaussians given as (mean, covariance), in squared feature units.

        |mu_a - mu_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2)

    The symmetric form needs two eigendecompositions and no complex square root; eigenvalues that rounding pushed below
    zero count as zero.

    Source: Dowson & Landau 1982, J. Multivariate Anal. 12(3).
    """
    (mean_a, cov_a), (mean_b, cov_b) = a, b
    values, vectors = np.linalg.eigh(cov_a)
    root_a = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.linalg.eigvalsh(root_a @ cov_b @ root_a)
    trace = np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(np.clip(cross, 0, None)).sum()
    return float(max(0.0, (mean_a - mean_b) @ (mean_a - mean_b) + trace))


def frechet_distance_of_rows(a_ND: Floats, b_MD: Floats) -> float:
    """`frechet_distance` of the moments of two sets of features, by whichever way is the shorter.

    Of fewer items than features the trace of the root is the sum of the singular values of an (N, M) matrix,

        tr (A^1/2 B A^1/2)^1/2 = ||A^1/2 B^1/2||_* = ||X Y^T||_* / sqrt((N - 1) (M - 1)),   X, Y the centred features:

    for 1,000 items of 2,048 features a sixth of the time, and no root of a singular covariance.
    """
    if max(len(a_ND), len(b_MD)) >= a_ND.shape[1]:
        return frechet_distance(moments(a_ND, np.ones(len(a_ND))), moments(b_MD, np.ones(len(b_MD))))
    centred = [(rows - rows.mean(axis=0)) / np.sqrt(len(rows) - 1) for rows in (a_ND, b_MD)]
    apart_D = a_ND.mean(axis=0) - b_MD.mean(axis=0)
    root = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    return float(max(0.0, apart_D @ apart_D + sum(np.square(rows).sum() for rows in centred) - 2 * root))


def enough(resamples: int, alpha: float) -> int:
    """So many resamples as are asked for, or as many more as a bound at this level needs.

    Looks and attempts share alpha, so what is enough at 5 % is not where it is split: of 200 at 0.83 % one or two lie beyond.
    """
    return max(resamples, math.ceil(TAIL / alpha))


def resampled_rows(n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(n - 1,) of n rows, drawn with replacement: means of them vary as means of n items do.

    Means of n draws vary by (n - 1) / n of that, for resamples spread around their own mean. Over many items nobody sees it;
    of two it is half, and where a mean is taken over classes of a few items each, as much is lost of all of it.

    Raises:
        ValueError: fewer than two items, which say nothing of how much items vary.

    Source: McCarthy & Snowden 1985, "The bootstrap and finite population sampling", Vital and Health Statistics 2(95).
    """
    if n < 2:
        raise ValueError(f"expected at least two items to resample, got {n}")
    return rng.integers(0, n, n - 1)


def bootstrap_ratio_upper(
    ratio: Callable[[np.random.Generator], float],
    point: float,
    *,
    resamples: int,
    rng: np.random.Generator,
    alpha: float = ALPHA,
) -> float:
    """The upper one of `bootstrap_ratio_bounds`. Raises: ValueError, as there."""
    return bootstrap_ratio_bounds(ratio, point, resamples=resamples, rng=rng, alpha=alpha)[1]


def bootstrap_ratio_bounds(
    ratio: Callable[[np.random.Generator], float],
    point: float,
    *,
    resamples: int,
    rng: np.random.Generator,
    alpha: float = ALPHA,
) -> tuple[float, float]:
    """Two one-sided bootstrap bounds of a ratio of distances, the lower and the upper.

    Resampling inflates a Frechet distance (the copies look like extra structure), and it inflates both sides of the ratio,
    which pulls plain percentiles towards 1 and would flatter a damaged model. So only the spread of the log-ratio around
    its median is taken from the resamples, and it is laid around the point estimate.

    Args:
        ratio: draws one resample with the generator it is given and returns its ratio, > 0.
        point: the ratio on the data themselves, > 0.
        resamples: R, at least 100; more where alpha asks for more.

    Raises:
        ValueError: a ratio is not a positive finite number, or too few resamples.
    """
    if resamples < 100:
        raise ValueError(f"expected at least 100 resamples, got {resamples}")
    ratios_R = np.array([ratio(rng) for _ in range(enough(resamples, alpha))])
    if not np.isfinite([point, *ratios_R]).all() or min(point, ratios_R.min()) <= 0:
        raise ValueError("expected positive finite ratios; a distance of zero cannot be compared")
    logs_R = np.log(ratios_R)
    low, high = np.log(point) + np.quantile(logs_R, [alpha, 1 - alpha]) - np.median(logs_R)
    return float(np.exp(low)), float(np.exp(high))


def kernel_distance(a_ND: Floats, b_ND: Floats) -> float:
    """Squared maximum mean discrepancy of two equally many sets of features, unbiased, under the kernel (x . y / D + 1)^3.

        1/(n(n-1)) sum_(i != j)  k(a_i, a_j) + k(b_i, b_j) - k(a_i, b_j) - k(a_j, b_i)

    Row i of both may be of one image: pairs (i, i) are left out, so it is unbiased for pairs, too, where the estimator of two
    independent sets would come out too small. Equal sets give 0; below 0 is possible, as for every unbiased estimator of it.

    Raises:
        ValueError: fewer than two rows, or not equally many.

    Source: Binkowski et al. 2018 (KID), arXiv:1801.01401, for the kernel; Gretton et al. 2012, JMLR 13, eq. (4). Where the
    usual code averages over random subsets of 1,000, this takes every pair.
    """
    n, width = a_ND.shape
    if n < 2 or a_ND.shape != b_ND.shape:
        raise ValueError(f"expected two sets of at least two rows each, got {a_ND.shape} and {b_ND.shape}")
    total = 0.0
    for first in range(0, n, KERNEL_ROWS):
        rows = slice(first, first + KERNEL_ROWS)
        a_RD, b_RD = a_ND[rows], b_ND[rows]
        h_RN = _cubic(a_RD @ a_ND.T, width) + _cubic(b_RD @ b_ND.T, width)
        h_RN -= _cubic(a_RD @ b_ND.T, width) + _cubic(b_RD @ a_ND.T, width)
        total += float(h_RN.sum() - np.trace(h_RN, offset=first))
    return total / (n * (n - 1))


def _cubic(products: Floats, width: int) -> Floats:
    kernel: Floats = (products / width + 1) ** 3
    return kernel


def inception_score(probabilities_NK: Floats, splits: int, rng: np.random.Generator) -> tuple[float, float]:
    """Mean and standard deviation over splits of exp(mean KL(p(y|x) || p(y))); each split is in [1, K].

    The images are shuffled first: what comes sorted by class would score too low in every split.

    Args:
        probabilities_NK: rows sum to 1.
        splits: of as equal sizes as can be, each with its own p(y).

    Raises:
        ValueError: fewer images than splits.

    Source: Salimans et al. 2016, arXiv:1606.03498, section 4.
    """
    if not 1 <= splits <= len(probabilities_NK):
        raise ValueError(f"expected 1 to {len(probabilities_NK)} splits, got {splits}")
    shuffled_NK = probabilities_NK[rng.permutation(len(probabilities_NK))]
    scores = [
        float(np.exp(rel_entr(part_MK, part_MK.mean(axis=0)).sum(axis=1).mean()))
        for part_MK in np.array_split(shuffled_NK, splits)
    ]
    return float(np.mean(scores)), float(np.std(scores))


def jackknife_upper(
    statistic: Callable[[Rows], float], n: int, *, rng: np.random.Generator, groups: int = GROUPS, alpha: float = ALPHA
) -> float:
    """One-sided upper bound of a smooth statistic of n items, by leaving out one of G random groups of them at a time.

        theta + t_(1-alpha, G-1) SE,    SE^2 = (G-1)/G sum_g (theta_g - mean theta_g)^2

    For what takes too long to be resampled hundreds of times. It never repeats an item, so it does not inflate a Frechet
    distance as a bootstrap does.

    Args:
        statistic: of the items whose positions it is given, in order.
        groups: G; as equal in size as n allows.

    Raises:
        ValueError: fewer than two items a group, so that leaving one out says nothing of chance.

    Source: Kott 2001, "The Delete-a-Group Jackknife", J. Official Statistics 17(4).
    """
    if n < 2 * groups:
        raise ValueError(f"expected at least {2 * groups} items for {groups} groups, got {n}")
    member_N = rng.permutation(n) % groups
    left = np.array([statistic(np.flatnonzero(member_N != g)) for g in range(groups)])
    error = float(np.sqrt((groups - 1) / groups * ((left - left.mean()) ** 2).sum()))
    return statistic(np.arange(n)) + float(student.ppf(1 - alpha, groups - 1)) * error
