"""How much oftener the judge sees a class in a model's completions than in those by what never saw it, on the same images.

What never saw the class is measured on these images, too, so its rate is as uncertain as the model's: held against it as if
it were known, a model that is a margin too good would pass far more often than one time in twenty. Here the difference is
bounded.

Of several references the best one counts. Which one that is, nobody knows: the better of two that were measured is so by luck
in part. A model is no more than a margin above the best if it is no more than that above any one, so the upper bound is the
least of those against each, each at its share of alpha (Bonferroni). It is far above the best if it is far above every one,
so the lower bound is the least of those against each, at the whole alpha (intersection-union).

Shape suffixes: N images of one class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from worker.engine.statistics import ALPHA, paired_difference_upper


@dataclass(frozen=True)
class Reference:
    """What never saw a class, and what the judge says of its completions."""

    name: str
    right_N: Tensor
    """bool: the judge takes the completed region for one of the class."""

    @property
    def accuracy(self) -> float:
        """Share of the images."""
        return int(self.right_N.sum()) / len(self.right_N)


def best(references: Sequence[Reference]) -> Reference:
    """The one in whose completions the judge sees the class most often; of equal ones the first."""
    return max(references, key=lambda reference: reference.accuracy)


def excess_upper(right_N: Tensor, references: Sequence[Reference], *, alpha: float = ALPHA) -> float:
    """One-sided upper bound of how far a rate lies above the best reference's."""
    share = alpha / len(references)
    return min(_bound(right_N, reference.right_N, share) for reference in references)


def excess_lower(right_N: Tensor, references: Sequence[Reference], *, alpha: float = ALPHA) -> float:
    """One-sided lower bound of it."""
    return min(-_bound(reference.right_N, right_N, alpha) for reference in references)


def _bound(one_N: Tensor, other_N: Tensor, alpha: float) -> float:
    more, fewer = int((one_N & ~other_N).sum()), int((other_N & ~one_N).sum())
    return paired_difference_upper(more, fewer, len(one_N), alpha=alpha)
