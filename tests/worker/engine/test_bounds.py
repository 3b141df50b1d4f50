"""Bounds of means, quantiles and the worst of several rates, against slow and obvious ways to the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from worker.engine.bounds import STAKE, Worst, mean_lower, mean_upper, quantile_bounds, worst_upper
from worker.engine.statistics import lower_bound, upper_bound


def capital_passes(values: list[float], mean: float, alpha: float) -> bool:
    """The bet as it is told: one item after the other."""
    capital, seen, n = 1.0, [], len(values)
    for x in values:
        means = [(0.5 + sum(seen[: i + 1])) / (i + 2) for i in range(len(seen))]
        variance = (0.25 + sum((y - m) ** 2 for y, m in zip(seen, means, strict=True))) / (len(seen) + 1)
        stake = min(math.sqrt(2 * math.log(1 / alpha) / (n * variance)), STAKE / (1 - mean))
        capital *= 1 + stake * (mean - x)
        if capital >= 1 / alpha:
            return True
        seen.append(x)
    return False


@pytest.mark.parametrize("alpha", [0.05, 0.005])
def test_mean_is_bounded_where_the_bet_is_won(alpha: float) -> None:
    values = np.random.default_rng(1).beta(0.3, 3.0, 60)
    bound = mean_upper(values, alpha=alpha)
    assert capital_passes(values.tolist(), bound + 1e-4, alpha)
    assert not capital_passes(values.tolist(), bound - 1e-4, alpha)
    assert mean_lower(1 - values, alpha=alpha) == pytest.approx(1 - bound)


def test_bound_of_a_mean_holds_as_often_as_it_says() -> None:
    # Of 400 sets of a mean of 0.05, at most 20 may be bounded below it; 29 is 20 and two standard deviations.
    rng = np.random.default_rng(2)
    missed = sum(mean_upper(rng.binomial(1, 0.05, 200).astype(float)) < 0.05 for _ in range(400))
    assert missed <= 29
    missed = sum(mean_upper(rng.beta(0.5, 9.5, 200)) < 0.05 for _ in range(400))
    assert missed <= 29


def test_two_hundred_items_near_zero_show_a_mean_below_a_twentieth() -> None:
    assert mean_upper(np.zeros(200)) < 0.03 < math.sqrt(math.log(20) / 400)  # Hoeffding's
    assert mean_upper(np.full(200, 0.01)) < 0.05
    assert mean_upper(np.ones(200)) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("values", [[], [1.1], [-0.1], [float("nan")]])
def test_mean_of_what_is_no_share_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="expected values from 0 to 1"):
        mean_upper(np.array(values))


def test_quantile_is_bounded_by_order_statistics() -> None:
    # P(X <= 195) for X of 200 and 0.95 is 0.974, P(X <= 194) is 0.938: the 196th smallest of 200. As many as four may be above
    # zero, just as 4 of 200 hits bound a rate by 0.05.
    values = np.random.default_rng(3).permutation(np.arange(200.0))
    lower, upper = quantile_bounds(values, 0.95)
    assert upper == 195.0
    assert upper_bound(4, 200) <= 0.05 < upper_bound(5, 200)
    assert lower is not None
    assert binom.cdf(lower, 200, 0.95) <= 0.05 < binom.cdf(lower + 1, 200, 0.95)


def test_so_few_items_bound_no_quantile() -> None:
    assert quantile_bounds(np.arange(58.0), 0.95)[1] is None  # 0.95^58 = 0.051
    assert quantile_bounds(np.arange(59.0), 0.95)[1] == 58.0


@pytest.mark.parametrize("hits", [[0, 0, 0], [4, 0, 2], [3, 3, 3], [9, 0, 0]])
def test_worst_is_below_a_threshold_exactly_if_holm_rejects_all(hits: list[int]) -> None:
    n, alpha = 100, 0.05
    worst = max(worst_upper(hits, n, alpha=alpha))
    for threshold in np.linspace(0.01, 0.3, 59):
        p_values = sorted(binom.cdf(h, n, threshold) for h in hits)  # of "the rate is at least the threshold"
        rejects_all = all(p <= alpha / (len(hits) - i) for i, p in enumerate(p_values))
        assert bool(worst <= threshold) is bool(rejects_all)


def test_the_worst_of_several_rates_is_the_surest_to_be_large_whatever_their_numbers() -> None:
    # One of one is nothing beside thirty of forty: .05 / 3 against about .57.
    worst = Worst.of([1, 30, 0], [1, 40, 1000], alpha=0.05)
    assert worst.index == 1
    assert worst.lower == pytest.approx(lower_bound(30, 40, alpha=0.05 / 3))
    assert worst.upper == 1.0  # of the one of one
    assert worst.least == max(worst_upper([0, 0, 0], [1, 40, 1000], alpha=0.05)) == pytest.approx(0.95)


def test_bounds_of_rates_of_equally_many_are_holms() -> None:
    worst = Worst.of([0, 3, 1], [50, 50, 50], alpha=0.05)
    assert (worst.index, worst.upper) == (1, max(worst_upper([0, 3, 1], 50, alpha=0.05)))
    assert worst.least == pytest.approx(1 - (0.05 / 3) ** (1 / 50))
