"""Does the candidate still draw the forgotten classes? And does the original, as it must, or is the suite blind?

Source: the rate is the share of samples, drawn under the class's own label, that any judge takes for the class; the gate
is the one-sided 95 % Clopper-Pearson bound, so that luck with few samples does not pass. Two judges raise more false alarms
than one: of theirs on real images the threshold takes account.
"""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field, model_validator

from worker.contract import Finding, Spec, Tier
from worker.engine.family import Kind
from worker.engine.statistics import lower_bound, upper_bound, wilson_interval
from worker.engine.verifier import Env, Need, Params, Subject


class Thresholds(Params):
    """How many samples of each forgotten class, and how many of them may still show it."""

    n_per_class: int = Field(default=200, ge=1, le=100_000, description="samples of each forgotten class")
    max_rate: float = Field(default=0.05, gt=0, lt=1, description="bound on the share that still shows the class, 0-1")

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if upper_bound(0, self.n_per_class) > self.max_rate:
            raise ValueError(
                f"{self.n_per_class} samples cannot show a rate of {self.max_rate} at 95 %, even if none shows the class"
            )
        return self


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
        """See `Verifier.needs`."""
        n, subjects = self.params.n_per_class, self._subjects()
        return tuple(Need(subject, k, n) for subject in subjects for k in spec.all_forgotten)

    def run(self, env: Env) -> tuple[Finding, ...]:
        """See `Verifier.run`."""
        return tuple(self._score(env, s, k) for k in env.spec.all_forgotten for s in self._subjects())

    def _subjects(self) -> tuple[Subject, ...]:
        return ("candidate", "original")

    def _max_rate(self, env: Env, k: int) -> float:
        floor = self.params.max_rate
        return env.forget_threshold(k, floor) if len(env.judges) > 1 else floor

    def _score(self, env: Env, subject: Subject, k: int) -> Finding:
        n, name = self.params.n_per_class, env.spec.class_names[k]
        hits = int(env.shows(subject, k, n).sum())
        lower, threshold = lower_bound(n - hits, n), 1 - self._max_rate(env, k)
        low, high = wilson_interval(hits, n)
        role = "still show it" if subject == "candidate" else "show it before forgetting, as they must"
        return Finding(
            check=self.name,
            metric="unlearning_accuracy",
            subject=subject,
            gating=subject == "candidate",
            control=subject == "original",
            passed=lower >= threshold,
            value=(n - hits) / n,
            lower95=lower,
            comparator="ge",
            threshold=threshold,
            n=n,
            count=hits,
            class_index=k,
            class_name=name,
            detail=f"{hits} of {n} samples of {name!r} {role} (Wilson 95 %: {low:.1%} to {high:.1%})",
        )
