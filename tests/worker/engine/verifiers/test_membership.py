"""The statistics of membership: what the numbers are, and that the bounds hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from worker.engine.membership import Answers, Comparison, Estimate, expected_upper


def answers(misfit: list[float] | np.ndarray, right: list[bool] | None = None) -> Answers:
    values = np.asarray(misfit, dtype=np.float64)
    return Answers(values, np.asarray([True] * len(values) if right is None else right))


def measured(items: dict[int, Answers], unseen: dict[int, Answers], seed: int = 0) -> tuple[Estimate, Estimate]:
    return Comparison(items, unseen).measure(200, np.random.default_rng(seed))


def test_the_auc_is_the_share_of_pairs_that_the_item_wins_and_ties_count_half() -> None:
    auc, _ = measured({0: answers([1.0, 2.5])}, {0: answers([1.0, 3.0, 2.0])})
    # 1 beats 2 and 3 and ties with 1: 5/6 of its pairs; 2.5 beats 3 alone: 1/3. Their mean is 7/12.
    assert auc.value == pytest.approx(7 / 12)


def test_items_are_held_against_unseen_items_of_their_own_class_alone() -> None:
    # Class 1 is hard: pooled, its items would look like strangers and those of class 0 like members. Within a class, chance.
    rng = np.random.default_rng(1)
    items = {k: answers(rng.normal(10 * k, 1, n)) for k, n in ((0, 1500), (1, 500))}
    unseen = {k: answers(rng.normal(10 * k, 1, 1000)) for k in (0, 1)}
    auc, _ = measured(items, unseen)
    assert auc.value == pytest.approx(0.5, abs=0.03)
    pooled, _ = measured({0: answers(np.concatenate([a.misfit_N for a in items.values()]))},
                         {0: answers(np.concatenate([a.misfit_N for a in unseen.values()]))})  # fmt: skip
    assert pooled.value > 0.6


def test_the_gap_is_against_the_accuracy_on_the_own_class() -> None:
    # Class 0: 2 of 2 right against 1 of 2; class 1: 0 of 1 against 0 of 1. Mean over three items: (1/2 + 1/2 + 0) / 3.
    items = {0: answers([0, 0], [True, True]), 1: answers([0], [False])}
    unseen = {0: answers([0, 0], [True, False]), 1: answers([0], [False])}
    assert measured(items, unseen)[1].value == pytest.approx(1 / 3)


def test_misfits_that_round_to_a_loss_of_zero_are_still_told_apart() -> None:
    # softplus(-50) and softplus(-60) are both 0 beside 1 in float64, so losses would tie.
    assert np.log1p(np.exp(-50.0)) - np.log1p(np.exp(-60.0)) < 1e-20
    assert measured({0: answers([-60.0] * 5)}, {0: answers([-50.0] * 5)})[0].value == 1


def test_a_model_that_never_saw_the_items_passes_as_often_as_the_bound_says() -> None:
    """At the threshold that 1.645 + 1.645 standard errors give, a true retrain passes 19 times in 20."""
    rng = np.random.default_rng(3)
    threshold = 0.5 + 2 * (expected_upper({0: 100}, {0: 200}) - 0.5)
    bounds = [
        measured({0: answers(rng.normal(size=100))}, {0: answers(rng.normal(size=200))}, seed)[0].upper95 for seed in range(200)
    ]
    passed = np.mean(np.array(bounds) <= threshold)
    assert 0.90 <= passed <= 0.99  # .95 give or take three standard errors of 200 trials: .046
    assert np.mean(bounds) == pytest.approx(expected_upper({0: 100}, {0: 200}), abs=0.01)


def test_the_upper_bound_covers_the_true_auc_about_95_times_in_100() -> None:
    rng = np.random.default_rng(4)
    true = 0.6382  # Phi(0.5 / sqrt 2): normal scores half a standard deviation apart
    bounds = [
        measured({0: answers(rng.normal(-0.5, 1, 100))}, {0: answers(rng.normal(size=200))}, seed)[0].upper95
        for seed in range(200)
    ]
    assert 0.90 <= np.mean(np.array(bounds) >= true) <= 0.99


def test_a_bound_at_a_small_level_is_no_largest_of_a_few_resamples() -> None:
    rng = np.random.default_rng(6)
    compared = Comparison({0: answers(rng.normal(size=60))}, {0: answers(rng.normal(size=60))})
    few, enough = (compared.measure(n, np.random.default_rng(0), alpha=0.05 / 6)[0] for n in (200, 2400))
    assert few == enough  # 20 of 2,400 lie beyond 0.83 %


def test_the_expected_bound_is_that_of_the_rank_sum() -> None:
    # One class: sqrt((100 + 50 + 1) / (12 * 100 * 50)) = 0.05017; two halves of it: variances add at weights 1/2.
    assert expected_upper({0: 100}, {0: 50}) == pytest.approx(0.5 + 1.64485 * 0.050166, abs=1e-4)
    one = (50 + 50 + 1) / (12 * 50 * 50)
    assert expected_upper({0: 50, 1: 50}, {0: 50, 1: 50}) == pytest.approx(0.5 + 1.64485 * (one / 2) ** 0.5, abs=1e-4)


@pytest.mark.parametrize(
    ("items", "unseen", "sentence"),
    [
        ({}, {}, "expected items"),
        ({0: answers([1.0])}, {}, "unseen items of each"),
        ({0: answers([1.0])}, {0: answers([])}, "unseen items of each"),
        ({0: answers([np.nan])}, {0: answers([1.0])}, "finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(items: dict[int, Answers], unseen: dict[int, Answers], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        measured(items, unseen)
