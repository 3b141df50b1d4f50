"""Can a model's losses tell items it was trained on from items it never saw? Compared within each class alone.

Classes differ in how hard they are, so an item is held only against unseen items of its own class: its *placement* is the
share of them that it fits better than, ties counting half. The mean placement is the area under the ROC curve (AUC) of
"-loss" as a membership score, averaged over classes by their share of the items: 1/2 where losses tell nothing.

Shapes: N items in question, U unseen items of one class, R resamples. Everything in float64.
Source: Yeom et al. 2018 (arXiv:1709.01604) for the loss as a membership score; Hanley & McNeil 1982 (Radiology 143) for the
AUC as a probability.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from worker.engine.statistics import ALPHA, Floats, enough


@dataclass(frozen=True)
class Estimate:
    """A number with its two one-sided bootstrap bounds, at 95 % where nothing else was asked for."""

    value: float
    lower95: float
    upper95: float

    @classmethod
    def of(cls, value: float, resampled_R: Floats, alpha: float = ALPHA) -> Self:
        """Percentile bounds; never on the far side of the value."""
        low, high = np.quantile(resampled_R, [alpha, 1 - alpha])
        return cls(value, min(float(low), value), max(float(high), value))


@dataclass(frozen=True)
class Answers:
    """Of one model to some items."""

    misfit_N: Floats
    """Log odds against the right class. The cross-entropy is its softplus, so it ranks items as their losses do, and still
    tells them apart where those round to 0."""
    right_N: NDArray[np.bool_]


@dataclass(frozen=True)
class Comparison:
    """Items in question beside unseen items, class by class."""

    items: Mapping[int, Answers]
    unseen: Mapping[int, Answers]

    @property
    def n(self) -> int:
        """Items in question."""
        return sum(len(a.misfit_N) for a in self.items.values())

    def right(self) -> int:
        """Items in question that are named right."""
        return sum(int(a.right_N.sum()) for a in self.items.values())

    def measure(self, resamples: int, rng: np.random.Generator, *, alpha: float = ALPHA) -> tuple[Estimate, Estimate]:
        """The AUC, and by how much the items are named right more often than unseen items of their classes.

        Unseen items are resampled within their class, items all together.

        Raises:
            ValueError: no items, a class without unseen items, or a misfit that is not finite.
        """
        self._require_comparable()
        classes = sorted(self.items)
        unseen = {k: _by_misfit(self.unseen[k]) for k in classes}
        point = _compare(self.items, unseen, classes)
        resampled = []
        for _ in range(enough(resamples, alpha)):
            drawn = {k: _resampled(unseen[k], rng) for k in classes}
            placement_N, gap_N = _compare(self.items, drawn, classes)
            rows_N = rng.integers(self.n, size=self.n)
            resampled.append((placement_N[rows_N].mean(), gap_N[rows_N].mean()))
        auc_R, gap_R = np.array(resampled).T
        return Estimate.of(float(point[0].mean()), auc_R, alpha), Estimate.of(float(point[1].mean()), gap_R, alpha)

    def _require_comparable(self) -> None:
        if self.n == 0 or any(k not in self.unseen or len(self.unseen[k].misfit_N) == 0 for k in self.items):
            raise ValueError("expected items, and unseen items of each of their classes")
        both = [*self.items.values(), *self.unseen.values()]
        if not all(np.isfinite(a.misfit_N).all() for a in both):
            raise ValueError("expected finite misfits")


def expected_upper(items: Mapping[int, int], unseen: Mapping[int, int], *, alpha: float = ALPHA) -> float:
    """The upper bound that items of a model that never saw them get on average: 1/2 and, at 95 %, 1.645 standard errors.

    Args:
        items, unseen: how many of each class.

    Source: the variance of the Mann-Whitney statistic without an effect, (m + u + 1) / (12 m u) for its share.
    """
    total = sum(items.values())
    variance = sum((m / total) ** 2 * (m + unseen[k] + 1) / (12 * m * unseen[k]) for k, m in items.items())
    return 0.5 + float(norm.ppf(1 - alpha)) * float(np.sqrt(variance))


def _by_misfit(answers: Answers) -> Answers:
    order_U = np.argsort(answers.misfit_N)
    return Answers(answers.misfit_N[order_U], answers.right_N[order_U])


def _resampled(ordered: Answers, rng: np.random.Generator) -> Answers:
    """With replacement, still in order of misfit."""
    rows_U = np.sort(rng.integers(len(ordered.misfit_N), size=len(ordered.misfit_N)))
    return Answers(ordered.misfit_N[rows_U], ordered.right_N[rows_U])


def _compare(items: Mapping[int, Answers], ordered: Mapping[int, Answers], classes: list[int]) -> tuple[Floats, Floats]:
    """(N,) placements, and (N,) right or not, less the share of unseen items of the class that are right."""
    placements, gaps = [], []
    for k in classes:
        mine, theirs = items[k], ordered[k]
        smaller_N, not_larger_N = (np.searchsorted(theirs.misfit_N, mine.misfit_N, side=side) for side in ("left", "right"))
        placements.append(1 - (smaller_N + not_larger_N) / (2 * len(theirs.misfit_N)))
        gaps.append(mine.right_N - theirs.right_N.mean())
    return np.concatenate(placements), np.concatenate(gaps)
