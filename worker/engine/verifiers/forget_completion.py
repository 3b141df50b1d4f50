"""Does the candidate still know what hidden parts of a forgotten class's images look like? And does the original, as it must?

Held-out images of the class are completed, and a judge that sees the completed region alone says what it shows. A model that
was retrained without the class still completes such an image plausibly, from what it sees and from other classes; so the aim
is not noise, but to show the class no oftener than a model that never saw it. How often that is, the operator measured with a
retrained model (`never_seen_accuracy`); or, where nobody did, the better of two references that have not seen the class says
it, on the same images (see `worker.engine.references`): a cautious level, for a retrained model may well do better than they.

The gate is a one-sided bound, held to the margin: of the candidate's rate beside a level that is given (Clopper-
Pearson), or of how far it lies above the better reference (see `worker.engine.excess`), whose rate is as uncertain as its
own. Two controls on the original: it must fail the gate; and it must lie at least `min_power` above what never saw the class,
at its lower bound, or the judge, or the corruption, could not tell a model that knows from one that does not. The finding
then says `underpowered`, and the verdict is VOID. A reference is held to the candidate's bound: one that shows the class more
often was not trained without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from worker.contract import Finding, MaskSpec, Spec, Tier
from worker.engine import references
from worker.engine.errors import BadInput
from worker.engine.excess import Reference, best, excess_lower, excess_upper
from worker.engine.family import Kind
from worker.engine.likeness import Likeness, likeness, reported, suffix
from worker.engine.region import described
from worker.engine.retrained import role, subjects
from worker.engine.statistics import confidence, lower_bound, upper_bound, wilson_interval
from worker.engine.streams import Stream
from worker.engine.verifier import Env, Need, Params, Subject, corruptions_of, level, require_classes, ways_of
from worker.engine.ways import Way

CANDIDATES = 4096
"""At most so many training images of other classes are looked through for the nearest one."""


class Thresholds(Params):
    """How many images, how often a model without the class shows it, and how near to that is near enough."""

    n_per_class: int = Field(default=500, ge=1, le=100_000, description="held-out images of each forgotten class, at most")
    never_seen_accuracy: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="share of completed regions in which the judge sees the class, measured with models retrained without it, "
        "0-1; null: with references that never saw it",
    )
    margin: float = Field(default=0.05, gt=0, lt=1, description="how far above what never saw the class the bound may lie, 0-1")
    min_power: float = Field(
        default=0.10,
        ge=0.10,
        lt=1,
        description="how far above what never saw the class the original must lie, or nothing is shown, 0-1",
    )


@dataclass(frozen=True)
class Case:
    """What a finding is about: a class, hidden in one way."""

    corruption: MaskSpec
    prompted: bool
    class_index: int
    class_name: str
    references: tuple[Reference, ...]
    """What never saw the class; none where its level is given."""


@dataclass(frozen=True)
class Standing:
    """A subject beside what never saw a class: its rate, where a level is given, or how far it lies above the references."""

    metric: str
    value: float
    lower95: float
    upper95: float
    threshold: float
    due: float
    """What the original must lie above."""
    never_seen: str
    """For people."""


class ForgetCompletion:
    """Judge accuracy on completed regions of every class ever forgotten, under every corruption; the original is control."""

    name: ClassVar[str] = "forget_completion"
    title: ClassVar[str] = "Forgotten classes are completed no better than by what never saw them"
    tier: ClassVar[Tier] = "L1"
    kinds: ClassVar[tuple[Kind, ...]] = ("i2i",)
    Params: ClassVar[type[Params]] = Thresholds

    def __init__(self, params: Thresholds) -> None:
        self.params = params

    def needs(self, spec: Spec) -> tuple[Need, ...]:
        """See `Verifier.needs`. Raises: BadInput where no class was forgotten, or the policy names no corruption."""
        require_classes(spec)
        n = self.params.n_per_class
        return tuple(
            Need(subject, k, n, Way(corruption, prompted))
            for subject in subjects(spec)
            for corruption in corruptions_of(spec)
            for prompted in ways_of(spec)
            for k in spec.all_forgotten
        )

    def require_enough(self, spec: Spec, held_out: Sequence[int]) -> None:
        """See `foresight`. Raises: BadInput when a forgotten class has too few held-out images, whatever they show."""
        counts = {k: min(held_out[k], self.params.n_per_class) for k in spec.all_forgotten}
        if few := [spec.class_names[k] for k, n in counts.items() if n < 2]:
            raise BadInput(f"expected at least two held-out images of every forgotten class, found fewer of {', '.join(few)}")
        if (never := self.params.never_seen_accuracy) is None:
            return
        for k, n in counts.items():
            if upper_bound(0, n, alpha=level(spec)) > (most := never + self.params.margin):
                what = f"an accuracy of at most {most:.3f} at {confidence(level(spec))}"
                raise BadInput(f"{n} held-out images of {spec.class_names[k]!r} cannot show {what}")

    def run(self, env: Env) -> tuple[Finding, ...]:
        """See `Verifier.run`. Raises: BadInput when a forgotten class has too few held-out images."""
        self.require_enough(env.spec, env.dataset.held_out_counts)
        found: list[Finding] = []
        for corruption in corruptions_of(env.spec):
            by_class = self._references(env, corruption)
            for prompted in ways_of(env.spec):
                cases = [Case(corruption, prompted, k, env.spec.class_names[k], some) for k, some in by_class.items()]
                found += self._under(env, cases, corruption, prompted)
        return tuple(found)

    def _under(self, env: Env, cases: list[Case], corruption: MaskSpec, prompted: bool) -> list[Finding]:
        n, found = self.params.n_per_class, list[Finding]()
        for subject in subjects(env.spec):
            seen = [likeness(env, subject, corruption, case.class_index, n, prompted=prompted) for case in cases]
            for case, one in zip(cases, seen, strict=True):
                found += self._findings(subject, case, one, env.alpha)
            more = reported(self.name, subject, corruption, seen, which="held-out images of forgotten classes")
            found += [f.model_copy(update={"metric": f.metric + suffix(prompted)}) for f in more]
        return found

    # ------------------------------------------------------------------------------------------ what never saw the class

    def _references(self, env: Env, corruption: MaskSpec) -> dict[int, tuple[Reference, ...]]:
        """By forgotten class. Raises: BadInput when its held-out images are too few to show that a model is near them."""
        if self.params.never_seen_accuracy is not None:
            return dict.fromkeys(env.spec.all_forgotten, ())
        others_MCHW, margin = _others(env), self.params.margin
        found = {k: self._made(env, corruption, k, others_MCHW) for k in env.spec.all_forgotten}
        for k, some in found.items():
            none_N = torch.zeros_like(some[0].right_N)
            if excess_upper(none_N, some, alpha=env.alpha) > margin:
                what = f"that a model is at most {margin:.3f} above what never saw the class at {confidence(env.alpha)}"
                raise BadInput(f"{len(none_N)} held-out images of {env.spec.class_names[k]!r} cannot show {what}")
        return found

    def _made(self, env: Env, corruption: MaskSpec, k: int, others_MCHW: Tensor) -> tuple[Reference, ...]:
        n, judge = self.params.n_per_class, env.region_judge(corruption)
        images_NCHW = env.dataset.images_NCHW[env.shown(k, n)]
        hidden_Nhw, covered_N1HW = env.hidden(corruption, k, n), env.covered(corruption, k, n)
        fills = {
            "the harmonic fill": references.harmonic(images_NCHW, covered_N1HW),
            "the nearest image of other classes": references.nearest(images_NCHW, covered_N1HW, others_MCHW),
        }
        return tuple(Reference(name, judge.look(fill, hidden_Nhw).predicted_N == k) for name, fill in fills.items())

    # ------------------------------------------------------------------------------------------------------ the findings

    def _standing(self, case: Case, seen: Likeness, alpha: float) -> Standing:
        hits, n, margin, min_power = int(seen.right_N.sum()), len(seen.right_N), self.params.margin, self.params.min_power
        if (never := self.params.never_seen_accuracy) is not None:
            return Standing(
                "completed_region_accuracy", hits / n, lower_bound(hits, n, alpha=alpha), upper_bound(hits, n, alpha=alpha),
                never + margin, never + min_power, f"{never:.1%}, as measured with models retrained without it",
            )  # fmt: skip
        reference = best(case.references)
        return Standing(
            "completed_region_excess", hits / n - reference.accuracy,
            excess_lower(seen.right_N, case.references, alpha=alpha),
            excess_upper(seen.right_N, case.references, alpha=alpha), margin, min_power,
            " and ".join(f"{one.accuracy:.1%} by {one.name}" for one in case.references),
        )  # fmt: skip

    def _findings(self, subject: Subject, case: Case, seen: Likeness, alpha: float) -> list[Finding]:
        standing = self._standing(case, seen, alpha)
        found = [self._score(subject, case, seen, standing)]
        return [*found, self._power(case, seen, standing)] if subject == "original" else found

    def _score(self, subject: Subject, case: Case, seen: Likeness, standing: Standing) -> Finding:
        hits, n = int(seen.right_N.sum()), len(seen.right_N)
        low, high = wilson_interval(hits, n)
        said = role(subject, "is still seen", "is seen before forgetting, as it must be,", "is seen by the reference")
        return Finding(
            check=self.name,
            metric=standing.metric + suffix(case.prompted),
            subject=subject,
            gating=subject == "candidate",
            control=subject == "original",
            passed=standing.upper95 <= standing.threshold,
            open=subject == "candidate" and standing.lower95 <= standing.threshold < standing.upper95,
            value=standing.value,
            lower95=standing.lower95,
            upper95=standing.upper95,
            comparator="le",
            threshold=standing.threshold,
            n=n,
            count=hits,
            class_index=case.class_index,
            class_name=case.class_name,
            corruption=case.corruption,
            detail=f"{case.class_name!r} {said} in {hits} of {n} completed regions, {described(case.corruption)} (Wilson 95 %: "
            f"{low:.1%} to {high:.1%}); never seen: {standing.never_seen}",
        )

    def _power(self, case: Case, seen: Likeness, standing: Standing) -> Finding:
        """The second control. Where a judge is near chance, nobody knows the class, the original no more than others."""
        hits, n = int(seen.right_N.sum()), len(seen.right_N)
        passed = standing.lower95 <= standing.due
        beside = "no less than" if self.params.never_seen_accuracy is not None else "no less above than"
        return Finding(
            check=self.name,
            metric="underpowered" + suffix(case.prompted),
            subject="original",
            gating=False,
            control=True,
            passed=passed,
            value=standing.value,
            lower95=standing.lower95,
            comparator="le",
            threshold=standing.due,
            n=n,
            count=hits,
            class_index=case.class_index,
            class_name=case.class_name,
            corruption=case.corruption,
            detail=f"{'underpowered: ' if passed else ''}the original is at {hits / n:.1%}, {beside} {standing.lower95:.1%}; "
            f"what never saw the class is at {standing.never_seen}; {self.params.min_power:.0%} must lie between",
        )


def _others(env: Env) -> Tensor:
    """(M, C, H, W) training images of classes that were never to be forgotten."""
    index_N = env.dataset.train_of(set(range(len(env.spec.class_names))) - set(env.spec.all_forgotten))
    stream = Stream("references", env.spec.verification_seed, index_N, env.dataset.labels_N[index_N])
    return env.dataset.images_NCHW[stream.stratified(CANDIDATES).indices_N]
