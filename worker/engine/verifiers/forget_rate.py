"""Does the candidate still draw the forgotten classes? And does the original, as it must, or is the suite blind?

Source: the rate is the share of samples, drawn under the class's own label, that any judge takes for the class; the gate
is the one-sided Clopper-Pearson bound, so that luck with few samples does not pass. Two judges raise more false alarms than
one: of theirs on real images the threshold takes account. A reference is held to the same bound: one that draws the class was
not trained without it.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from worker.contract import Finding, Spec, Tier
from worker.engine.errors import BadInput
from worker.engine.family import Kind
from worker.engine.rates import loosened
from worker.engine.retrained import role, subjects
from worker.engine.statistics import confidence, lower_bound, upper_bound, wilson_interval
from worker.engine.verifier import Env, Need, Params, Subject, level


class Thresholds(Params):
    """How many samples of each forgotten class, and how many of them may still show it."""

    n_per_class: int = Field(default=200, ge=1, le=100_000, description="samples of each forgotten class")
    max_rate: float = Field(default=0.05, gt=0, lt=1, description="bound on the share that still shows the class, 0-1")


class ForgetRate:
    """Unlearning accuracy of every class that was ever forgotten on this lineage, with the original as control."""

    name: ClassVar[str] = "forget_rate"
    title: ClassVar[str] = "Forgotten classes are no longer drawn"
    tier: ClassVar[Tier] = "L1"
    kinds: ClassVar[tuple[Kind, ...]] = ("generator",)
    Params: ClassVar[type[Params]] = Thresholds

    def __init__(self, params: Thresholds) -> None:
        self.params = params

    def needs(self, spec: Spec) -> tuple[Need, ...]:
        """See `Verifier.needs`. Raises: BadInput when so few samples could pass nothing, not even none that shows the class."""
        n = self.params.n_per_class
        if upper_bound(0, n, alpha=level(spec)) > self.params.max_rate:
            what = f"a rate of {self.params.max_rate} at {confidence(level(spec))}"
            raise BadInput(f"{n} samples cannot show {what}, even if none shows the class")
        return tuple(Need(subject, k, n) for subject in subjects(spec) for k in spec.all_forgotten)

    def run(self, env: Env) -> tuple[Finding, ...]:
        """See `Verifier.run`."""
        return tuple(self._score(env, s, k) for k in env.spec.all_forgotten for s in subjects(env.spec))

    def _max_rate(self, env: Env, k: int) -> float:
        floor = self.params.max_rate
        return env.forget_threshold(k, floor) if len(env.judges) > 1 else floor

    def _score(self, env: Env, subject: Subject, k: int) -> Finding:
        n, name = self.params.n_per_class, env.spec.class_names[k]
        hits = int(env.shows(subject, k, n).sum())
        lower, threshold = lower_bound(n - hits, n, alpha=env.alpha), 1 - self._max_rate(env, k)
        upper = upper_bound(n - hits, n, alpha=env.alpha)
        low, high = wilson_interval(hits, n)
        said = role(subject, "still show it", "show it before forgetting, as they must", "of the reference show it")
        return Finding(
            check=self.name,
            metric="unlearning_accuracy",
            subject=subject,
            gating=subject == "candidate",
            control=subject == "original",
            passed=lower >= threshold,
            open=subject == "candidate" and lower < threshold <= upper,
            value=(n - hits) / n,
            lower95=lower,
            upper95=upper,
            comparator="ge",
            threshold=threshold,
            n=n,
            count=hits,
            class_index=k,
            class_name=name,
            detail=f"{hits} of {n} samples of {name!r} {said} (Wilson 95 %: {low:.1%} to {high:.1%})"
            + loosened(env, k, self.params.max_rate, self._max_rate(env, k)),
        )
