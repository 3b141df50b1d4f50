"""Does the candidate still draw the retained classes as recognisably as its parent, from the same noise?

The gate bounds the drop in judged accuracy, pair by pair: with common noise most pairs agree, and only the pairs that
changed carry information, so far fewer samples are needed than for two independent rates.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from worker.contract import Finding, Spec, Tier
from worker.engine import accuracy
from worker.engine.errors import BadInput
from worker.engine.family import Kind
from worker.engine.verifier import Env, Need, Params, Subject


class Thresholds(Params):
    """How many samples of each retained class, and how much accuracy may be lost."""

    n_per_class: int = Field(default=100, ge=1, le=100_000, description="samples of each retained class and subject")
    max_drop: float = Field(default=0.02, gt=0, lt=1, description="bound on the accuracy lost against the parent, 0-1")


class RetainAccuracy:
    """Accuracy of the retained classes, candidate against parent."""

    name: ClassVar[str] = "retain_accuracy"
    title: ClassVar[str] = "Retained classes are still drawn"
    tier: ClassVar[Tier] = "L1"
    kinds: ClassVar[tuple[Kind, ...]] = ("generator",)
    Params: ClassVar[type[Params]] = Thresholds

    def __init__(self, params: Thresholds) -> None:
        self.params = params

    def needs(self, spec: Spec) -> tuple[Need, ...]:
        """See `Verifier.needs`."""
        n, retained = self.params.n_per_class, spec.retain_classes
        if not retained:
            raise BadInput("expected at least one retained class, got none")
        subjects: tuple[Subject, ...] = ("candidate", "parent")
        return tuple(Need(subject, k, n) for subject in subjects for k in retained)

    def run(self, env: Env) -> tuple[Finding, ...]:
        """See `Verifier.run`."""
        right: dict[Subject, Tensor] = {"candidate": self._right(env, "candidate"), "parent": self._right(env, "parent")}
        most, alpha = self.params.max_drop, env.alpha
        gate = accuracy.drop(self.name, right["parent"], right["candidate"], max_drop=most, what="noises", alpha=alpha)
        overall = [accuracy.reported(self.name, s, right_KN, what="samples", alpha=alpha) for s, right_KN in right.items()]
        by_class = [
            accuracy.reported(self.name, s, right_KN[row], what="samples", k=k, name=env.spec.class_names[k], alpha=alpha)
            for row, k in enumerate(env.spec.retain_classes)
            for s, right_KN in right.items()
        ]
        return (gate, *overall, *by_class)

    def _right(self, env: Env, subject: Subject) -> Tensor:
        """(retained classes, n) bool: which samples every judge takes for their class."""
        n = self.params.n_per_class
        return torch.stack([env.recognised(subject, k, n) for k in env.spec.retain_classes])
