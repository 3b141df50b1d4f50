"""Are samples of the forgotten classes far from their real images? By where they lie, beside what the judge calls them.

In the judge's penultimate features: how many real images of the class have a sample among their neighbours (coverage), and how
far the two distributions are (Frechet), measured in the distance of a typical other class. A model without the class may well
draw the one that is most like it: so that scale is at most half as long again as the way to the nearest other class. The near
end of the scale, the original's own samples, is the control. Real images are the class's held-out ones and as many others as
are needed: the judge has seen those in training, and of all classes alike.

Bounds resample samples and real images; see `bootstrap_ratio_upper` for why their spread alone is used. A coverage is bounded
as a rate of real images, too: of none that is covered all resamples say none.
Source: Naeem et al. 2020, arXiv:2002.09797, for coverage.

Shapes: N real images, M samples, D features, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from pydantic import Field

from worker.contract import Finding, Spec, Tier
from worker.engine import manifolds, protocols
from worker.engine.errors import BadInput
from worker.engine.family import Kind
from worker.engine.manifolds import Overlap
from worker.engine.rates import underpowered
from worker.engine.statistics import Floats, bootstrap_ratio_upper, enough, frechet_distance, lower_bound, moments, upper_bound
from worker.engine.verifier import Env, Need, Params, Subject

SUBJECTS: tuple[Subject, ...] = ("candidate", "original")
REACH = 1.5
"""The scale, over the distance of the nearest other class: with a threshold of a half, three quarters of that pass."""
ROWS_PER_FEATURE = 2
"""Fewer rows than this times D leave a D x D covariance too uncertain to compare."""


class Thresholds(Params):
    """How many samples and real images, how much of the class may be covered, and how far off samples must be."""

    n_per_class: int = Field(default=200, ge=2, le=100_000, description="samples of each forgotten class and subject")
    real_images: int = Field(default=500, ge=16, le=5_000, description="real images of each class, at most")
    max_coverage: float = Field(default=0.15, gt=0, lt=1, description="bound on the share of real images that samples cover")
    min_distance: float = Field(
        default=0.5, gt=0, le=10, description="bound on the distance to the class, over that of a typical other class to it"
    )
    nearest: int = Field(default=manifolds.NEAREST, ge=1, le=50, description="neighbours that make the ball of a real image")
    resamples: int = Field(default=200, ge=100, le=10_000, description="bootstrap resamples for the bounds")


class ForgetDistance:
    """Coverage of real images of every class ever forgotten, and distance to them, with the original as control."""

    name: ClassVar[str] = "forget_distance"
    title: ClassVar[str] = "Samples of forgotten classes are far from their real images"
    tier: ClassVar[Tier] = "L2"
    kinds: ClassVar[tuple[Kind, ...]] = ("generator",)
    Params: ClassVar[type[Params]] = Thresholds

    def __init__(self, params: Thresholds) -> None:
        self.params = params

    def needs(self, spec: Spec) -> tuple[Need, ...]:
        """See `Verifier.needs`."""
        return tuple(Need(subject, k, self.params.n_per_class) for subject in SUBJECTS for k in spec.all_forgotten)

    def run(self, env: Env) -> tuple[Finding, ...]:
        """See `Verifier.run`. Raises: BadInput when a class has too few images, real ones or samples."""
        real = {j: self._real(env, j) for j in range(len(env.spec.class_names))}
        found: list[Finding] = []
        for k in env.spec.all_forgotten:
            scale = Scale.of(k, real)
            for subject in SUBJECTS:
                drawn_MD = env.judged(subject, k, self.params.n_per_class).features_ND.numpy()
                found += [self._coverage(env, subject, k, real[k], drawn_MD)]
                found += [self._distance(env, subject, k, real, drawn_MD, scale)]
        return tuple(found)

    def _real(self, env: Env, k: int) -> Floats:
        """(N, D) features of real images, held-out ones first."""
        at_N = torch.cat([env.dataset.held_out_of([k]), env.dataset.train_of([k])])[: self.params.real_images]
        if len(at_N) <= self.params.nearest + 1:
            raise BadInput(
                f"expected more than {self.params.nearest + 1} images of {env.spec.class_names[k]!r}, got {len(at_N)}"
            )
        features_ND: Floats = env.judge.look(env.dataset.images_NCHW[at_N]).features_ND.numpy()
        least = ROWS_PER_FEATURE * features_ND.shape[1]
        if min(len(features_ND), self.params.n_per_class) < least:
            got = f"{len(features_ND)} and {self.params.n_per_class}"
            raise BadInput(f"expected at least {least} images and samples of {env.spec.class_names[k]!r}, got {got}")
        return features_ND

    def _coverage(self, env: Env, subject: Subject, k: int, real_ND: Floats, drawn_MD: Floats) -> Finding:
        overlap, limit = Overlap.of(real_ND, drawn_MD, self.params.nearest), self.params.max_coverage
        hits, n = int(overlap.covered_N.sum()), len(real_ND)
        rng = env.generator(f"{self.name}/coverage/{k}/{subject}")
        weights = (manifolds.draws(rng, enough(self.params.resamples, env.alpha), rows) for rows in (n, len(drawn_MD)))
        spread_R = overlap.resampled(*weights)["coverage"]
        middle = np.median(spread_R)
        upper = min(1.0, hits / n + float(np.quantile(spread_R, 1 - env.alpha) - middle))
        lower = max(0.0, hits / n + float(np.quantile(spread_R, env.alpha) - middle))
        upper = max(upper, upper_bound(hits, n, alpha=env.alpha))
        lower = min(lower, lower_bound(hits, n, alpha=env.alpha))
        finding = Finding(
            check=self.name,
            metric="coverage",
            subject=subject,
            gating=subject == "candidate",
            control=subject == "original",
            passed=upper <= limit,
            open=subject == "candidate" and lower <= limit < upper,
            value=hits / n,
            lower95=lower,
            upper95=upper,
            comparator="le",
            threshold=limit,
            n=n,
            count=hits,
            class_index=k,
            class_name=env.spec.class_names[k],
            protocol_id=protocols.prdc(self.params.nearest, protocols.judge_features(env.judge.record.sha256)),
            detail=f"{hits} of {n} real images have one of {len(drawn_MD)} samples in their ball",
        )
        powerless = upper_bound(0, n, alpha=env.alpha) > limit and lower <= limit
        return underpowered(finding) if powerless else finding

    def _distance(self, env: Env, subject: Subject, k: int, real: dict[int, Floats], drawn_MD: Floats, scale: Scale) -> Finding:
        def nearness(rows: tuple[Floats, Floats, Floats]) -> float:
            a, b, c = (moments(rows_ND, np.ones(len(rows_ND))) for rows_ND in rows)
            return scale.factor * frechet_distance(c, a) / frechet_distance(b, a)

        sets = (real[k], drawn_MD, real[scale.other])

        def one(rng: np.random.Generator) -> float:
            real, drawn, other = (rows_ND[rng.integers(0, len(rows_ND), len(rows_ND))] for rows_ND in sets)
            return nearness((real, drawn, other))

        point, rng = nearness(sets), env.generator(f"{self.name}/distance/{k}/{subject}")
        upper = bootstrap_ratio_upper(one, point, resamples=self.params.resamples, rng=rng, alpha=env.alpha)
        lower, limit = 1 / upper, self.params.min_distance
        return Finding(
            check=self.name,
            metric="distance_ratio",
            subject=subject,
            gating=subject == "candidate",
            control=subject == "original",
            passed=lower >= limit,
            open=subject == "candidate" and lower < limit <= 1 / point,
            value=1 / point,
            lower95=lower,
            comparator="ge",
            threshold=limit,
            n=len(drawn_MD),
            class_index=k,
            class_name=env.spec.class_names[k],
            protocol_id=protocols.judge_distance(env.judge.record.sha256),
            detail=f"judge feature distance of samples to {len(real[k])} real images, over {scale.factor:g} times that of "
            f"real images of {env.spec.class_names[scale.other]!r}",
        )


@dataclass(frozen=True)
class Scale:
    """The distance of another class's real images to those of the class, and what it is multiplied by."""

    other: int
    factor: float

    @classmethod
    def of(cls, k: int, real: dict[int, Floats]) -> Self:
        """The class at the median distance, of two in the middle the farther one; or the nearest, where that one is near."""
        own = moments(real[k], np.ones(len(real[k])))
        apart = {j: frechet_distance(moments(rows, np.ones(len(rows))), own) for j, rows in real.items() if j != k}
        order = sorted(apart, key=lambda j: apart[j])
        middle, nearest = order[len(order) // 2], order[0]
        return cls(middle, 1.0) if apart[middle] <= REACH * apart[nearest] else cls(nearest, REACH)
