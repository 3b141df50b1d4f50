"""Does a forgotten class come back when the candidate is trained on with innocent data?

Whoever downloads a model fine-tunes it, and what unlearning only covered up may surface without anybody's asking. A copy of
the saved model is trained on images of retained classes alone; at no checkpoint may it show the forgotten class oftener than a
result may that comes fresh from unlearning, but for a small margin. Every checkpoint must hold, so none needs a correction.

Source: arXiv:2512.03564, arXiv:2410.08074 (resurgence after benign fine-tuning).
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from worker.contract import Finding, Spec, Tier
from worker.engine import attacks
from worker.engine.attacks import Attack, Course, Probe
from worker.engine.family import Kind
from worker.engine.rates import underpowered
from worker.engine.statistics import lower_bound, upper_bound
from worker.engine.verifier import Env, Need, Params


class Thresholds(Params):
    """How long is trained, how often is asked, and how much of a class may come back."""

    steps: int = Field(default=500, ge=1, le=100_000, description="updates on retained images")
    every: int = Field(default=100, ge=1, le=10_000, description="updates between two checkpoints")
    learning_rate: float | None = Field(
        default=None, gt=0, le=1, description="of AdamW; null: what models of the kind are commonly trained with"
    )
    batch_size: int = Field(default=32, ge=1, le=4096, description="images of an update")
    n_per_class: int = Field(default=100, ge=1, le=100_000, description="answers at a checkpoint")
    max_rate: float = Field(
        default=0.08, gt=0, lt=1, description="bound on the share of answers that show the class, at every checkpoint, 0-1"
    )


class Resurgence:
    """The share of answers that show a forgotten class, at its worst along the way, of every class ever forgotten."""

    name: ClassVar[str] = "resurgence"
    title: ClassVar[str] = "Forgotten classes do not come back when the model is trained on"
    tier: ClassVar[Tier] = "L3"
    kinds: ClassVar[tuple[Kind, ...]] = ("generator", "classifier")
    Params: ClassVar[type[Params]] = Thresholds

    def __init__(self, params: Thresholds) -> None:
        self.params = params

    def needs(self, spec: Spec) -> tuple[Need, ...]:
        """What is asked of a model under attack is asked of no other."""
        return ()

    def run(self, env: Env) -> tuple[Finding, ...]:
        """See `Verifier.run`. Nothing where only single samples were forgotten."""
        classes, n = env.spec.all_forgotten, self.params.n_per_class
        probes = {k: attacks.probe_of(env, k, n) for k in classes}
        asked = [k for k, probe in probes.items() if probe.n]
        courses = dict(zip(asked, self._courses(env, [probes[k] for k in asked]), strict=True))
        for k, course in courses.items():
            self._draw(env, k, course)
        return tuple(self._score(env, k, courses[k]) if k in courses else self._unasked(env, k) for k in classes)

    def _courses(self, env: Env, probes: list[Probe]) -> tuple[Course, ...]:
        """One training for all classes: what is retained is the same for each."""
        if not probes:
            return ()
        p = self.params
        attack = Attack(
            name=self.name,
            subject="candidate",
            lessons=(attacks.retained(env, p.batch_size),),
            probes=tuple(probes),
            rate=p.learning_rate or attacks.RATES[env.kind],
            checkpoints=attacks.checkpoints(p.steps, p.every, from_start=False),
        )
        (courses,) = attacks.run(env, [attack])
        return courses

    def _score(self, env: Env, k: int, course: Course) -> Finding:
        """The worst checkpoint; of a training that broke off nobody knows what would have come, so it counts as come back."""
        name, threshold = env.spec.class_names[k], self.params.max_rate
        hits = course.n if course.diverged else max(course.hits)
        upper, lower = (bound(hits, course.n, alpha=env.alpha) for bound in (upper_bound, lower_bound))
        # So few that not even none would pass still refute what comes back often enough.
        powerless = upper_bound(0, course.n, alpha=env.alpha) > threshold and lower <= threshold
        said = (
            f"training on retained images broke off {course.diverged}"
            if course.diverged
            else f"after {course.steps[course.hits.index(hits)]} of {course.steps[-1]} updates on retained images alone "
            f"{hits} of {course.n} answers show {name!r}, the most of {len(course.steps)} checkpoints; before: {course.hits[0]}"
        )
        finding = Finding(
            check=self.name,
            metric="resurgence_rate",
            subject="candidate",
            gating=True,
            passed=upper <= threshold,
            open=lower <= threshold < upper,
            value=hits / course.n,
            lower95=lower,
            upper95=upper,
            comparator="le",
            threshold=threshold,
            n=course.n,
            count=hits,
            class_index=k,
            class_name=name,
            detail=said[:400],
        )
        return underpowered(finding) if powerless else finding

    def _unasked(self, env: Env, k: int) -> Finding:
        return Finding(
            check=self.name,
            metric="resurgence_rate",
            subject="candidate",
            gating=False,
            underpowered=True,
            n=0,
            class_index=k,
            class_name=env.spec.class_names[k],
            detail="the class has no held-out image that could be asked about",
        )

    def _draw(self, env: Env, k: int, course: Course) -> None:
        name = env.spec.class_names[k]
        curve = attacks.curve_of(
            course,
            check=self.name,
            name=f"candidate, {name}",
            subject="candidate",
            k=k,
            class_name=name,
            threshold=self.params.max_rate,
            alpha=env.alpha,
        )
        env.curves += [curve] if curve is not None else []
