"""Are retained classes drawn as faithfully and as variously as before? Precision, recall and coverage, over the parent's.

In the judge's penultimate features, against held-out real images of the retained classes: a candidate that draws one good image
of each class again and again keeps its accuracy, and loses recall and coverage. Each is bounded as a ratio to the parent's,
from the same noise. Density is reported: it may exceed 1, and more is not better.

Source: Naeem et al. 2020, arXiv:2002.09797; see `manifolds`.

Shapes: N real images, M samples, R resamples.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from worker.contract import Finding, Spec, Tier
from worker.engine import manifolds, protocols
from worker.engine.errors import BadInput
from worker.engine.family import Kind
from worker.engine.manifolds import Measure, Overlap
from worker.engine.statistics import Floats, enough
from worker.engine.verifier import Env, Need, Params, Subject

SUBJECTS: tuple[Subject, ...] = ("candidate", "parent")


class Thresholds(Params):
    """How many samples, and how much of the parent's figures must be left."""

    n_per_class: int = Field(default=80, ge=1, le=5_000, description="samples of each retained class and subject")
    nearest: int = Field(default=manifolds.NEAREST, ge=1, le=50, description="neighbours that make the ball of an image")
    min_precision: float = Field(default=0.95, gt=0, le=1, description="bound on candidate's precision / parent's")
    min_recall: float = Field(default=0.9, gt=0, le=1, description="bound on candidate's recall / parent's")
    min_coverage: float = Field(default=0.9, gt=0, le=1, description="bound on candidate's coverage / parent's")
    resamples: int = Field(default=500, ge=100, le=10_000, description="bootstrap resamples for the bounds")


class RetainCoverage:
    """Ratios of precision, recall and coverage of the retained classes, candidate over parent."""

    name: ClassVar[str] = "retain_coverage"
    title: ClassVar[str] = "Retained classes are drawn as faithfully and as variously as before"
    tier: ClassVar[Tier] = "L2"
    kinds: ClassVar[tuple[Kind, ...]] = ("generator",)
    Params: ClassVar[type[Params]] = Thresholds

    def __init__(self, params: Thresholds) -> None:
        self.params = params

    def needs(self, spec: Spec) -> tuple[Need, ...]:
        """See `Verifier.needs`."""
        return tuple(Need(subject, k, self.params.n_per_class) for subject in SUBJECTS for k in spec.retain_classes)

    def run(self, env: Env) -> tuple[Finding, ...]:
        """See `Verifier.run`. Raises: BadInput when too few images are held out, or the parent has none of something."""
        real_ND = self._real(env)
        drawn = {subject: self._drawn(env, subject) for subject in SUBJECTS}
        protocol = protocols.prdc(self.params.nearest, protocols.judge_features(env.judge.record.sha256))
        figures = {subject: manifolds.figures(real_ND, drawn_MD, self.params.nearest) for subject, drawn_MD in drawn.items()}
        rng, m = env.generator(self.name), len(drawn["parent"])
        # The same rows of both subjects: row i of each was drawn from the same noise, and so varies together.
        weights = [manifolds.draws(rng, enough(self.params.resamples, env.alpha), rows) for rows in (len(real_ND), m)]
        spread = {s: Overlap.of(real_ND, rows_MD, self.params.nearest).resampled(*weights) for s, rows_MD in drawn.items()}
        said = f"{len(real_ND)} held-out real images, {m} samples"
        least: dict[Measure, float] = {
            "precision": self.params.min_precision,
            "recall": self.params.min_recall,
            "coverage": self.params.min_coverage,
        }
        gates = []
        for measure, limit in least.items():
            after, before = figures["candidate"][measure], figures["parent"][measure]
            if before <= 0:
                raise BadInput(f"expected a positive {measure} of the parent, got zero")
            lower, upper = _bounds(after / before, spread["candidate"][measure], spread["parent"][measure], env.alpha)
            gates.append(
                Finding(
                    check=self.name,
                    metric=f"{measure}_ratio",
                    subject="candidate",
                    gating=True,
                    passed=lower >= limit,
                    open=lower < limit <= upper,
                    value=after / before,
                    lower95=lower,
                    upper95=upper,
                    comparator="ge",
                    threshold=limit,
                    n=m,
                    protocol_id=protocol,
                    detail=f"{after:.3f} over the parent's {before:.3f}, same noise; {said}",
                )
            )
        told = [self._reported(s, name, figures[s][name], m, said) for s in SUBJECTS for name in manifolds.MEASURES]
        return (*gates, *(finding.model_copy(update={"protocol_id": protocol}) for finding in told))

    def _real(self, env: Env) -> Floats:
        rows = [env.held_out(k).features_ND.numpy() for k in env.spec.retain_classes]
        real_ND = manifolds.thinned(np.concatenate(rows)) if rows else np.empty((0, 1))
        if len(real_ND) <= self.params.nearest + 1:
            raise BadInput(
                f"expected more than {self.params.nearest + 1} held-out images of retained classes, got {len(real_ND)}"
            )
        return real_ND

    def _drawn(self, env: Env, subject: Subject) -> Floats:
        n = self.params.n_per_class
        rows_MD = manifolds.thinned(
            np.concatenate([env.judged(subject, k, n).features_ND.numpy() for k in env.spec.retain_classes])
        )
        if len(rows_MD) <= self.params.nearest + 1:
            raise BadInput(f"expected more than {self.params.nearest + 1} samples of retained classes, got {len(rows_MD)}")
        return rows_MD

    def _reported(self, subject: Subject, measure: str, value: float, m: int, said: str) -> Finding:
        return Finding(
            check=self.name,
            metric=measure,
            subject=subject,
            gating=False,
            value=value,
            n=m,
            detail=f"PRDC in judge features: {said}",
        )


def _bounds(point: float, after_R: Floats, before_R: Floats, alpha: float) -> tuple[float, float]:
    """Of a ratio, by the spread of resamples around their median; see `Overlap.resampled`.

    Where resamples of a side have none at all, the ratio is bounded from below by nothing.
    """
    there_R = before_R > 0
    ratio_R = np.where(there_R, after_R / np.where(there_R, before_R, 1), 0.0)
    spread = np.quantile(ratio_R, [alpha, 1 - alpha]) - np.median(ratio_R)
    return max(0.0, float(point + spread[0])), float(point + spread[1])
