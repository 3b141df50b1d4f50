"""A model that is a margin above what never saw the class passes at most one time in twenty, although the level is measured."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from worker.engine import excess
from worker.engine.excess import Reference, best, excess_lower, excess_upper
from worker.engine.statistics import paired_difference_upper, upper_bound

N, MARGIN, RUNS = 200, 0.05, 300
ERROR = (0.05 * 0.95 / RUNS) ** 0.5


@pytest.fixture(autouse=True)
def remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(excess, "paired_difference_upper", known)


@cache
def known(more: int, fewer: int, n: int, *, alpha: float) -> float:
    """The same counts come up again and again."""
    return paired_difference_upper(more, fewer, n, alpha=alpha)


def rows(*rates: float, rng: np.random.Generator, together: float = 0.0) -> list[Tensor]:
    """Hits on N images at these rates; on a share of the images all hit or miss by the same number."""
    u_N, same_N = rng.random(N), rng.random(N) < together
    return [torch.from_numpy(np.where(same_N, u_N, rng.random(N)) < rate) for rate in rates]


@pytest.mark.parametrize(("levels", "together"), [((0.1, 0.1), 0.0), ((0.1, 0.1), 0.7), ((0.1, 0.02), 0.0)])
def test_a_model_at_the_margin_passes_at_most_one_time_in_twenty(levels: tuple[float, ...], together: float) -> None:
    rng = np.random.default_rng(17)
    passed, naive = 0, 0
    for _ in range(RUNS):
        model_N, *reference_N = rows(max(levels) + MARGIN, *levels, rng=rng, together=together)
        references = [Reference("one", right_N) for right_N in reference_N]
        passed += excess_upper(model_N, references) <= MARGIN
        naive += upper_bound(int(model_N.sum()), N) <= best(references).accuracy + MARGIN
    assert passed / RUNS <= 0.05 + 2 * ERROR
    if (levels, together) == ((0.1, 0.1), 0.0):
        assert naive / RUNS > 0.1  # as long as the level was taken for known


def test_an_original_that_is_no_further_above_than_it_must_be_is_powerful_at_most_one_time_in_twenty() -> None:
    rng = np.random.default_rng(18)
    found = 0
    for _ in range(RUNS):
        original_N, *reference_N = rows(0.2, 0.1, 0.1, rng=rng)
        found += excess_lower(original_N, [Reference("one", right_N) for right_N in reference_N]) > 0.1
    assert found / RUNS <= 0.05 + 2 * ERROR


def test_a_model_at_the_level_of_what_never_saw_the_class_passes_more_often_than_not_with_500_images() -> None:
    """The bound is cautious and not useless: 50 hits of 500 by each, 45 of them on images of its own."""
    model_N, reference_N = torch.zeros(2, 500, dtype=torch.bool)
    model_N[:50] = True
    reference_N[45:95] = True
    references = [Reference("one", reference_N), Reference("other", torch.zeros_like(model_N))]
    assert excess_upper(model_N, references) == pytest.approx(0.038, abs=1e-3)
    assert excess_lower(model_N, references) == pytest.approx(-0.0317, abs=1e-3)  # against the better of the two


def test_of_equal_references_the_first_is_the_best() -> None:
    one, other = (Reference(name, torch.tensor([True, False])) for name in ("one", "other"))
    assert best([one, other]) is one
    assert one.accuracy == 0.5
