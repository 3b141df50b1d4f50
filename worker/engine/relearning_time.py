"""After how many updates a class counts as learned, and the ratio of two such times with its bounds.

The time is where a course first crosses one half, between checkpoints on a straight line; its bounds are where the
Clopper-Pearson bounds of the rates cross, at half of the level for either arm. They hold what is left to chance in the answers,
not in the training, whose random numbers both arms share. A course that ends without crossing has no upper bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from worker.engine.attacks import Course
from worker.engine.statistics import lower_bound, upper_bound

LEVEL = 0.5
"""The share of answers from which on a class counts as learned."""


@dataclass(frozen=True)
class Time:
    """After how many updates a course crosses the level, with bounds; infinite: not as far as it was followed."""

    value: float
    lower: float
    """Where it does not cross, as far as it was followed."""
    upper: float
    followed: float

    @classmethod
    def of(cls, course: Course, alpha: float) -> Time:
        """Of a course; alpha: of either bound."""
        end = float(course.steps[-1]) if course.steps else 0.0
        value = _crossing(course, lambda hits: hits / course.n)
        lower = _crossing(course, lambda hits: upper_bound(hits, course.n, alpha=alpha))
        upper = _crossing(course, lambda hits: lower_bound(hits, course.n, alpha=alpha))
        return cls(value, min(lower, end), upper, end)

    @property
    def in_words(self) -> str:
        """For people."""
        if math.isinf(self.value):
            return f"not within {self.followed:.0f} updates"
        upper = "more" if math.isinf(self.upper) else f"{self.upper:.0f}"
        return f"after {self.value:.0f} updates ({self.lower:.0f} to {upper})"


def _crossing(course: Course, rate: Callable[[int], float]) -> float:
    """Where a course first reaches the level, on straight lines between checkpoints; infinity: nowhere."""
    before = 0.0
    for i, (step, hits) in enumerate(zip(course.steps, course.hits, strict=True)):
        now = rate(hits)
        if now >= LEVEL:
            return step if i == 0 else step - (step - course.steps[i - 1]) * (now - LEVEL) / (now - before)
        before = now
    return math.inf


@dataclass(frozen=True)
class Cell:
    """One setting of the attack on one class, in both arms."""

    name: str
    """For people."""
    images: int
    multiple: float
    candidate: Course
    control: Course


@dataclass(frozen=True)
class Ratio:
    """The candidate's time over the control's."""

    cell: Cell
    candidate: Time
    control: Time

    @classmethod
    def of(cls, cell: Cell, alpha: float) -> Ratio:
        """alpha: of either bound of the ratio."""
        return cls(cell, Time.of(cell.candidate, alpha / 2), Time.of(cell.control, alpha / 2))

    @property
    def powered(self) -> bool:
        """Does this setting tell anything? Not where nobody learns, or where the control shows the class untaught."""
        if self.candidate.value == 0:
            return True
        return self.control.value > 0 and not (math.isinf(self.candidate.value) and math.isinf(self.control.value))

    @property
    def value(self) -> float:
        """A time that is not known counts as far as the course was followed."""
        ours, theirs = (t.followed if math.isinf(t.value) else t.value for t in (self.candidate, self.control))
        return ours / theirs if theirs > 0 else 0.0

    @property
    def lower(self) -> float:
        """Of a candidate whose attack broke off nothing is claimed, nor beside a control that never gets there."""
        broke_off = bool(self.cell.candidate.diverged) and math.isinf(self.candidate.value)
        return 0.0 if broke_off or self.control.upper == 0 else self.candidate.lower / self.control.upper

    @property
    def upper(self) -> float:
        """Infinite where nothing refutes that the candidate takes long."""
        if self.candidate.upper == 0:
            return 0.0
        return math.inf if self.control.lower == 0 else self.candidate.upper / self.control.lower
