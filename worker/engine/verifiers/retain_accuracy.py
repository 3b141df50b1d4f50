"""Does the candidate still draw the retained classes as recognisably as its parent, from the same noise?

The gate bounds the drop in judged accuracy, pair by pair: with common noise most pairs agree, and only the pairs that
changed carry information, so far fewer samples are needed than for two independent rates.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from worker.contract import Finding, Spec
from worker.engine.errors import BadInput
from worker.engine.statistics import lower_bound, paired_drop_upper
from worker.engine.verifier import Env, Need, Params, Subject, Tier


class Thresholds(Params):
    """How many samples of each retained class, and how much accuracy may be lost."""

    n_per_class: int = Field(default=100, ge=1, le=100_000, description="samples of each retained class and subject")
    max_drop: float = Field(default=0.02, gt=0, lt=1, description="bound on the accuracy lost against the parent, 0-1")


class RetainAccuracy:
    """Accuracy of the retained classes, candidate against parent."""

    name: ClassVar[str] = "retain_accuracy"
    title: ClassVar[str] = "Retained classes are still drawn"
    tier: ClassVar[Tier] = "L1"
    Params: ClassVar[type[Params]] = Thresholds

    def __init__(self, params: Thresholds) -> None:
        self.params = params

    def needs(self, spec: Spec) -> tuple[Need, ...]:
        """See `Verifier.needs`."""
        n, retained = self.params.n_per_class, spec.retain_classes
        if not retained:
            raise BadInput("expected at least one retained class, got none")
        total = n * len(retained)
        if paired_drop_upper(0, 0, total) > self.params.max_drop:
            raise BadInput(f"{total} pairs cannot show a drop of at most {self.params.max_drop} at 95 %, even if all agree")
        subjects: tuple[Subject, ...] = ("candidate", "parent")
        return tuple(Need(subject, k, n) for subject in subjects for k in retained)

    def run(self, env: Env) -> tuple[Finding, ...]:
        """See `Verifier.run`."""
        before_KN, after_KN = self._right(env, "parent"), self._right(env, "candidate")
        both: tuple[tuple[Subject, Tensor], ...] = (("candidate", after_KN), ("parent", before_KN))
        return (
            self._drop(before_KN, after_KN),
            self._accuracy("candidate", after_KN),
            self._accuracy("parent", before_KN),
            *(
                self._accuracy(subject, right_KN[row : row + 1], k, env.spec.class_names[k])
                for row, k in enumerate(env.spec.retain_classes)
                for subject, right_KN in both
            ),
        )

    def _right(self, env: Env, subject: Subject) -> Tensor:
        """(retained classes, n) bool: which samples the judge takes for their class."""
        n = self.params.n_per_class
        return torch.stack([env.judged(subject, k, n).predicted_N == k for k in env.spec.retain_classes])

    def _drop(self, before_KN: Tensor, after_KN: Tensor) -> Finding:
        worse, better = int((before_KN & ~after_KN).sum()), int((~before_KN & after_KN).sum())
        n = before_KN.numel()
        upper = paired_drop_upper(worse, better, n)
        return Finding(
            check=self.name,
            metric="retain_accuracy_drop",
            subject="candidate",
            gating=True,
            passed=upper <= self.params.max_drop,
            value=(worse - better) / n,
            upper95=upper,
            comparator="le",
            threshold=self.params.max_drop,
            n=n,
            count=worse,
            detail=f"of {n} noises, {worse} were recognised only before and {better} only after",
        )

    def _accuracy(self, subject: Subject, right_KN: Tensor, k: int | None = None, name: str | None = None) -> Finding:
        hits, n = int(right_KN.sum()), right_KN.numel()
        return Finding(
            check=self.name,
            metric="retain_accuracy" if k is None else "class_accuracy",
            subject=subject,
            gating=False,
            value=hits / n,
            lower95=lower_bound(hits, n),
            n=n,
            count=hits,
            class_index=k,
            class_name=name,
            detail=f"{hits} of {n} samples are recognised",
        )
