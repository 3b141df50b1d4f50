"""Does the candidate still name the held-out images of the retained classes as well as its parent?

All held-out images are asked, and compared image by image.
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

IMAGES = "held-out images"


class Thresholds(Params):
    """How much accuracy may be lost."""

    max_drop: float = Field(default=0.02, gt=0, lt=1, description="bound on the accuracy lost against the parent, 0-1")
    max_lineage_drop: float | None = Field(
        default=None, gt=0, lt=1, description="bound on the accuracy lost against the lineage's original; null: none"
    )


class RetainTestAccuracy:
    """Accuracy on held-out images of the retained classes, candidate against parent."""

    name: ClassVar[str] = "retain_test_accuracy"
    title: ClassVar[str] = "Retained classes are still recognised"
    tier: ClassVar[Tier] = "L1"
    kinds: ClassVar[tuple[Kind, ...]] = ("classifier",)
    Params: ClassVar[type[Params]] = Thresholds

    def __init__(self, params: Thresholds) -> None:
        self.params = params

    def needs(self, spec: Spec) -> tuple[Need, ...]:
        """Asks about real images; nothing is drawn."""
        return ()

    def run(self, env: Env) -> tuple[Finding, ...]:
        """See `Verifier.run`. Raises: BadInput when a retained class has no held-out image."""
        counts = {k: len(env.dataset.held_out_of([k])) for k in env.spec.retain_classes}
        empty = [env.spec.class_names[k] for k, n in counts.items() if n == 0]
        if empty:
            raise BadInput(f"expected held-out images of every retained class, found none of {', '.join(empty)}")
        right = {subject: self._right(env, subject) for subject in self._subjects()}
        alpha = env.alpha
        before_N, after_N = (torch.cat(list(right[subject].values())) for subject in ("parent", "candidate"))
        return (
            accuracy.drop(self.name, before_N, after_N, max_drop=self.params.max_drop, what=IMAGES, alpha=alpha),
            *accuracy.lineage_drop(
                self.name,
                env.spec,
                self.params.max_lineage_drop,
                lambda: torch.cat(list(self._right(env, "original").values())),
                after_N,
                what=IMAGES,
                alpha=alpha,
            ),
            accuracy.reported(self.name, "candidate", after_N, what=IMAGES, alpha=alpha),
            accuracy.reported(self.name, "parent", before_N, what=IMAGES, alpha=alpha),
            *(
                accuracy.reported(
                    self.name, subject, right[subject][k], what=IMAGES, k=k, name=env.spec.class_names[k], alpha=alpha
                )
                for k in env.spec.retain_classes
                for subject in self._subjects()
            ),
        )

    def _subjects(self) -> tuple[Subject, ...]:
        return ("candidate", "parent")

    def _right(self, env: Env, subject: Subject) -> dict[int, Tensor]:
        """By retained class, (N,) bool: is the held-out image named as what it shows?"""
        return {k: env.answers(subject, k).argmax(dim=1) == k for k in env.spec.retain_classes}
