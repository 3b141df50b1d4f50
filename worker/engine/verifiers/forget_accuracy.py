"""Does the candidate still name the forgotten classes? And does the original, as it must, or is the suite blind?

Over all held-out images of each class by itself; a model that never learned the class names none of them. The gate is the
one-sided Clopper-Pearson bound, so that luck with few images does not pass, at the level that looks and attempts leave: 95 %
where there is one of each. For an L2 certificate 0.02 is asked for, which takes 149 held-out images of the class or more. A
reference is held to the same bound: one that names the class was not trained without it.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from worker.contract import Finding, Spec, Tier
from worker.engine.errors import BadInput
from worker.engine.family import Kind
from worker.engine.retrained import role, subjects
from worker.engine.statistics import confidence, lower_bound, upper_bound, wilson_interval
from worker.engine.verifier import Env, Need, Params, Subject, require_classes


class Thresholds(Params):
    """How many of the held-out images of a forgotten class may still be named."""

    max_accuracy: float = Field(default=0.05, gt=0, lt=1, description="bound on the share that is still recognised, 0-1")


class ForgetAccuracy:
    """Accuracy on every class that was ever forgotten on this lineage, with the original as control."""

    name: ClassVar[str] = "forget_accuracy"
    title: ClassVar[str] = "Forgotten classes are no longer recognised"
    tier: ClassVar[Tier] = "L1"
    kinds: ClassVar[tuple[Kind, ...]] = ("classifier",)
    Params: ClassVar[type[Params]] = Thresholds

    def __init__(self, params: Thresholds) -> None:
        self.params = params

    def needs(self, spec: Spec) -> tuple[Need, ...]:
        """Asks about real images; nothing is drawn. Raises: BadInput where no class was forgotten."""
        require_classes(spec)
        return ()

    def run(self, env: Env) -> tuple[Finding, ...]:
        """See `Verifier.run`. Raises: BadInput when a forgotten class has too few held-out images."""
        return tuple(self._score(env, subject, k) for k in env.spec.all_forgotten for subject in subjects(env.spec))

    def _score(self, env: Env, subject: Subject, k: int) -> Finding:
        name, threshold = env.spec.class_names[k], self.params.max_accuracy
        n = len(env.dataset.held_out_of([k]))
        if n == 0 or upper_bound(0, n, alpha=env.alpha) > threshold:
            what = f"an accuracy of at most {threshold} at {confidence(env.alpha)}"
            raise BadInput(f"{n} held-out images of {name!r} cannot show {what}")
        hits = int((env.answers(subject, k).argmax(dim=1) == k).sum())
        lower, upper = lower_bound(hits, n, alpha=env.alpha), upper_bound(hits, n, alpha=env.alpha)
        low, high = wilson_interval(hits, n)
        before = "are recognised before forgetting, as they must be"
        said = role(subject, "are still recognised", before, "are recognised by the reference")
        return Finding(
            check=self.name,
            metric="forgotten_class_accuracy",
            subject=subject,
            gating=subject == "candidate",
            control=subject == "original",
            passed=upper <= threshold,
            open=subject == "candidate" and lower <= threshold < upper,
            value=hits / n,
            lower95=lower,
            upper95=upper,
            comparator="le",
            threshold=threshold,
            n=n,
            count=hits,
            class_index=k,
            class_name=name,
            detail=f"{hits} of {n} held-out images of {name!r} {said} (Wilson 95 %: {low:.1%} to {high:.1%})",
        )
