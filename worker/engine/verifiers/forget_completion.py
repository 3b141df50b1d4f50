"""Does the candidate still know what hidden parts of a forgotten class's images look like? And does the original, as it must?

Held-out images of the class are completed, and a judge that sees the completed region alone says what it shows. A model that
was retrained without the class still completes such an image plausibly, from what it sees and from other classes; so the aim is
not noise, but to show the class no oftener than a model that never saw it. That level is what the operator measured with a
retrained model (`never_seen_accuracy`), or, where nobody did, the better of two references that have not seen the class (see
`worker.engine.references`): a cautious one, for a retrained model may well do better than they.

The gate is the one-sided 95 % Clopper-Pearson bound, held to the level and a margin. Two controls on the original: it must fail
the gate; and it must lie at least `min_power` above the level, at its lower bound, or the judge, or the corruption, could not
tell a model that knows from one that does not. The finding then says `underpowered`, and the verdict is VOID.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from worker.contract import Finding, MaskSpec, Spec
from worker.engine import references
from worker.engine.errors import BadInput
from worker.engine.family import Kind
from worker.engine.likeness import Likeness, likeness, reported, suffix
from worker.engine.region import described
from worker.engine.statistics import lower_bound, upper_bound, wilson_interval
from worker.engine.streams import Stream
from worker.engine.verifier import Env, Need, Params, Subject, Tier, corruptions_of, ways_of

CANDIDATES = 4096
"""At most so many training images of other classes are looked through for the nearest one."""


class Thresholds(Params):
    """How many images, which level a model without the class reaches, and how near to it is near enough."""

    n_per_class: int = Field(default=500, ge=1, le=100_000, description="held-out images of each forgotten class, at most")
    never_seen_accuracy: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="share of completed regions in which the judge sees the class, measured with models retrained without it, "
        "0-1; null: with references that never saw it",
    )
    margin: float = Field(default=0.05, gt=0, lt=1, description="how far above that level the bound may lie, 0-1")
    min_power: float = Field(
        default=0.10, ge=0.10, lt=1, description="how far above that level the original must lie, or nothing is shown, 0-1"
    )


@dataclass(frozen=True)
class Level:
    """How often the judge sees a class in completions by what never saw it."""

    accuracy: float
    source: str


@dataclass(frozen=True)
class Case:
    """What a finding is about: a class, hidden in one way."""

    corruption: MaskSpec
    prompted: bool
    class_index: int
    class_name: str
    level: Level


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
        if not spec.all_forgotten:
            raise BadInput("expected a forgotten class, found none: this check says nothing of single samples")
        n = self.params.n_per_class
        return tuple(
            Need(subject, k, n, corruption, prompted)
            for subject in self._subjects()
            for corruption in corruptions_of(spec)
            for prompted in ways_of(spec)
            for k in spec.all_forgotten
        )

    def run(self, env: Env) -> tuple[Finding, ...]:
        """See `Verifier.run`. Raises: BadInput when a forgotten class has too few held-out images."""
        found: list[Finding] = []
        for corruption in corruptions_of(env.spec):
            levels = self._levels(env, corruption)
            for prompted in ways_of(env.spec):
                cases = [Case(corruption, prompted, k, env.spec.class_names[k], level) for k, level in levels.items()]
                found += self._under(env, cases, corruption, prompted)
        return tuple(found)

    def _subjects(self) -> tuple[Subject, ...]:
        return ("candidate", "original")

    def _under(self, env: Env, cases: list[Case], corruption: MaskSpec, prompted: bool) -> list[Finding]:
        n, found = self.params.n_per_class, list[Finding]()
        for subject in self._subjects():
            seen = [likeness(env, subject, corruption, case.class_index, n, prompted=prompted) for case in cases]
            found += [self._score(subject, case, one) for case, one in zip(cases, seen, strict=True)]
            if subject == "original":
                found += [self._power(case, one) for case, one in zip(cases, seen, strict=True)]
            more = reported(self.name, subject, corruption, seen, which="held-out images of forgotten classes")
            found += [f.model_copy(update={"metric": f.metric + suffix(prompted)}) for f in more]
        return found

    # --------------------------------------------------------------------------------------------------------- the level

    def _levels(self, env: Env, corruption: MaskSpec) -> dict[int, Level]:
        """By forgotten class. Raises: BadInput when its held-out images are too few to show that a model is at it."""
        counts = {k: len(env.shown(k, self.params.n_per_class)) for k in env.spec.all_forgotten}
        if empty := [env.spec.class_names[k] for k, n in counts.items() if n == 0]:
            raise BadInput(f"expected held-out images of every forgotten class, found none of {', '.join(empty)}")
        if self.params.never_seen_accuracy is not None:
            measured = Level(self.params.never_seen_accuracy, "as measured with models retrained without it")
            levels = dict.fromkeys(counts, measured)
        else:
            others_MCHW = _others(env)
            levels = {k: self._by_references(env, corruption, k, others_MCHW) for k in counts}
        for k, n in counts.items():
            most = levels[k].accuracy + self.params.margin
            if upper_bound(0, n) > most:
                name = env.spec.class_names[k]
                raise BadInput(f"{n} held-out images of {name!r} cannot show an accuracy of at most {most:.3f} at 95 %")
        return levels

    def _by_references(self, env: Env, corruption: MaskSpec, k: int, others_MCHW: Tensor) -> Level:
        n = self.params.n_per_class
        images_NCHW = env.dataset.images_NCHW[env.shown(k, n)]
        hidden_Nhw, covered_N1HW = env.hidden(corruption, k, n), env.covered(corruption, k, n)
        fills = {
            "by the harmonic fill": references.harmonic(images_NCHW, covered_N1HW),
            "by the nearest image of other classes": references.nearest(images_NCHW, covered_N1HW, others_MCHW),
        }
        judge = env.region_judge(corruption)
        levels = [
            Level(float((judge.look(fill_NCHW, hidden_Nhw).predicted_N == k).double().mean()), source)
            for source, fill_NCHW in fills.items()
        ]
        return max(levels, key=lambda level: level.accuracy)

    # ------------------------------------------------------------------------------------------------------ the findings

    def _score(self, subject: Subject, case: Case, seen: Likeness) -> Finding:
        hits, n = int(seen.right_N.sum()), len(seen.right_N)
        upper, threshold = upper_bound(hits, n), case.level.accuracy + self.params.margin
        low, high = wilson_interval(hits, n)
        role = "is still seen" if subject == "candidate" else "is seen before forgetting, as it must be,"
        return Finding(
            check=self.name,
            metric="completed_region_accuracy" + suffix(case.prompted),
            subject=subject,
            gating=subject == "candidate",
            control=subject == "original",
            passed=upper <= threshold,
            value=hits / n,
            upper95=upper,
            comparator="le",
            threshold=threshold,
            n=n,
            count=hits,
            class_index=case.class_index,
            class_name=case.class_name,
            corruption=case.corruption,
            detail=f"{case.class_name!r} {role} in {hits} of {n} completed regions, {described(case.corruption)} (Wilson 95 %: "
            f"{low:.1%} to {high:.1%}); never seen: {case.level.accuracy:.1%}, {case.level.source}",
        )

    def _power(self, case: Case, seen: Likeness) -> Finding:
        """The second control. Where a judge is near chance, nobody knows the class, the original no more than others."""
        hits, n = int(seen.right_N.sum()), len(seen.right_N)
        lower, due = lower_bound(hits, n), case.level.accuracy + self.params.min_power
        passed = lower <= due
        return Finding(
            check=self.name,
            metric="underpowered" + suffix(case.prompted),
            subject="original",
            gating=False,
            control=True,
            passed=passed,
            value=hits / n,
            lower95=lower,
            comparator="le",
            threshold=due,
            n=n,
            count=hits,
            class_index=case.class_index,
            class_name=case.class_name,
            corruption=case.corruption,
            detail=f"{'underpowered: ' if passed else ''}the original is at {hits / n:.1%}, no less than {lower:.1%}, where "
            f"what never saw the class is at {case.level.accuracy:.1%}; {self.params.min_power:.0%} must lie between",
        )


def _others(env: Env) -> Tensor:
    """(M, C, H, W) training images of classes that were never to be forgotten."""
    index_N = env.dataset.train_of(set(range(len(env.spec.class_names))) - set(env.spec.all_forgotten))
    stream = Stream("references", env.spec.verification_seed, index_N, env.dataset.labels_N[index_N])
    return env.dataset.images_NCHW[stream.stratified(CANDIDATES).indices_N]
