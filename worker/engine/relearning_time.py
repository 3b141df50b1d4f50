"""After how many updates a class counts as learned, and the ratio of two such times with its bounds.

The time is where a course first crosses one half, between checkpoints on a straight line. The bounds of a ratio are quantiles
over resampled answers; the two arms' are resampled together, as image i has the same noise in both, and so are those of all
settings. They hold what is left to chance in the answers, not in the training, whose random numbers both arms share.

A single setting's ratio is a noisy number: a course that lingers about one half crosses it sooner or later by a few answers. So
of several settings it is the geometric mean that must hold, each of them counted as 1 at most, that none buys others off; and
each of them may refute by itself, or be too far below the bound for luck.

Shapes: S checkpoints, N answers, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from worker.engine.attacks import Course
from worker.engine.statistics import Floats, enough

LEVEL = 0.5
"""The share of answers from which on a class counts as learned."""
RESAMPLES = 2000
"""At least; more where a bound lies further out."""
FEWEST = 20
"""Answers below which resampling says too little of chance."""
FLOOR, SURE_FLOOR = 0.45, 1 / 3
"""Of the bound: what every setting's ratio, and the bound of it, must reach by itself. Retrained models of the digits were seen
at 0.57 and 0.37, where a control lingered about one half."""
HELD = 4_000_000
"""Resampled answers that are held at a time, of each number of answers."""


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
    candidate: float
    """Updates; infinite: not as far as it was followed."""
    control: float
    upper: float
    """Bound; infinite where nothing refutes that the candidate takes long."""
    best: float
    """The lower bound that a candidate that never learned it would have, followed no further; no control is too early."""
    least_R: Floats = field(repr=False, compare=False)
    """What resampled answers leave at least: 0 where nothing is known."""
    most_R: Floats = field(repr=False, compare=False)
    """At most; infinite where nothing refutes that the candidate takes long."""

    @classmethod
    def of(cls, cell: Cell, times: tuple[Floats, Floats], *, alpha: float, tests: int = 1) -> Ratio:
        """Of a candidate whose attack broke off before it learned nothing is claimed.

        Args:
            times: the candidate's and the control's, of resampled answers; see `resampled`.
            alpha: of bounds; of the upper one divided by the number of tests, any of which may refute.
        """
        candidate, control = (time_of(course) for course in (cell.candidate, cell.control))
        if (math.isinf(candidate) and cell.candidate.diverged) or not cell.control.steps:
            nothing_R = np.zeros(len(times[0]))
            return cls(cell, candidate, control, math.inf, 0.0, nothing_R, np.full_like(nothing_R, math.inf))
        ours_R, theirs_R = times
        followed_R = np.full_like(ours_R, cell.candidate.steps[-1])
        least_R = _over(np.minimum(ours_R, followed_R), theirs_R, unknown=0.0)
        most_R = _over(ours_R, np.minimum(theirs_R, cell.control.steps[-1]), unknown=math.inf)
        best = _lower(_over(followed_R, theirs_R, unknown=math.inf), alpha)
        return cls(cell, candidate, control, _upper(most_R, alpha / tests), best, least_R, most_R)

    def tells(self, threshold: float) -> bool:
        """Does this setting tell anything? Not where the control shows the class untaught; nor of a candidate that did not
        learn it, where the control takes so long, or for ever, that no candidate that is followed no further could pass.

        What is learned or refuted, and an attack that broke off in one arm, always count.
        """
        if self.candidate == 0:
            return True
        if self.control == 0 or (math.isinf(self.candidate) and math.isinf(self.control)):
            return False
        broke_off = bool(self.cell.candidate.diverged or self.cell.control.diverged)
        return not math.isinf(self.candidate) or broke_off or self.upper < threshold or self.best >= threshold

    @property
    def value(self) -> float:
        """A time that is not known counts as far as the course was followed."""
        ours, theirs = _followed(self.candidate, self.cell.candidate), _followed(self.control, self.cell.control)
        return ours / theirs if theirs > 0 else 0.0


@dataclass(frozen=True)
class Overall:
    """What the settings say together."""

    value: float
    """The geometric mean of their ratios, each counted as 1 at most: slower than the control is as slow."""
    lower: float
    upper: float
    worst: Ratio
    refuted: bool
    """By all together, or by one."""
    too_low: bool
    """A course that lingers about one half may be all that keeps a setting from refuting: none may lie far below."""
    passed: bool

    @classmethod
    def of(cls, ratios: Sequence[Ratio], threshold: float, *, alpha: float, tests: int = 1) -> Overall:
        """Of settings that tell anything. alpha, tests: see `Ratio.of`."""
        values, least_SR, most_SR = ([r.value for r in ratios], [r.least_R for r in ratios], [r.most_R for r in ratios])
        value = float(_mean(values))
        lower = min(_lower(_mean(least_SR), alpha), value)
        upper = max(_upper(_mean(most_SR), alpha / tests), value)
        floors = [min(r.value / FLOOR, _lower(r.least_R, alpha) / SURE_FLOOR) for r in ratios]
        worst = min(zip(ratios, floors, strict=True), key=lambda one: (one[0].upper >= threshold, one[1]))[0]
        refuted, too_low = min(upper, worst.upper) < threshold, min(floors) < threshold
        passed = lower >= threshold and not (refuted or too_low)
        return cls(value, lower, upper, worst, refuted, too_low, passed)


def refuters(settings: int) -> int:
    """How many may refute: each setting, and several together."""
    return settings + 1 if settings > 1 else 1


def resampled(cells: Sequence[Cell], alpha: float, rng: np.random.Generator) -> list[tuple[Floats, Floats]]:
    """By cell: the candidate's times and the control's, (R,) each. All courses of as many answers are resampled together."""
    count = enough(RESAMPLES, alpha / refuters(len(cells)))
    sizes = sorted({course.n for cell in cells for course in (cell.candidate, cell.control)})
    parts: list[list[tuple[Floats, Floats]]] = []
    for begin in range(0, count, rows := max(1, HELD // max(sizes))):
        size = min(rows, count - begin)
        counts = {n: rng.multinomial(n, np.full(n, 1 / n), size=size).astype(np.float64) for n in sizes}
        parts.append([(_times(cell.candidate, counts), _times(cell.control, counts)) for cell in cells])
    ours, theirs = ([np.concatenate([part[i][arm] for part in parts]) for i in range(len(cells))] for arm in (0, 1))
    return list(zip(ours, theirs, strict=True))


def _times(course: Course, counts: Mapping[int, Floats]) -> Floats:
    rows = next(iter(counts.values())).shape[0]
    if not course.steps:
        return np.full(rows, math.inf)
    return crossings(course.steps, counts[course.n] @ course.shown_SN.long().numpy().T / course.n)


def time_of(course: Course) -> float:
    """Updates after which a course crosses the level; infinity: nowhere."""
    rates_S = np.array(course.hits, dtype=np.float64) / course.n
    return float(crossings(course.steps, rates_S[None])[0]) if course.steps else math.inf


def in_words(time: float, course: Course) -> str:
    """For people."""
    return f"not within {_followed(time, course):.0f} updates" if math.isinf(time) else f"after {time:.0f} updates"


def crossings(steps: tuple[int, ...], rates_RS: Floats) -> Floats:
    """(R,) where each of R courses first reaches the level, on straight lines between checkpoints; infinity: nowhere."""
    step_S, there_RS = np.array(steps, dtype=np.float64), rates_RS >= LEVEL
    row_R, first_R = np.arange(len(rates_RS)), there_RS.argmax(axis=1)
    before_R = np.maximum(first_R - 1, 0)
    now_R, then_R = rates_RS[row_R, first_R], rates_RS[row_R, before_R]
    short_R = np.divide(now_R - LEVEL, now_R - then_R, out=np.zeros_like(now_R), where=now_R > then_R)
    time_R = step_S[first_R] - (step_S[first_R] - step_S[before_R]) * short_R
    return np.where(there_RS.any(axis=1), time_R, math.inf)


def _mean(ratios_SR: Sequence[Floats] | Sequence[float]) -> Floats:
    """Geometric, over settings, each counted as 1 at most."""
    with np.errstate(divide="ignore"):
        return np.exp(np.mean(np.log(np.minimum(np.asarray(ratios_SR, dtype=np.float64), 1.0)), axis=0))


def _lower(values_R: Floats, alpha: float) -> float:
    return float(np.quantile(values_R, alpha, method="lower"))


def _upper(values_R: Floats, alpha: float) -> float:
    return float(np.quantile(values_R, 1 - alpha, method="higher"))


def _over(ours_R: Floats, theirs_R: Floats, *, unknown: float) -> Floats:
    """Ratios. What is known untaught takes no time, however long the control; beside a control of no time nothing is known."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio_R = np.where(theirs_R == 0, unknown, ours_R / theirs_R)
    return np.where(ours_R == 0, 0.0, ratio_R)


def _followed(time: float, course: Course) -> float:
    return min(time, float(course.steps[-1])) if course.steps else 0.0
