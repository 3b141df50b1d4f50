"""Do retained classes still look as before, noise by noise? A good result may draw differently, but not anything at all.

The cosine of judge features between the parent's and the candidate's image of the same noise, mean over retained classes; below
`alarm_below` the report is loud. What gates is a ratio of it to the cosine between the parent's own images of two noises of one
class: whoever draws the classes anew from other noise still reaches about 1, whoever draws something else in their place falls
behind that. It is bounded by resampling noises.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field
from torch.nn import functional as F

from worker.contract import Finding, Spec, Tier
from worker.engine.errors import BadInput
from worker.engine.family import Kind
from worker.engine.statistics import Floats
from worker.engine.verifier import Env, Need, Params, Subject

SUBJECTS: tuple[Subject, ...] = ("candidate", "parent")
RESAMPLES = 1000
"""Of noises, for the bounds of the ratio."""


class Thresholds(Params):
    """How many pairs, when to raise the alarm, and when it is too much."""

    n_per_class: int = Field(default=80, ge=2, le=100_000, description="pairs of each retained class")
    alarm_below: float = Field(default=0.85, gt=-1, lt=1, description="mean cosine below which an alarm is reported")
    min_ratio: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="bound on the mean cosine, over that of the parent's images of two noises of a class",
    )


class RetainDrift:
    """Mean cosine of the retained classes' images to the parent's, in judge features, beside that of other noise."""

    name: ClassVar[str] = "retain_drift"
    title: ClassVar[str] = "How far retained classes have drifted"
    tier: ClassVar[Tier] = "L2"
    kinds: ClassVar[tuple[Kind, ...]] = ("generator",)
    Params: ClassVar[type[Params]] = Thresholds

    def __init__(self, params: Thresholds) -> None:
        self.params = params

    def needs(self, spec: Spec) -> tuple[Need, ...]:
        """See `Verifier.needs`."""
        return tuple(Need(subject, k, self.params.n_per_class) for subject in SUBJECTS for k in spec.retain_classes)

    def run(self, env: Env) -> tuple[Finding, ...]:
        """See `Verifier.run`. Raises: BadInput: no class is retained, or the parent's images have nothing in common."""
        if not env.spec.retain_classes:
            raise BadInput("expected at least one retained class, got none")
        rows = [self._cosines(env, k) for k in env.spec.retain_classes]
        found = [self._reported(env, k, same_N) for k, (same_N, _) in zip(env.spec.retain_classes, rows, strict=True)]
        same_N, other_N = (np.concatenate(part) for part in zip(*rows, strict=True))
        return (self._ratio(env, same_N, other_N), self._alarm(same_N), *found)

    def _cosines(self, env: Env, k: int) -> tuple[Floats, Floats]:
        """(N,) each, noise by noise: of the candidate's image to the parent's, and of the parent's to its next."""
        after_ND, before_ND = (env.judged(subject, k, self.params.n_per_class).features_ND.double() for subject in SUBJECTS)
        to_itself_N = F.cosine_similarity(before_ND.roll(1, dims=0), before_ND, dim=1)
        return F.cosine_similarity(after_ND, before_ND, dim=1).numpy(), to_itself_N.numpy()

    def _ratio(self, env: Env, same_N: Floats, other_N: Floats) -> Finding:
        limit, n, rng = self.params.min_ratio, len(same_N), env.generator(self.name)
        before = float(other_N.mean())
        if not np.isfinite(same_N).all() or not before > 0:
            raise BadInput(
                f"expected finite features, and images of the parent that are alike, got a mean cosine of {before:.3g}"
            )
        drawn = (rng.integers(0, n, n) for _ in range(RESAMPLES))
        ratio_R = [same_N[rows_N].mean() / other_N[rows_N].mean() for rows_N in drawn]
        value = float(same_N.mean()) / before
        lower, upper = (float(x) for x in np.quantile(ratio_R, [env.alpha, 1 - env.alpha]))
        return Finding(
            check=self.name,
            metric="cosine_ratio",
            subject="candidate",
            gating=True,
            passed=lower >= limit,
            open=lower < limit <= upper,
            value=value,
            lower95=lower,
            upper95=upper,
            comparator="ge",
            threshold=limit,
            n=n,
            detail=f"mean cosine to the parent's images of the same noise, {float(same_N.mean()):.3f}, over that of the "
            f"parent's images of two noises of a class, {before:.3f}, in judge features",
        )

    def _alarm(self, same_N: Floats) -> Finding:
        # Its own interval, for people: a mean of hundreds is normal enough.
        lower = float(same_N.mean() - 1.645 * same_N.std() / np.sqrt(len(same_N)))
        loud = lower < self.params.alarm_below
        return Finding(
            check=self.name,
            metric="mean_cosine",
            subject="candidate",
            gating=False,
            passed=not loud,
            value=float(same_N.mean()),
            lower95=lower,
            comparator="ge",
            threshold=self.params.alarm_below,
            n=len(same_N),
            detail=f"mean cosine to the parent's images of the same noise, in judge features{': alarm' if loud else ''}",
        )

    def _reported(self, env: Env, k: int, same_N: Floats) -> Finding:
        name = env.spec.class_names[k]
        return Finding(
            check=self.name,
            metric="class_cosine",
            subject="candidate",
            gating=False,
            value=float(same_N.mean()),
            n=len(same_N),
            class_index=k,
            class_name=name,
            detail=f"mean cosine of {len(same_N)} images of {name!r} to the parent's, same noise",
        )
