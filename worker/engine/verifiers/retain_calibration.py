"""Does the candidate still know every single retained class, and how sure it may be of it?

An average hides a class: one of nine that is lost altogether is 11 points, and one of a hundred is one. So beside all held-out
images of retained classes together, each class is compared with the parent by itself, image by image. All of them must be shown
to have lost less than `max_class_drop` at Holm's levels (see `worst_class`), but for those of so few images that they could not
pass whatever is answered, which are underpowered. And a model that was pushed about may answer right and be sure of nothing, or
of everything: its expected calibration error may rise by `max_ece_rise` at most.

Source: Guo et al. 2017, arXiv:1706.04599, section 2, for the calibration error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import Field

from worker.contract import Finding, Spec, Tier
from worker.engine import worst_class
from worker.engine.errors import BadInput
from worker.engine.family import Kind
from worker.engine.statistics import Floats, enough
from worker.engine.verifier import Env, Need, Params, Subject
from worker.engine.worst_class import Drop

SUBJECTS: tuple[Subject, ...] = ("candidate", "parent")


class Thresholds(Params):
    """How much may be lost, altogether and by any one class, and how much worse a probability may be."""

    max_drop: float = Field(default=0.01, gt=0, lt=1, description="bound on the accuracy lost on all retained classes, 0-1")
    max_class_drop: float = Field(default=0.03, gt=0, lt=1, description="bound on the accuracy lost on any of them, 0-1")
    max_ece_rise: float = Field(default=0.02, gt=0, lt=1, description="bound on the rise of the calibration error, 0-1")
    bins: int = Field(default=15, ge=2, le=1000, description="of the calibration error, equally wide")
    resamples: int = Field(default=1000, ge=200, le=100_000, description="bootstrap resamples for its bound")


@dataclass(frozen=True)
class Answered:
    """Of one subject, to the held-out images of one class."""

    right_N: np.ndarray
    """bool."""
    confidence_N: Floats
    """Of the class that is named."""


class RetainCalibration:
    """Accuracy of all retained classes and of each, and the calibration error, candidate against parent."""

    name: ClassVar[str] = "retain_calibration"
    title: ClassVar[str] = "No retained class is lost, and probabilities mean what they meant"
    tier: ClassVar[Tier] = "L2"
    kinds: ClassVar[tuple[Kind, ...]] = ("classifier",)
    Params: ClassVar[type[Params]] = Thresholds

    def __init__(self, params: Thresholds) -> None:
        self.params = params

    def needs(self, spec: Spec) -> tuple[Need, ...]:
        """Asks about real images; nothing is drawn."""
        return ()

    def run(self, env: Env) -> tuple[Finding, ...]:
        """See `Verifier.run`. Raises: BadInput when a retained class has no held-out image."""
        kept = env.spec.retain_classes
        if empty := [env.spec.class_names[k] for k in kept if not len(env.dataset.held_out_of([k]))]:
            raise BadInput(f"expected held-out images of every retained class, found none of {', '.join(empty)}")
        asked = {subject: [_answered(env, subject, k) for k in kept] for subject in SUBJECTS}
        right = {subject: [a.right_N for a in answers] for subject, answers in asked.items()}
        drops = [Drop.of(k, *pair) for k, *pair in zip(kept, right["parent"], right["candidate"], strict=True)]
        together = Drop.of(None, np.concatenate(right["parent"]), np.concatenate(right["candidate"]))
        return (
            self._together(env, together),
            *worst_class.findings(env, self.name, drops, self.params.max_class_drop, what="held-out images"),
            self._calibration(env, asked),
            *(self._reported(env, drop) for drop in drops),
        )

    def _together(self, env: Env, drop: Drop) -> Finding:
        most, upper, lower = self.params.max_drop, drop.upper(env.alpha), drop.lower(env.alpha)
        can_pass = drop.best(env.alpha) <= most
        gates = can_pass or lower > most
        few = "" if can_pass else f"; {drop.n} images could not bound it by {most:g}, were all answers as before"
        return Finding(
            check=self.name,
            metric="retain_accuracy_drop",
            subject="candidate",
            gating=gates,
            underpowered=not gates,
            passed=upper <= most,
            value=drop.value,
            lower95=lower,
            upper95=upper,
            comparator="le",
            threshold=most,
            n=drop.n,
            count=drop.lost,
            detail=f"{drop.lost} of {drop.n} held-out images of all retained classes were recognised only before, "
            f"{drop.gained} only after{few}",
        )

    def _calibration(self, env: Env, asked: dict[Subject, list[Answered]]) -> Finding:
        p = self.params
        right, sure = (
            {s: np.concatenate([getattr(a, what) for a in asked[s]]) for s in SUBJECTS} for what in ("right_N", "confidence_N")
        )

        def rise(rows_N: np.ndarray | slice) -> float:
            after, before = (calibration_error(right[s][rows_N], sure[s][rows_N], p.bins) for s in SUBJECTS)
            return after - before

        n, rng, point = len(right["candidate"]), env.generator(self.name), rise(slice(None))
        # Resampling lifts a calibration error, so only the spread around the median is taken from the resamples.
        resampled_R = np.array([rise(rng.integers(0, n, n)) for _ in range(enough(p.resamples, env.alpha))])
        low, middle, high = np.quantile(resampled_R, [env.alpha, 0.5, 1 - env.alpha])
        upper, lower = point + high - middle, point + low - middle
        can_pass = high - middle <= p.max_ece_rise
        gates = bool(can_pass or lower > p.max_ece_rise)
        after, before = (calibration_error(right[s], sure[s], p.bins) for s in SUBJECTS)
        return Finding(
            check=self.name,
            metric="calibration_error_rise",
            subject="candidate",
            gating=gates,
            underpowered=not gates,
            passed=bool(upper <= p.max_ece_rise),
            value=point,
            lower95=float(lower),
            upper95=float(upper),
            comparator="le",
            threshold=p.max_ece_rise,
            n=n,
            detail=f"expected calibration error on {n} images of retained classes: {before:.4f} before, {after:.4f} after"
            + ("" if can_pass else "; so few that chance alone exceeds the threshold"),
        )

    def _reported(self, env: Env, drop: Drop) -> Finding:
        return Finding(
            check=self.name,
            metric="class_drop",
            subject="candidate",
            gating=False,
            value=drop.value,
            lower95=drop.lower(env.alpha),
            upper95=drop.upper(env.alpha),
            n=drop.n,
            count=drop.lost,
            class_index=drop.class_index,
            class_name=env.spec.class_names[drop.class_index or 0],
            detail=f"{drop.lost} of {drop.n} held-out images were recognised only before, {drop.gained} only after",
        )


def calibration_error(right_N: np.ndarray, confidence_N: Floats, bins: int) -> float:
    """Mean over items of how far their bin's accuracy is from its mean confidence; bins (0, 1/M], (1/M, 2/M], ..."""
    bin_N = np.clip(np.ceil(confidence_N * bins).astype(np.int64) - 1, 0, bins - 1)
    apart_M = np.bincount(bin_N, right_N - confidence_N, minlength=bins)
    return float(np.abs(apart_M).sum() / len(right_N))


def _answered(env: Env, subject: Subject, k: int) -> Answered:
    logits_NK = env.answers(subject, k).double()
    return Answered((logits_NK.argmax(dim=1) == k).numpy(), logits_NK.softmax(dim=1).amax(dim=1).numpy())
