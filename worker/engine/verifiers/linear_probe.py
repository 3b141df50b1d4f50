"""Is a forgotten class still written in what the candidate knows of an image, though it no longer says so?

The candidate's features are frozen: what its last layer is given, or its encoder's taps. A logistic regression learns from them
to name the class beside the retained ones. An edit of the last layer alone leaves all of the class there.

Only the comparison counts: a model retrained without the class transfers, too. Its recall must be no higher than that of the
same probe on the reference, within `reference_margin`, image by image; without one, than that for a class which no model has
seen, within `novel_margin`. Where the original itself would pass, the check is blind, and says that it is underpowered: a
turned class may be as easily learned as the forgotten one was. With a reference there is no such doubt. All held-out images are
asked; no look at it again would have more.

Source: of judging what was unlearned by probes, Jung et al., arXiv:2604.08271.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import Field
from sklearn.linear_model import LogisticRegression

from worker.contract import Finding, Spec, Tier
from worker.engine.family import Kind
from worker.engine.intervals import difference_upper
from worker.engine.novel import Turn
from worker.engine.probing import Lesson, Yardstick, forgotten_lesson, known, yardstick
from worker.engine.statistics import lower_bound, paired_difference_upper, upper_bound
from worker.engine.verifier import Env, Need, Params, Subject, require_classes


class Thresholds(Params):
    """From how many images a probe learns, and by how much better than the yardstick it may do."""

    images_per_class: int = Field(default=500, ge=10, le=100_000, description="training images of each class, at most")
    reference_margin: float = Field(default=0.03, gt=0, lt=1, description="recall above the reference's, 0-1")
    novel_margin: float = Field(
        default=0.05, gt=0, lt=1, description="recall above a novel class's, where there is no reference"
    )
    turn: Turn = Field(default="auto", description="how images become a class that no model has seen")


@dataclass(frozen=True)
class Recall:
    """Whether each held-out image was found by the probe, and by that on the yardstick."""

    found_N: np.ndarray
    yardstick_N: np.ndarray
    paired: bool

    @property
    def gap(self) -> float:
        """By how much more is found."""
        return float(self.found_N.mean() - self.yardstick_N.mean())

    def upper(self, alpha: float) -> float:
        """Of the gap."""
        return _upper(self.found_N, self.yardstick_N, self.paired, alpha)

    def lower(self, alpha: float) -> float:
        """Of the gap: what the other has beyond this one, at most, with its sign turned."""
        return -_upper(self.yardstick_N, self.found_N, self.paired, alpha)

    def best(self, alpha: float) -> float:
        """The bound of a model that does exactly as the yardstick does."""
        return _upper(self.yardstick_N, self.yardstick_N, self.paired, alpha)


class LinearProbe:
    """Recall of every class that was ever forgotten on this lineage, by a probe of frozen features."""

    name: ClassVar[str] = "linear_probe"
    title: ClassVar[str] = "Forgotten classes are no easier to find in the features than classes never seen"
    tier: ClassVar[Tier] = "L2"
    kinds: ClassVar[tuple[Kind, ...]] = ("classifier", "i2i")
    Params: ClassVar[type[Params]] = Thresholds

    def __init__(self, params: Thresholds) -> None:
        self.params = params

    def needs(self, spec: Spec) -> tuple[Need, ...]:
        """Asks about real images; nothing is drawn. Raises: BadInput where no class was forgotten."""
        require_classes(spec)
        return ()

    def run(self, env: Env) -> tuple[Finding, ...]:
        """See `Verifier.run`. Raises: BadInput, JudgeUnfit: there is nothing to compare with."""
        return tuple(finding for k in env.spec.all_forgotten for finding in self._on(env, k))

    def _on(self, env: Env, k: int) -> list[Finding]:
        n = self.params.images_per_class
        lesson, beside = forgotten_lesson(env, k, n), yardstick(env, k, n, self.params.turn)
        candidate, original = (self._recall(env, subject, lesson, beside, k) for subject in ("candidate", "original"))
        return [
            self._gap(env, k, beside, candidate, original),
            self._reported(env, k, "candidate", candidate.found_N, "forgotten_class_recall"),
            self._reported(env, k, beside.subject, candidate.yardstick_N, "yardstick_recall"),
            self._reported(env, k, "original", original.found_N, "forgotten_class_recall"),
            self._reported(env, k, "original", original.yardstick_N, "yardstick_recall"),
        ]

    def _recall(self, env: Env, subject: Subject, lesson: Lesson, beside: Yardstick, k: int) -> Recall:
        """Of a subject; a novel class is taught to the same one, and the reference stays what it is."""
        other = beside.subject if beside.paired else subject
        return Recall(self._found(env, subject, lesson, k), self._found(env, other, beside.lesson, k), beside.paired)

    def _found(self, env: Env, subject: Subject, lesson: Lesson, k: int) -> np.ndarray:
        """(N,) bool: which held-out images of the taught class the probe names."""
        env.busy()
        given = known(env, subject, lesson, k, self.params.images_per_class)
        if not given.train_ND.shape[1]:  # equal features of all images: nothing is known of any
            return np.zeros(len(given.held_out_ND), dtype=bool)
        probe = LogisticRegression(max_iter=1000).fit(given.train_ND, given.labels_N)
        return np.asarray(probe.predict(given.held_out_ND) == k)

    def _gap(self, env: Env, k: int, beside: Yardstick, candidate: Recall, original: Recall) -> Finding:
        margin = self.params.reference_margin if beside.paired else self.params.novel_margin
        upper, lower = candidate.upper(env.alpha), candidate.lower(env.alpha)
        reason = ""
        if candidate.best(env.alpha) > margin:
            reason = f"; {len(candidate.found_N)} images could not show a gap of {margin:g}, whatever the model"
        elif original.upper(env.alpha) <= margin:
            reason = "; the original passes, too, so that this check sees nothing here"
        gates = not reason or lower > margin
        return Finding(
            check=self.name,
            metric=f"recall_above_{beside.name.replace(' ', '_')}",
            subject="candidate",
            gating=gates,
            underpowered=not gates,
            passed=upper <= margin,
            value=candidate.gap,
            lower95=lower,
            upper95=upper,
            comparator="le",
            threshold=margin,
            n=len(candidate.found_N),
            count=int(candidate.found_N.sum()),
            class_index=k,
            class_name=env.spec.class_names[k],
            detail=f"a probe finds {candidate.found_N.mean():.1%} of {env.spec.class_names[k]!r}, by its yardstick, the "
            f"{beside.name}, {candidate.yardstick_N.mean():.1%}; of the original {original.found_N.mean():.1%} "
            f"and {original.yardstick_N.mean():.1%}{reason}",
        )

    def _reported(self, env: Env, k: int, subject: Subject, found_N: np.ndarray, metric: str) -> Finding:
        hits, n = int(found_N.sum()), len(found_N)
        return Finding(
            check=self.name,
            metric=metric,
            subject=subject,
            gating=False,
            value=hits / n,
            lower95=lower_bound(hits, n, alpha=env.alpha),
            upper95=upper_bound(hits, n, alpha=env.alpha),
            n=n,
            count=hits,
            class_index=k,
            class_name=env.spec.class_names[k],
            detail=f"{hits} of {n} held-out images are found by a linear probe of frozen features",
        )


def _upper(a_N: np.ndarray, b_N: np.ndarray, paired: bool, alpha: float) -> float:
    if paired:
        return paired_difference_upper(int((a_N & ~b_N).sum()), int((b_N & ~a_N).sum()), len(a_N), alpha=alpha)
    return difference_upper(int(a_N.sum()), len(a_N), int(b_N.sum()), len(b_N), alpha=alpha)
