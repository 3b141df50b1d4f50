"""Are the retained classes drawn as *well* as before? Judge feature distance to real held-out images, against the parent's.

The Frechet distance in the penultimate features of the service's own judge. It is not FID: other features, other numbers.
Classes weigh alike on both sides, whatever their share of the real images. Where a model is at hand that was trained without
the forgotten classes, it may be the measure in the parent's place: no more is asked than what retraining gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import Field

from worker.contract import Finding, Spec, Tier
from worker.engine import protocols
from worker.engine.errors import BadInput
from worker.engine.family import Kind
from worker.engine.judge import FEATURES
from worker.engine.statistics import Floats, bootstrap_ratio_bounds, frechet_distance, moments
from worker.engine.verifier import Env, Need, Params, Subject

MIN_IMAGES = 4 * FEATURES
"""Fewer images than this leave the D x D covariance too uncertain to compare: the check is then underpowered."""


class Thresholds(Params):
    """How many samples, how often they are resampled, and how much larger the distance may be."""

    n_per_class: int = Field(default=100, ge=2, le=100_000, description="samples of each retained class and subject")
    max_ratio: float = Field(default=1.2, gt=1, le=100, description="bound on candidate's distance / parent's distance")
    max_point_ratio: float | None = Field(
        default=None, gt=0, le=100, description="bound on the ratio itself, beside that on its bound; null: none"
    )
    resamples: int = Field(default=200, ge=100, le=10_000, description="bootstrap resamples for the bound")


@dataclass(frozen=True)
class Cloud:
    """Features (N, D) of several classes, `rows` telling which row belongs to which; every class has the same weight."""

    features_ND: Floats
    weights_N: Floats
    rows: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, per_class: list[Floats]) -> Cloud:
        """From one array a class, none empty."""
        ends = np.cumsum([len(f) for f in per_class])
        rows = tuple(np.arange(end - len(f), end) for f, end in zip(per_class, ends, strict=True))
        return cls(np.concatenate(per_class), np.concatenate([np.full(len(f), 1 / len(f)) for f in per_class]), rows)

    def resample(self, rng: np.random.Generator) -> np.ndarray:
        """Row indices, drawn with replacement inside each class."""
        return np.concatenate([rng.choice(rows, size=len(rows)) for rows in self.rows])

    def moments(self, rows_N: np.ndarray | slice = slice(None)) -> tuple[Floats, Floats]:
        """Mean and covariance of the chosen rows; a resample keeps class sizes, so weights follow rows."""
        return moments(self.features_ND[rows_N], self.weights_N[rows_N])


class FeatureDistance:
    """Ratio of judge feature distances, candidate over parent."""

    name: ClassVar[str] = "feature_distance"
    title: ClassVar[str] = "Retained classes look as real as before"
    tier: ClassVar[Tier] = "L2"
    kinds: ClassVar[tuple[Kind, ...]] = ("generator",)
    Params: ClassVar[type[Params]] = Thresholds

    def __init__(self, params: Thresholds) -> None:
        self.params = params

    def needs(self, spec: Spec) -> tuple[Need, ...]:
        """See `Verifier.needs`."""
        n, retained = self.params.n_per_class, spec.retain_classes
        subjects: list[Subject] = ["candidate", "parent"]
        subjects += ["reference"] if spec.reference_digest is not None else []
        return tuple(Need(subject, k, n) for subject in subjects for k in retained)

    def run(self, env: Env) -> tuple[Finding, ...]:
        """See `Verifier.run`. Raises: BadInput when fewer than two real images of a retained class are held out."""
        held_out = self._held_out(env)
        drawn = self.params.n_per_class * len(env.spec.retain_classes)
        if min(drawn, held_out) < MIN_IMAGES:
            return (self._underpowered(drawn, held_out),)
        real = Cloud.of([env.held_out(k).features_ND.numpy() for k in env.spec.retain_classes])
        beside: list[Subject] = ["parent", *([env.reference] if env.reference else [])]
        clouds = {s: self._drawn(env, s) for s in ("candidate", *beside)}
        distance = {s: frechet_distance(cloud.moments(), real.moments()) for s, cloud in clouds.items()}
        if distance["parent"] <= 0:
            raise BadInput("expected a positive distance of the parent to real images, got zero")
        measure = max(beside, key=lambda subject: distance[subject])
        ratio = distance["candidate"] / distance[measure]
        lower, upper = self._bounds(env, real, clouds["candidate"], clouds[measure], ratio)
        gate = Finding(
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
            n=len(clouds["candidate"].features_ND),
            detail=f"distance to {len(real.features_ND)} held-out real images, candidate over {measure}, equal noise",
        )
        itself = self._itself(ratio, measure, gate)
        found = gate, *itself, *(self._distance(s, distance[s], len(clouds[s].features_ND)) for s in clouds)
        protocol = protocols.judge_distance(env.judge.record.sha256)
        return tuple(finding.model_copy(update={"protocol_id": protocol}) for finding in found)

    def _itself(self, ratio: float, measure: Subject, gate: Finding) -> list[Finding]:
        """The ratio without a bound, held against a threshold of its own."""
        most = self.params.max_point_ratio
        if most is None:
            return []
        changes = {"metric": "judge_feature_distance_ratio_itself", "passed": ratio <= most, "threshold": most, "open": False}
        said = f"the ratio of candidate over {measure} itself, without a bound"
        return [gate.model_copy(update={**changes, "upper95": ratio, "detail": said})]

    def _held_out(self, env: Env) -> int:
        """Real images of retained classes."""
        counts = [len(env.dataset.held_out_of([k])) for k in env.spec.retain_classes]
        if min(counts) < 2:
            raise BadInput(f"expected at least two held-out real images of each retained class, got {min(counts)} of one")
        return sum(counts)

    def _underpowered(self, drawn: int, held_out: int) -> Finding:
        return Finding(
            check=self.name,
            metric="judge_feature_distance_ratio",
            subject="candidate",
            gating=False,
            underpowered=True,
            n=min(drawn, held_out),
            detail=f"{drawn} samples and {held_out} real images of retained classes: a distance needs {MIN_IMAGES} of each",
        )

    def _drawn(self, env: Env, subject: Subject) -> Cloud:
        n = self.params.n_per_class
        return Cloud.of([env.judged(subject, k, n).features_ND.numpy() for k in env.spec.retain_classes])

    def _bounds(self, env: Env, real: Cloud, candidate: Cloud, parent: Cloud, ratio: float) -> tuple[float, float]:
        def one(rng: np.random.Generator) -> float:
            # The same rows of both subjects: row i of each was drawn from the same noise, and so varies together.
            drawn_N, real_N = candidate.resample(rng), real.resample(rng)
            reference = real.moments(real_N)
            after = frechet_distance(candidate.moments(drawn_N), reference)
            return after / frechet_distance(parent.moments(drawn_N), reference)

        rng = env.generator(self.name)
        return bootstrap_ratio_bounds(one, ratio, resamples=self.params.resamples, rng=rng, alpha=env.alpha)

    def _distance(self, subject: Subject, distance: float, n: int) -> Finding:
        return Finding(
            check=self.name,
            metric="judge_feature_distance",
            subject=subject,
            gating=False,
            value=distance,
            n=n,
            detail="squared Frechet distance in judge features",
        )
