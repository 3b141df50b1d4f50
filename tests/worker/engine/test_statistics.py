from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from worker.engine import statistics as s


@pytest.mark.parametrize(
    ("n", "max_rate", "most"),
    # The largest count that passes, as tabled in the verification design.
    [(1000, 0.05, 38), (1000, 0.02, 12), (500, 0.05, 16), (500, 0.02, 4), (149, 0.05, 2), (149, 0.02, 0), (200, 0.05, 4)],
)
def test_gate_passes_up_to_the_tabled_count_and_no_further(n: int, max_rate: float, most: int) -> None:
    assert s.upper_bound(most, n) <= max_rate < s.upper_bound(most + 1, n)
    # The same gate, read as a lower bound of unlearning accuracy.
    assert s.lower_bound(n - most, n) >= 1 - max_rate > s.lower_bound(n - most - 1, n)


def test_bounds_are_the_rates_at_which_the_tail_is_exactly_alpha() -> None:
    # The definition, by the binomial itself rather than by the beta quantile that the code uses.
    assert binom.cdf(4, 200, s.upper_bound(4, 200)) == pytest.approx(0.05)
    assert binom.sf(195, 200, s.lower_bound(196, 200)) == pytest.approx(0.05)


def test_bounds_with_no_hits_and_all_hits_are_closed_forms() -> None:
    # (1 - p)^n = alpha  =>  p = 1 - alpha^(1/n)
    assert s.upper_bound(0, 59) == pytest.approx(1 - 0.05 ** (1 / 59))
    assert s.lower_bound(59, 59) == pytest.approx(0.05 ** (1 / 59))
    assert (s.lower_bound(0, 59), s.upper_bound(59, 59)) == (0.0, 1.0)


def test_fifty_eight_samples_cannot_show_five_percent_and_fifty_nine_can() -> None:
    # 0.95^58 = 0.0510 > 0.05 > 0.95^59 = 0.0485
    assert s.upper_bound(0, 58) > 0.05 > s.upper_bound(0, 59)


@pytest.mark.parametrize(("hits", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_impossible_counts_are_refused(hits: int, n: int) -> None:
    for bound in (s.upper_bound, s.lower_bound, s.wilson_interval):
        with pytest.raises(ValueError, match="expected 0 <= hits <= n"):
            bound(hits, n)


def test_wilson_is_the_textbook_interval() -> None:
    # centre (p + z^2/2n) / (1 + z^2/n), half-width z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n), p = 0.02, n = 200
    z, p, n = 1.959963984540054, 0.02, 200
    centre, scale = (p + z * z / (2 * n)), 1 + z * z / n
    half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    assert s.wilson_interval(4, 200) == pytest.approx(((centre - half) / scale, (centre + half) / scale))


def test_paired_drop_counts_pairs_that_got_better_conservatively() -> None:
    assert s.paired_drop_upper(7, 0, 900) == s.upper_bound(7, 900, alpha=0.025)
    assert s.paired_drop_upper(9, 3, 900) == s.upper_bound(9, 900, alpha=0.025) - s.lower_bound(3, 900, alpha=0.025)
    # Above the point estimate (9 - 3) / 900, and one more pair that got worse never lowers it.
    assert s.paired_drop_upper(10, 3, 900) > s.paired_drop_upper(9, 3, 900) > 6 / 900
    with pytest.raises(ValueError, match="worse"):
        s.paired_drop_upper(6, 5, 10)


def test_paired_drop_covers_the_truth_at_least_95_times_in_100() -> None:
    # P(worse) = 0.03, P(better) = 0.01: the true drop is 0.02, and a valid bound is below it in at most 5 % of draws.
    draws = np.random.default_rng(0).multinomial(300, [0.03, 0.01, 0.96], size=2000)
    below = [s.paired_drop_upper(int(w), int(b), 300) < 0.02 for w, b, _ in draws]
    assert np.mean(below) <= 0.05


def test_a_paired_difference_without_hits_of_the_other_alone_is_bounded_as_a_rate_is() -> None:
    # Exact, and what the interval of the other's rate may miss is paid for: at .024 in the place of .025.
    assert s.paired_difference_upper(0, 0, 50, alpha=0.025) == pytest.approx(0.0724, abs=2 * s.TOLERANCE)
    assert s.upper_bound(0, 50, alpha=0.024) <= s.paired_difference_upper(0, 0, 50, alpha=0.025) < 0.075
    assert s.paired_difference_upper(50, 0, 50) == 1.0
    assert s.paired_difference_upper(0, 50, 50) < -0.8


@pytest.mark.parametrize("alpha", [1e-3, 1e-4, 1e-6])
def test_a_paired_difference_is_bounded_at_the_shares_of_many_classes(alpha: float) -> None:
    # Of none of 400 an exact bound is 1 - alpha^(1/400); a worst case of the other's rate costs less than half of that more.
    exact = 1 - alpha ** (1 / 400)
    assert exact < s.paired_difference_upper(0, 0, 400, alpha=alpha) < 1.45 * exact
    assert -s.paired_difference_upper(0, 100, 100, alpha=alpha) > 0.7  # lost altogether; it was -1 at any n


@pytest.mark.parametrize(
    ("margin", "alpha", "rates"),
    [(0.1, 0.05, (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.45)), (0.4, 1e-4, (0.0, 0.02, 0.05, 0.1, 0.2, 0.3))],
)
def test_a_paired_difference_is_covered_exactly_at_its_margin_whatever_the_rates(
    margin: float, alpha: float, rates: tuple[float, ...]
) -> None:
    """P(bound <= margin) is at most alpha where the difference is the margin: summed over all outcomes of 40 items."""
    n = 40
    passing: dict[int, int] = {}
    for fewer in range(n + 1):
        most = -1
        while most + 1 + fewer <= n and s.paired_difference_upper(most + 1, fewer, n, alpha=alpha) <= margin:
            most += 1
        passing[fewer] = most
    for fewer_rate in rates:
        more_rate = fewer_rate + margin
        size = sum(
            binom.pmf(c, n, fewer_rate) * binom.cdf(most, n - c, more_rate / (1 - fewer_rate)) for c, most in passing.items()
        )
        assert size <= alpha
    assert max(passing.values()) >= 0


@pytest.mark.parametrize("counts", [(1, 1, 0), (3, 3, 5), (-1, 0, 5), (0, -1, 5)])
def test_paired_counts_that_do_not_fit_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="expected n >= 1 items"):
        s.paired_difference_upper(*counts)


def test_frechet_distance_of_diagonal_gaussians_is_the_closed_form() -> None:
    # Commuting covariances: |mu|^2 + sum (sqrt a - sqrt b)^2 = 9 + (2 - 1)^2 + (3 - 5)^2 = 14
    a = (np.array([3.0, 0.0]), np.diag([4.0, 9.0]))
    b = (np.array([0.0, 0.0]), np.diag([1.0, 25.0]))
    assert s.frechet_distance(a, b) == pytest.approx(14.0)
    assert s.frechet_distance(b, a) == pytest.approx(14.0)
    assert s.frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)


def test_frechet_distance_of_full_covariances_matches_the_matrix_square_root() -> None:
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(50, 5)), rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5))
    (m, a), (k, b) = s.moments(x, np.ones(50)), s.moments(y, np.ones(60))
    expected = (m - k) @ (m - k) + np.trace(a + b - 2 * np.real(sqrtm(a @ b)))
    assert s.frechet_distance((m, a), (k, b)) == pytest.approx(expected)


def test_moments_match_numpy_and_refuse_what_is_not_finite() -> None:
    x = np.random.default_rng(0).normal(size=(20, 3))
    mean, cov = s.moments(x, np.ones(20))
    assert np.allclose(mean, x.mean(0))
    assert np.allclose(cov, np.cov(x.T))
    weights = np.arange(1.0, 21)
    assert np.allclose(s.moments(x, weights)[1], np.cov(x.T, aweights=weights))
    x[3, 1] = np.nan
    with pytest.raises(ValueError, match="finite"):
        s.moments(x, np.ones(20))


@pytest.mark.parametrize(("resamples", "alpha", "enough"), [(1000, 0.05, 1000), (200, 0.05, 400), (200, 0.05 / 6, 2400)])
def test_twenty_resamples_at_least_lie_beyond_a_bound(resamples: int, alpha: float, enough: int) -> None:
    drawn: list[float] = []

    def ratio(rng: np.random.Generator) -> float:
        drawn.append(float(np.exp(rng.normal())))
        return drawn[-1]

    bound = s.bootstrap_ratio_upper(ratio, 1.0, resamples=resamples, rng=np.random.default_rng(0), alpha=alpha)
    assert len(drawn) == s.enough(resamples, alpha) == enough
    middle = np.median(drawn)
    assert sum(one / middle > bound for one in drawn) == pytest.approx(alpha * enough, abs=1)
    assert alpha * enough >= 20


def test_ratio_bound_lies_around_the_point_estimate_not_around_the_biased_resamples() -> None:
    # Resamples that are log-normal around 1 although the ratio is 2: the bound is 2 e^(1.645 sigma), not e^(1.645 sigma).
    upper = s.bootstrap_ratio_upper(
        lambda rng: float(np.exp(0.1 * rng.normal())), 2.0, resamples=4000, rng=np.random.default_rng(0)
    )
    assert upper == pytest.approx(2 * np.exp(0.1645), rel=0.02)


def test_ratio_bound_refuses_what_cannot_be_compared() -> None:
    for ratio, point in ((np.nan, 1.0), (0.0, 1.0), (1.0, np.inf)):
        with pytest.raises(ValueError, match="positive finite"):
            s.bootstrap_ratio_upper(lambda _, r=ratio: r, point, resamples=100, rng=np.random.default_rng(0))


@pytest.mark.parametrize("n", [2, 3, 10])
def test_means_of_resampled_rows_vary_as_means_of_that_many_items_do(n: int) -> None:
    """Unbiased: the variance of the mean of n items is s^2 / n, s^2 over n - 1. Of two items, n of n would give half of it."""
    values = np.random.default_rng(n).normal(size=n)
    rng = np.random.default_rng(0)
    means = [values[s.resampled_rows(n, rng)].mean() for _ in range(20_000)]
    assert np.var(means) == pytest.approx(values.var(ddof=1) / n, rel=0.05)


def test_a_single_item_cannot_be_resampled() -> None:
    with pytest.raises(ValueError, match="at least two"):
        s.resampled_rows(1, np.random.default_rng(0))


def test_kernel_distance_is_the_double_sum_of_its_definition() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(7, 3)), rng.normal(size=(7, 3))

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 3 + 1) ** 3)

    pairs = [(i, j) for i in range(7) for j in range(7) if i != j]
    expected = np.mean([k(a[i], a[j]) + k(b[i], b[j]) - k(a[i], b[j]) - k(a[j], b[i]) for i, j in pairs])
    assert s.kernel_distance(a, b) == pytest.approx(expected)
    assert s.kernel_distance(a, a) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="two sets"):
        s.kernel_distance(a, b[:6])


def test_kernel_distance_does_not_depend_on_how_many_rows_are_made_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = np.random.default_rng(3).normal(size=(2, 23, 4))
    whole = s.kernel_distance(a, b)
    monkeypatch.setattr(s, "KERNEL_ROWS", 5)
    assert s.kernel_distance(a, b) == pytest.approx(whole)


def test_kernel_distance_of_pairs_that_go_together_has_the_mean_of_independent_ones() -> None:
    # One distribution, so the distance is 0 in the mean; with the pairs (i, i) left in it would be far below.
    rng = np.random.default_rng(4)
    draws = []
    for _ in range(600):
        a = rng.normal(size=(10, 2))
        draws.append(s.kernel_distance(a, 0.8 * a + 0.6 * rng.normal(size=(10, 2))))
    assert abs(np.mean(draws)) < 3 * np.std(draws) / 600**0.5


def test_inception_score_is_one_where_all_look_alike_and_the_number_of_classes_where_all_are_sure() -> None:
    rng = np.random.default_rng(0)
    assert s.inception_score(np.tile([0.5, 0.3, 0.2], (8, 1)), 4, rng) == (pytest.approx(1), pytest.approx(0, abs=1e-12))
    assert s.inception_score(np.eye(5)[np.arange(20) % 5], 1, rng)[0] == pytest.approx(5)


def test_inception_score_lies_between_one_and_the_number_of_classes() -> None:
    rng = np.random.default_rng(1)
    for sharpness in (0.1, 1, 10):
        p = rng.dirichlet(np.full(6, 1 / sharpness), size=40)
        mean, spread = s.inception_score(p, 10, rng)
        assert 1 <= mean <= 6
        assert spread >= 0
    # The definition, split by split, by a plain loop; one split is not shuffled apart.
    marginal = p.mean(0)
    expected = np.exp(np.mean([sum(x * np.log(x / m) for x, m in zip(row, marginal, strict=True) if x > 0) for row in p]))
    assert s.inception_score(p, 1, rng)[0] == pytest.approx(expected)
    with pytest.raises(ValueError, match="splits"):
        s.inception_score(p, 41, rng)


def test_inception_score_of_images_in_the_order_of_their_classes_is_not_that_of_one_class_a_split() -> None:
    assert s.inception_score(np.eye(10)[np.repeat(np.arange(10), 50)], 10, np.random.default_rng(0))[0] > 9


def test_jackknife_of_a_mean_is_the_bound_of_the_t_test_on_group_means() -> None:
    # 20 groups of 2, of equal numbers: leaving a group out moves the mean by -(group mean - mean) / 19, so SE is that of the
    # mean of 20 group means, whatever the groups are.
    x = np.repeat(np.random.default_rng(5).normal(size=20), 2)

    class Grouped(np.random.Generator):
        def permutation(self, n: int) -> np.ndarray:  # type: ignore[override]
            return np.arange(n) // 2

    upper = s.jackknife_upper(lambda rows: float(x[rows].mean()), 40, rng=Grouped(np.random.PCG64(0)))
    assert upper == pytest.approx(x.mean() + 1.729132811521367 * x[::2].std(ddof=1) / 20**0.5)
    with pytest.raises(ValueError, match="40 items"):
        s.jackknife_upper(lambda rows: float(x[rows].mean()), 39, rng=np.random.default_rng(0))


def test_jackknife_bound_of_a_ratio_of_frechet_distances_covers_the_truth() -> None:
    # Both models err alike, so the true ratio is 1: a bound that holds 95 times in 100 is below it in about 5 % of draws.
    rng = np.random.default_rng(6)
    below = []
    for _ in range(100):
        truth = rng.normal(size=(200, 3))
        clouds = [truth + 0.5 + 0.5 * rng.normal(size=truth.shape) for _ in range(2)]

        def log_ratio(rows: np.ndarray, truth: np.ndarray = truth, clouds: list[np.ndarray] = clouds) -> float:
            known, *others = (s.moments(x[rows], np.ones(len(rows))) for x in (truth, *clouds))
            after, before = (s.frechet_distance(other, known) for other in others)
            return float(np.log(after / before))

        below.append(s.jackknife_upper(log_ratio, 200, rng=rng) < 0)
    assert np.mean(below) <= 0.05 + 2 * (0.05 * 0.95 / 100) ** 0.5


@pytest.mark.parametrize(("n", "m", "width"), [(12, 9, 30), (40, 40, 5)])
def test_frechet_distance_of_rows_is_that_of_their_moments(n: int, m: int, width: int) -> None:
    rng = np.random.default_rng(7)
    a, b = rng.normal(size=(n, width)), 1 + 2 * rng.normal(size=(m, width))
    expected = s.frechet_distance(s.moments(a, np.ones(n)), s.moments(b, np.ones(m)))
    assert s.frechet_distance_of_rows(a, b) == pytest.approx(expected, rel=1e-6)
    assert s.frechet_distance_of_rows(a, a) == pytest.approx(0, abs=1e-9)
