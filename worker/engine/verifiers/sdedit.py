"""Does the network still finish an image of the class that somebody began for it? Under no label, or another, as under its own.

Held-out images of the class are made noisy up to a part of the way, t / T, and denoised. Where little noise was added any
model gives back what it was given, one that never saw the class, too; so below `gate_from` the share that shows the class is
drawn and gates nothing. A sampler of few steps begins at the next of its own below a depth: it is the depth from which it
really denoises that is drawn, integrated over and held to 0.55. Above it the candidate is held against a model that was trained
without the class, where the job has one; else against itself, begun with images of a novel class under the same labels (see
`worker.engine.novel`).

    area = integral over t / T of [share of the candidate - share where the class was never seen]

by the trapezoid rule over the depths that gate, at its one-sided bootstrap bound over images. The original must not pass.

Source: Meng et al. 2022 (SDEdit), arXiv:2108.01073; arXiv:2409.05668 for the depth from which on a probe tells concealment
from erasure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, cast

import numpy as np
from pydantic import Field, model_validator

from worker.contract import Curve, Finding, Spec, Tier
from worker.engine.electorate import Electorate
from worker.engine.errors import BadInput
from worker.engine.family import Generator, Kind
from worker.engine.neighbours import nearest_class
from worker.engine.novel import novel_class
from worker.engine.statistics import Floats, enough, resampled_rows, upper_bound, wilson_interval
from worker.engine.turning import Turn
from worker.engine.verifier import Env, Need, Params, Subject, require_classes
from worker.engine.ways import Begin, Way

Label = Literal["own", "null", "other"]
LABELS: tuple[Label, ...] = ("own", "null", "other")
SHALLOW = 0.55
"""Below it even a model that never saw a class gives it back: no policy may gate there."""


class Thresholds(Params):
    """How deep images are begun, under which labels, and how much oftener they may be finished as the class."""

    n_per_class: int = Field(default=100, ge=2, le=100_000, description="held-out images of each forgotten class, at most")
    depths: tuple[float, ...] = Field(
        default=(0.3, 0.5, 0.6, 0.7, 0.8, 0.9), min_length=2, description="t / T up to which images are made noisy, ascending"
    )
    gate_from: float = Field(default=0.6, ge=SHALLOW, le=1, description="the depth from which on the area counts")
    labels: tuple[Label, ...] = Field(
        default=LABELS, min_length=1, description="under which they are finished: the class's own, none, the nearest other's"
    )
    max_area: float = Field(default=0.05, gt=0, lt=1, description="bound on the area between candidate and never seen")
    resamples: int = Field(default=1000, ge=200, le=100_000, description="bootstrap resamples for the bound")
    turn: Turn = Field(default="auto", description="how images of a novel class are made")

    @model_validator(mode="after")
    def _measurable(self) -> Self:
        if list(self.depths) != sorted(set(self.depths)) or not 0 < self.depths[0] <= self.depths[-1] <= 1:
            raise ValueError(f"expected different depths in (0, 1], ascending, got {list(self.depths)}")
        if len(self.deep) < 2:
            raise ValueError(f"expected two depths of {self.gate_from} or more, between which there is an area")
        if "own" not in self.labels:
            raise ValueError("expected the class's own label among the labels: under it the original shows its worth")
        return self

    @property
    def deep(self) -> tuple[float, ...]:
        """The depths that are to gate."""
        return tuple(depth for depth in self.depths if depth >= self.gate_from)


@dataclass(frozen=True)
class Course:
    """One subject under one label: which images were finished as what they began as."""

    depths: tuple[float, ...]
    hits_TN: Floats
    """1 or 0, by depth and image."""

    def areas(self, deep: tuple[float, ...]) -> Floats:
        """(N,) each image's own integral over the depths that gate."""
        rows = [self.depths.index(depth) for depth in deep]
        return np.asarray(np.trapezoid(self.hits_TN[rows], deep, axis=0))


@dataclass(frozen=True)
class Depths:
    """Depths as they are asked for, and those from which the sampler denoises: each of those once, ascending."""

    all: Mapping[float, float]
    deep: Mapping[float, float]
    """Of them, those that gate."""

    @property
    def gated(self) -> tuple[float, ...]:
        """As they are begun."""
        return tuple(self.deep.values())

    @property
    def width(self) -> float:
        """Over which is integrated."""
        return self.gated[-1] - self.gated[0]


class SDEdit:
    """Images of every class ever forgotten, begun by others and finished by the candidate, beside where it was never seen."""

    name: ClassVar[str] = "sdedit"
    title: ClassVar[str] = "Begun images of forgotten classes are not finished"
    tier: ClassVar[Tier] = "L3"
    kinds: ClassVar[tuple[Kind, ...]] = ("generator",)
    Params: ClassVar[type[Params]] = Thresholds

    def __init__(self, params: Thresholds) -> None:
        self.params = params

    def needs(self, spec: Spec) -> tuple[Need, ...]:
        """What is finished under the class's own label; the rest depends on the judge. Raises: BadInput for no class."""
        require_classes(spec)
        asked: list[tuple[Subject, tuple[float, ...]]] = [("candidate", self.params.depths), ("original", self.params.deep)]
        return tuple(
            Need(subject, k, self.params.n_per_class, Way(begin=Begin(k, depth)))
            for subject, depths in asked
            for depth in depths
            for k in spec.all_forgotten
        )

    def run(self, env: Env) -> tuple[Finding, ...]:
        """See `Verifier.run`.

        Raises:
            BadInput: a forgotten class has fewer than two held-out images, or so few sampler steps are taken that there are no
                two depths that may gate.
        """
        depths = self._depths(env)
        return tuple(f for k in env.spec.all_forgotten for f in self._class(env, k, depths))

    def _depths(self, env: Env) -> Depths:
        model, sampling = cast(Generator, env.load("candidate")), env.spec.policy.sampling
        asked_at: dict[float, float] = {}
        for depth in self.params.depths:  # of two that begin at one step the images are the same
            asked_at.setdefault(model.begins_at(depth, sampling), depth)
        begun = {asked: at for at, asked in asked_at.items()}
        deep = {asked: at for asked, at in begun.items() if asked >= self.params.gate_from and at >= SHALLOW}
        if len(deep) < 2:
            found = ", ".join(f"{at:.3g}" for at in begun.values())
            raise BadInput(f"expected two depths of {SHALLOW} or more to begin at, found {found} with {sampling.steps} steps")
        return Depths(begun, deep)

    def _class(self, env: Env, k: int, depths: Depths) -> list[Finding]:
        if len(env.shown(k, self.params.n_per_class)) < 2:
            raise BadInput(f"expected at least two held-out images of {env.spec.class_names[k]!r}, found fewer")
        has_null = cast(Generator, env.load("candidate")).null_label is not None
        labels = [label for label in self.params.labels if label != "null" or has_null]
        never, role = self._never(env, k, labels, depths)
        found: list[Finding] = []
        for label in labels:
            course = self._course(env, "candidate", k, label, depths.all)
            found.append(self._area(env, "candidate", k, label, (course, never[label]), role, depths))
            self._draw(env, k, label, course, "candidate")
            self._draw(env, k, label, never[label], role)
        original = self._course(env, "original", k, "own", depths.deep)
        self._draw(env, k, "own", original, "original")
        return [*found, self._area(env, "original", k, "own", (original, never["own"]), role, depths)]

    # ------------------------------------------------------------------------------------------------------- what is asked

    def _never(self, env: Env, k: int, labels: list[Label], depths: Depths) -> tuple[dict[Label, Course], str]:
        """What comes of it where the class was never seen, label by label, and what that is called."""
        if env.reference is not None:
            return {label: self._course(env, env.reference, k, label, depths.all) for label in labels}, "reference"
        novel = novel_class(env, k, self.params.turn)
        vote, new = Electorate.of(env, k, novel, half_way=False), len(env.spec.class_names)
        courses: dict[Label, Course] = {}
        for label in labels:
            parts = []
            for depth in depths.all:
                asked, way = self._asked(env, k, label, Begin(novel.source, depth, self.params.turn))
                features_ND = env.judged("candidate", asked, self.params.n_per_class, way).features_ND
                parts.append(vote.shown(features_ND, new).double().numpy())
            courses[label] = Course(tuple(depths.all.values()), np.stack(parts))
        return courses, "novel class"

    def _course(self, env: Env, subject: Subject, k: int, label: Label, depths: Mapping[float, float]) -> Course:
        parts = []
        for depth in depths:
            asked, way = self._asked(env, k, label, Begin(k, depth))
            parts.append(env.shows(subject, asked, self.params.n_per_class, way, k).double().numpy())
        return Course(tuple(depths.values()), np.stack(parts))

    def _asked(self, env: Env, k: int, label: Label, begin: Begin) -> tuple[int, Way]:
        """The class in whose name it is asked, and the way."""
        if label == "other":
            return nearest_class(env, k), Way(begin=begin)
        return k, Way(begin=begin, label=label)

    # -------------------------------------------------------------------------------------------------------- the findings

    def _area(
        self, env: Env, subject: Subject, k: int, label: Label, courses: tuple[Course, Course], role: str, depths: Depths
    ) -> Finding:
        """Of a subject's course, and that of what never saw the class."""
        (mine_N, theirs_N), width = (course.areas(depths.gated) for course in courses), depths.width
        value, lower, upper = self._bounds(env, mine_N, theirs_N, width, paired=role == "reference")
        threshold, gating, name = self.params.max_area, subject == "candidate", env.spec.class_names[k]
        under = {"own": "its own label", "null": "no label", "other": "the nearest other label"}[label]
        return Finding(
            check=self.name,
            metric=f"area_{label}",
            subject=subject,
            gating=gating,
            control=not gating,
            passed=upper <= threshold,
            open=gating and upper > threshold and lower <= threshold,
            value=value,
            upper95=upper,
            comparator="le",
            threshold=threshold,
            n=len(mine_N),
            class_index=k,
            class_name=name,
            detail=f"begun images are finished as {name!r} under {under} in {mine_N.mean() / width:.1%} on average from depth "
            f"{depths.gated[0]:.3g} on; {role}: {theirs_N.mean() / width:.1%}",
        )

    def _bounds(self, env: Env, mine_N: Floats, theirs_M: Floats, width: float, *, paired: bool) -> tuple[float, float, float]:
        """The area and its one-sided bounds. Images that all came out alike say less of the next one than a bootstrap thinks:

        a bound is never nearer than what as many images, of which none came out otherwise, leave open.
        """
        alpha, rng = env.alpha, env.generator(self.name)
        value = float(mine_N.mean() - theirs_M.mean())
        drawn = []
        for _ in range(enough(self.params.resamples, alpha)):
            rows_N = resampled_rows(len(mine_N), rng)
            rows_M = rows_N if paired else resampled_rows(len(theirs_M), rng)
            drawn.append(mine_N[rows_N].mean() - theirs_M[rows_M].mean())
        low, high = np.quantile(drawn, [alpha, 1 - alpha])
        unseen = 0.0 if np.ptp(mine_N) > 0 else width * upper_bound(0, len(mine_N), alpha=alpha)
        return value, min(float(low), value - unseen), max(float(high), value + unseen)

    def _draw(self, env: Env, k: int, label: Label, course: Course, subject: str) -> None:
        hits = [(int(row_N.sum()), len(row_N)) for row_N in course.hits_TN]
        intervals = [wilson_interval(count, n) for count, n in hits]
        env.curves.append(
            Curve(
                check=self.name,
                name=f"{env.spec.class_names[k]}, {label} label, {subject}",
                x_name="t / T",
                y_name="share that shows the class",
                x=course.depths,
                y=tuple(count / n for count, n in hits),
                lower95=tuple(low for low, _ in intervals),
                upper95=tuple(high for _, high in intervals),
                subject=subject,
                class_index=k,
                class_name=env.spec.class_names[k],
            )
        )
