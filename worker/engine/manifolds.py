"""Precision, recall, density and coverage: do two sets of features lie in the same places?

A set's manifold is the union of balls around its items, each as wide as the way to its k-th nearest neighbour in the set.

    precision: share of drawn items inside the real manifold       recall: share of real items inside the drawn one
    density: how many real balls hold a drawn item, over k         coverage: share of real balls that hold a drawn item

Source: Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics for Generative Models", arXiv:2002.09797; Kynkäänniemi et
al. 2019, arXiv:1904.06991, for the first two. The figures themselves are those of the authors' package `prdc`.

Shapes: N real items, M drawn items, D features, R resamples.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from prdc import compute_prdc
from scipy.spatial.distance import cdist

from worker.engine.statistics import Floats

Measure = Literal["precision", "recall", "density", "coverage"]
MEASURES: tuple[Measure, ...] = ("precision", "recall", "density", "coverage")
NEAREST = 5
"""k, as the authors recommend."""
MOST = 5_000
"""Items of a side; distances of all pairs are kept."""

Flags = NDArray[np.bool_]


def figures(real_ND: Floats, drawn_MD: Floats, nearest: int = NEAREST) -> dict[Measure, float]:
    """The four numbers. Raises: ValueError for k + 1 items or fewer on a side, or numbers that are not finite."""
    require_enough(real_ND, drawn_MD, nearest)
    with contextlib.redirect_stdout(io.StringIO()):  # the package prints the number of items
        found = compute_prdc(real_ND, drawn_MD, nearest_k=nearest)
    return {name: float(found[name]) for name in MEASURES}


def require_enough(real_ND: Floats, drawn_MD: Floats, nearest: int) -> None:
    """Raises: ValueError; see `figures`."""
    if min(len(real_ND), len(drawn_MD)) <= nearest + 1:
        raise ValueError(f"expected more than {nearest + 1} items of a side, got {len(real_ND)} and {len(drawn_MD)}")
    if not (np.isfinite(real_ND).all() and np.isfinite(drawn_MD).all()):
        raise ValueError("expected finite features, got NaN or infinity")


@dataclass(frozen=True)
class Overlap:
    """Which of N real items and M drawn ones lie in each other's balls."""

    in_real_NM: Flags
    """Is drawn item j inside the ball of real item i?"""
    in_drawn_NM: Flags
    """Is real item i inside the ball of drawn item j?"""
    nearest: int

    @classmethod
    def of(cls, real_ND: Floats, drawn_MD: Floats, nearest: int = NEAREST) -> Overlap:
        """Raises: ValueError; see `figures`."""
        require_enough(real_ND, drawn_MD, nearest)
        apart_NM = cdist(real_ND, drawn_MD)
        return cls(apart_NM < radii(real_ND, nearest)[:, None], apart_NM < radii(drawn_MD, nearest)[None, :], nearest)

    def resampled(self, real_RN: Floats, drawn_RM: Floats) -> dict[Measure, Floats]:
        """(R,) of each measure under weights: how often each item is in a resample.

        Balls stay as wide as they are, for a copy of an item would be its own nearest neighbour. With fewer different items
        fewer places are reached, on both sides of a ratio alike: take the spread of resamples, not their level.
        """
        real_RN, drawn_RM = real_RN.astype(np.float32), drawn_RM.astype(np.float32)
        in_real_NM, in_drawn_NM = self.in_real_NM.astype(np.float32), self.in_drawn_NM.astype(np.float32)
        balls_RM = real_RN @ in_real_NM
        n_R, m_R = real_RN.sum(axis=1), drawn_RM.sum(axis=1)
        return {
            "precision": ((balls_RM > 0) * drawn_RM).sum(axis=1) / m_R,
            "density": (balls_RM * drawn_RM).sum(axis=1) / m_R / self.nearest,
            "recall": ((drawn_RM @ in_drawn_NM.T > 0) * real_RN).sum(axis=1) / n_R,
            "coverage": ((drawn_RM @ in_real_NM.T > 0) * real_RN).sum(axis=1) / n_R,
        }

    @property
    def covered_N(self) -> Flags:
        """Which real items have a drawn one in their ball; coverage is their share."""
        covered: Flags = np.asarray(self.in_real_NM.any(axis=1))
        return covered


def radii(rows_ND: Floats, nearest: int = NEAREST) -> Floats:
    """(N,) from each item to its k-th nearest neighbour, itself not counted."""
    wide_N: Floats = np.partition(cdist(rows_ND, rows_ND), nearest, axis=1)[:, nearest]
    return wide_N


def thinned(rows_ND: Floats, most: int = MOST) -> Floats:
    """Evenly chosen rows, so that every class keeps its share, where all pairs would not fit."""
    if len(rows_ND) <= most:
        return rows_ND
    chosen: Sequence[int] = np.linspace(0, len(rows_ND) - 1, most).round().astype(int).tolist()
    return rows_ND[chosen]


def draws(rng: np.random.Generator, resamples: int, n: int) -> Floats:
    """(R, n) how often each of n items is in each resample."""
    counts: Floats = rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
    return counts
