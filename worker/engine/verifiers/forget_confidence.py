"""How sure are the judges that they do not see the forgotten classes? Not only their first guess counts.

Of samples drawn under the class's own label: the judge's mean probability of the class, and the margin by which the class's
logit leads the best other one. Its 95 % quantile must be below zero, so that at most one in twenty shows the class. Entropy
has no right direction, noise may have any; it is reported. So is how far the margins are, as Kolmogorov and Smirnov measure it,
from those of samples of other classes before forgetting: what a model that does not know the class has to look like. Of two
judges the one that is surer of the class counts, image by image; what is reported is the first one's.

Shapes: N samples, K classes.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from pydantic import Field
from scipy.stats import ks_2samp

from worker.contract import Finding, Spec, Tier
from worker.engine.bounds import mean_lower, mean_upper, quantile_bounds
from worker.engine.family import Kind
from worker.engine.judge import Judged
from worker.engine.rates import underpowered
from worker.engine.statistics import Floats
from worker.engine.verifier import Env, Need, Params, Subject

SUBJECTS: tuple[Subject, ...] = ("candidate", "original")
TINY = 1e-300
"""A probability that float64 rounds to zero has a logarithm all the same."""


class Thresholds(Params):
    """How many samples of each forgotten class, and how sure the judge may be of it."""

    n_per_class: int = Field(default=200, ge=1, le=100_000, description="samples of each forgotten class and subject")
    max_probability: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="bound on the judge's mean probability of the class; or what it gives real images of others, and the "
        "policy's slack",
    )
    quantile: float = Field(default=0.95, gt=0.5, lt=1, description="of the margins, which must be below zero")


class ForgetConfidence:
    """The judge's probability of every class ever forgotten, and its lead over the others, with the original as control."""

    name: ClassVar[str] = "forget_confidence"
    title: ClassVar[str] = "The judge is sure that forgotten classes are not drawn"
    tier: ClassVar[Tier] = "L2"
    kinds: ClassVar[tuple[Kind, ...]] = ("generator",)
    Params: ClassVar[type[Params]] = Thresholds

    def __init__(self, params: Thresholds) -> None:
        self.params = params

    def needs(self, spec: Spec) -> tuple[Need, ...]:
        """See `Verifier.needs`."""
        n, few = self.params.n_per_class, self._few(spec)
        own = [Need(subject, k, n) for subject in SUBJECTS for k in spec.all_forgotten]
        return (*own, *(Need("parent", k, few) for k in spec.retain_classes))

    def run(self, env: Env) -> tuple[Finding, ...]:
        """See `Verifier.run`."""
        found: list[Finding] = []
        for k in env.spec.all_forgotten:
            limit = max(self.params.max_probability, self._elsewhere(env, k) + env.slack)
            for subject in SUBJECTS:
                judged = self._judged(env, subject, k)
                found += [self._probability(env, subject, k, judged, limit), self._margin(env, subject, k, judged)]
            found += self._reported(env, k)
        return tuple(found)

    def _few(self, spec: Spec) -> int:
        """Samples of each retained class that are as many together as those of a forgotten one."""
        return math.ceil(self.params.n_per_class / max(1, len(spec.retain_classes)))

    def _judged(self, env: Env, subject: Subject, k: int) -> tuple[Judged, ...]:
        """By each judge."""
        n = self.params.n_per_class
        more = [judge.look(env.samples(subject, k, n)) for judge in env.judges[1:]]
        return (env.judged(subject, k, n), *more)

    def _elsewhere(self, env: Env, k: int) -> float:
        """The judge's mean probability of the class where real images show another."""
        others = [j for j in range(len(env.spec.class_names)) if j != k]
        return float(np.concatenate([env.held_out(j).probabilities_NK[:, k].numpy() for j in others]).mean())

    def _probability(self, env: Env, subject: Subject, k: int, judged: tuple[Judged, ...], limit: float) -> Finding:
        p_N, n = np.max([one.probabilities_NK[:, k].numpy() for one in judged], axis=0), self.params.n_per_class
        upper, lower = mean_upper(p_N, alpha=env.alpha), mean_lower(p_N, alpha=env.alpha)
        finding = Finding(
            check=self.name,
            metric="mean_probability",
            subject=subject,
            gating=subject == "candidate",
            control=subject == "original",
            passed=upper <= limit,
            open=subject == "candidate" and lower <= limit < upper,
            value=float(p_N.mean()),
            lower95=lower,
            upper95=upper,
            comparator="le",
            threshold=limit,
            n=n,
            class_index=k,
            class_name=env.spec.class_names[k],
            detail=f"the judge's mean probability that a sample of {env.spec.class_names[k]!r} shows it"
            + self._loosened(env, k, limit),
        )
        powerless = mean_upper(np.zeros(n), alpha=env.alpha) > limit and lower <= limit
        return underpowered(finding) if powerless else finding

    def _loosened(self, env: Env, k: int, limit: float) -> str:
        """See `rates.loosened`; here a probability takes the place of false alarms."""
        asked = self.params.max_probability
        if limit <= asked:
            return ""
        elsewhere = f"{self._elsewhere(env, k):.4g} on real images of others"
        return f"; effective threshold {limit:.4g}, not {asked:g}: {elsewhere}, slack {env.slack:g}"

    def _margin(self, env: Env, subject: Subject, k: int, judged: tuple[Judged, ...]) -> Finding:
        margin_N, n = np.max([margins(one, k) for one in judged], axis=0), self.params.n_per_class
        lower, upper = quantile_bounds(margin_N, self.params.quantile, alpha=env.alpha)
        finding = Finding(
            check=self.name,
            metric="margin_quantile",
            subject=subject,
            gating=subject == "candidate",
            control=subject == "original",
            passed=upper is not None and upper <= 0,
            open=subject == "candidate" and upper is not None and upper > 0 and (lower is None or lower <= 0),
            value=float(np.quantile(margin_N, self.params.quantile)),
            lower95=lower,
            upper95=upper,
            comparator="le",
            threshold=0.0,
            n=n,
            count=int((margin_N >= 0).sum()),
            class_index=k,
            class_name=env.spec.class_names[k],
            detail=f"{self.params.quantile:.0%} quantile of the lead of {env.spec.class_names[k]!r} over the best other class, "
            "in logits; bounds are order statistics",
        )
        refuted = lower is not None and lower > 0
        return finding if upper is not None or refuted else underpowered(finding)

    def _reported(self, env: Env, k: int) -> list[Finding]:
        n, name = self.params.n_per_class, env.spec.class_names[k]
        judged = env.judged("candidate", k, n)
        p_NK = judged.probabilities_NK.numpy()
        about = {"check": self.name, "subject": "candidate", "gating": False, "class_index": k, "class_name": name}
        entropy = float(-(p_NK * np.log(p_NK.clip(TINY))).sum(axis=1).mean())
        said = f"mean entropy of the judge's answers in nats, of at most {math.log(p_NK.shape[1]):.3g}"
        found = [Finding(metric="entropy", value=entropy, n=n, detail=said, **about)]
        if env.spec.retain_classes:
            few = self._few(env.spec)
            null_N = np.concatenate([margins(env.judged("parent", j, few), k) for j in env.spec.retain_classes])
            said = f"Kolmogorov-Smirnov distance of the leads to those of {len(null_N)} samples of other classes before"
            distance = float(ks_2samp(margins(judged, k), null_N).statistic)
            found.append(Finding(metric="margin_ks_distance", value=distance, n=n, detail=said, **about))
        return found


def margins(judged: Judged, k: int) -> Floats:
    """(N,) by how much the logit of class k leads the best other one: differences of logits are those of log probabilities."""
    log_NK = np.log(judged.probabilities_NK.numpy().clip(TINY))
    lead_N: Floats = log_NK[:, k] - np.delete(log_NK, k, axis=1).max(axis=1)
    return lead_N
