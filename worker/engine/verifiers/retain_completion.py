"""Are images of the retained classes completed as well as the original completes them?

Held-out images are completed by both under the same masks, and compared image by image: how far the judge's features of the
completed region lie from those of the true one, and how often the judge, who sees that region alone, still sees the class. All
gates are one-sided bounds; where the policy says so, one of them holds each class by itself, as an average over 25 hides one
that is lost. The reference is the original, not the parent: small losses cannot add up over a lineage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field

from worker.contract import Finding, MaskSpec, Spec, Tier
from worker.engine import accuracy, worst_class
from worker.engine.errors import BadInput
from worker.engine.family import Kind
from worker.engine.likeness import Likeness, likeness, reported, suffix
from worker.engine.statistics import ALPHA, bootstrap_ratio_bounds, resampled_rows
from worker.engine.verifier import Env, Need, Params, Subject, corruptions_of, ways_of
from worker.engine.ways import Way
from worker.engine.worst_class import Drop

IMAGES = "completed held-out images"


class Thresholds(Params):
    """How many images, and how much worse their completions may be."""

    n_per_class: int = Field(default=500, ge=1, le=100_000, description="held-out images of each retained class, at most")
    max_ratio: float = Field(
        default=1.05, gt=1, le=100, description="bound on candidate's / original's distance from the truth in judge features"
    )
    max_drop: float = Field(default=0.05, gt=0, lt=1, description="bound on the judge accuracy lost against the original, 0-1")
    max_class_drop: float | None = Field(
        default=None, gt=0, lt=1, description="bound on what the worst class lost, at Holm's levels; null: reported only"
    )
    resamples: int = Field(default=1000, ge=100, le=10_000, description="bootstrap resamples for the bound of the ratio")


class RetainCompletion:
    """Judge feature distance and judge accuracy on retained classes, candidate against original, under every corruption."""

    name: ClassVar[str] = "retain_completion"
    title: ClassVar[str] = "Retained classes are completed as well as before"
    tier: ClassVar[Tier] = "L1"
    kinds: ClassVar[tuple[Kind, ...]] = ("i2i",)
    Params: ClassVar[type[Params]] = Thresholds

    def __init__(self, params: Thresholds) -> None:
        self.params = params

    def needs(self, spec: Spec) -> tuple[Need, ...]:
        """See `Verifier.needs`. Raises: BadInput where the policy names no corruption."""
        n = self.params.n_per_class
        return tuple(
            Need(subject, k, n, Way(corruption, prompted))
            for subject in self._subjects()
            for corruption in corruptions_of(spec)
            for prompted in ways_of(spec)
            for k in spec.retain_classes
        )

    def require_enough(self, spec: Spec, held_out: Sequence[int]) -> None:
        """See `foresight`. Raises: BadInput when a retained class has fewer than two held-out images."""
        counts = {k: min(held_out[k], self.params.n_per_class) for k in spec.retain_classes}
        if few := [spec.class_names[k] for k, n in counts.items() if n < 2]:
            raise BadInput(f"expected at least two held-out images of every retained class, found fewer of {', '.join(few)}")

    def run(self, env: Env) -> tuple[Finding, ...]:
        """See `Verifier.run`. Raises: BadInput when there are too few held-out images."""
        self.require_enough(env.spec, env.dataset.held_out_counts)
        return tuple(
            finding.model_copy(update={"corruption": corruption, "metric": finding.metric + suffix(prompted)})
            for corruption in corruptions_of(env.spec)
            for prompted in ways_of(env.spec)
            for finding in self._under(env, corruption, prompted)
        )

    def _subjects(self) -> tuple[Subject, ...]:
        return ("candidate", "original")

    def _under(self, env: Env, corruption: MaskSpec, prompted: bool) -> list[Finding]:
        n, retained = self.params.n_per_class, env.spec.retain_classes
        seen: dict[Subject, dict[int, Likeness]] = {
            s: {k: likeness(env, s, corruption, k, n, prompted=prompted) for k in retained} for s in self._subjects()
        }
        before_N, after_N = (torch.cat([one.right_N for one in seen[s].values()]) for s in ("original", "candidate"))
        alpha = env.alpha
        found = [
            self._distance(env, seen["original"], seen["candidate"]),
            accuracy.drop(self.name, before_N, after_N, max_drop=self.params.max_drop, what=IMAGES, alpha=alpha),
        ]
        drops = [
            Drop.of(k, seen["original"][k].right_N.numpy(), seen["candidate"][k].right_N.numpy())
            for k in env.spec.retain_classes
        ]
        found += worst_class.findings(env, self.name, drops, self.params.max_class_drop, what=IMAGES)
        for subject, right_N in (("candidate", after_N), ("original", before_N)):
            assert subject == "candidate" or subject == "original"
            found.append(accuracy.reported(self.name, subject, right_N, what=IMAGES, alpha=alpha))
            found += reported(self.name, subject, corruption, list(seen[subject].values()), which=IMAGES)
        return found + [
            accuracy.reported(self.name, s, seen[s][k].right_N, what=IMAGES, k=k, name=env.spec.class_names[k], alpha=alpha)
            for k in retained
            for s in self._subjects()
        ]

    def _distance(self, env: Env, before: Mapping[int, Likeness], after: Mapping[int, Likeness]) -> Finding:
        """The gate on the ratio of mean distances."""
        mean_before, mean_after = mean_distance(before), mean_distance(after)
        rng = env.generator(self.name)
        ratio, lower, upper = distance_ratio(before, after, resamples=self.params.resamples, rng=rng, alpha=env.alpha)
        return Finding(
            check=self.name,
            metric="judge_feature_distance_ratio",
            subject="candidate",
            gating=True,
            passed=upper <= self.params.max_ratio,
            open=lower <= self.params.max_ratio < upper,
            value=ratio,
            lower95=lower,
            upper95=upper,
            comparator="le",
            threshold=self.params.max_ratio,
            n=sum(len(one.distance_N) for one in before.values()),
            detail=f"distance of {IMAGES} from the truth in judge features, {mean_after:.4g} over {mean_before:.4g} before",
        )


def mean_distance(seen: Mapping[int, Likeness]) -> float:
    """Of some classes' completions from the truth, in judge features; every class has the same weight."""
    return float(np.mean([one.distance_N.numpy().mean() for one in seen.values()]))


def distance_ratio(
    before: Mapping[int, Likeness],
    after: Mapping[int, Likeness],
    *,
    resamples: int,
    rng: np.random.Generator,
    alpha: float = ALPHA,
) -> tuple[float, float, float]:
    """How many times as far completions are from the truth, and its two one-sided bounds, the lower one first.

    Raises:
        BadInput: nothing that was before is at any distance.
    """
    if not mean_distance(before) > 0:
        raise BadInput("expected the original's completions at a distance from the truth, found none at any")
    ratio = mean_distance(after) / mean_distance(before)
    if ratio == 0:
        return 0.0, 0.0, 0.0  # no completion is at any distance: nothing to resample
    pairs = [(before[k].distance_N.numpy(), after[k].distance_N.numpy()) for k in before]

    def resampled(rng: np.random.Generator) -> float:
        # The same images of both: what is hard for one is hard for the other.
        rows = [resampled_rows(len(old_N), rng) for old_N, _ in pairs]
        old, new = (np.mean([pair[i][r].mean() for pair, r in zip(pairs, rows, strict=True)]) for i in (0, 1))
        return float(new / old)

    return ratio, *bootstrap_ratio_bounds(resampled, ratio, resamples=resamples, rng=rng, alpha=alpha)
