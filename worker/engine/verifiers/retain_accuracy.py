"""Does the candidate still draw the retained classes as recognisably as its parent, from the same noise?

The gate bounds the drop in judged accuracy, pair by pair: with common noise most pairs agree, and only the pairs that
changed carry information, so far fewer samples are needed than for two independent rates.

An average hides one class that was lost. So the worst class is bounded, too, all classes together at Holm's levels, and so are
the five classes that lie nearest to a forgotten one in judge features: what is forgotten takes its neighbours along first.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from worker.contract import Finding, Spec, Tier
from worker.engine import accuracy, worst_class
from worker.engine.errors import BadInput
from worker.engine.family import Kind
from worker.engine.rates import underpowered
from worker.engine.verifier import Env, Need, Params, Subject
from worker.engine.worst_class import Drop

NEIGHBOURS = 5
"""Classes nearest to a forgotten one, of which is asked whether they were kept."""


class Thresholds(Params):
    """How many samples of each retained class, and how much accuracy may be lost."""

    n_per_class: int = Field(default=100, ge=1, le=100_000, description="samples of each retained class and subject")
    max_drop: float = Field(default=0.02, gt=0, lt=1, description="bound on the accuracy lost against the parent, 0-1")
    max_lineage_drop: float | None = Field(
        default=None, gt=0, lt=1, description="bound on the accuracy lost against the lineage's original; null: none"
    )
    max_class_drop: float | None = Field(
        default=None, gt=0, lt=1, description="bound on what the worst class lost, at Holm's levels; null: reported only"
    )
    max_neighbour_drop: float | None = Field(
        default=None, gt=0, lt=1, description="bound on what the nearest classes of a forgotten one lost; null: reported only"
    )


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
        subjects: list[Subject] = ["candidate", "parent"]
        subjects += ["original"] if accuracy.judged_by_original(spec, self.params.max_lineage_drop) else []
        return tuple(Need(subject, k, n) for subject in subjects for k in retained)

    def run(self, env: Env) -> tuple[Finding, ...]:
        """See `Verifier.run`. Against the parent, and where the policy asks for it against the original."""
        right: dict[Subject, Tensor] = {"candidate": self._right(env, "candidate"), "parent": self._right(env, "parent")}
        alpha = env.alpha
        gate = accuracy.drop(
            self.name, right["parent"], right["candidate"], max_drop=self.params.max_drop, what="noises", alpha=alpha
        )
        overall = [accuracy.reported(self.name, s, right_KN, what="samples", alpha=alpha) for s, right_KN in right.items()]
        by_class = [
            accuracy.reported(self.name, s, right_KN[row], what="samples", k=k, name=env.spec.class_names[k], alpha=alpha)
            for row, k in enumerate(env.spec.retain_classes)
            for s, right_KN in right.items()
        ]
        pairs = zip(env.spec.retain_classes, right["parent"].numpy(), right["candidate"].numpy(), strict=True)
        drops = [Drop.of(k, before_N, after_N) for k, before_N, after_N in pairs]
        lost = worst_class.findings(env, self.name, drops, self.params.max_class_drop, what="noises")
        lost += [self._neighbours(env, k, right["parent"], right["candidate"]) for k in env.spec.all_forgotten]
        most = self.params.max_lineage_drop
        lineage = accuracy.lineage_drop(
            self.name, env.spec, most, lambda: self._right(env, "original"), right["candidate"], what="noises", alpha=alpha
        )
        return (gate, *lineage, *lost, *overall, *by_class)

    def _neighbours(self, env: Env, k: int, before_KN: Tensor, after_KN: Tensor) -> Finding:
        middle_D = env.held_out(k).features_ND.mean(dim=0)
        apart_K = torch.stack([(env.held_out(j).features_ND.mean(dim=0) - middle_D).norm() for j in env.spec.retain_classes])
        rows = apart_K.argsort()[:NEIGHBOURS].tolist()
        drop, most = (
            Drop.of(k, before_KN[rows].flatten().numpy(), after_KN[rows].flatten().numpy()),
            self.params.max_neighbour_drop,
        )
        names = ", ".join(env.spec.class_names[env.spec.retain_classes[row]] for row in rows)
        said = f"of {drop.n} noises of {names}, nearest to {env.spec.class_names[k]!r}, {drop.lost} were recognised only before"
        upper, lower = drop.upper(env.alpha), drop.lower(env.alpha)
        finding = Finding(
            check=self.name,
            metric="neighbour_drop",
            subject="candidate",
            gating=most is not None,
            passed=None if most is None else upper <= most,
            open=most is not None and lower <= most < upper,
            value=drop.value,
            lower95=lower,
            upper95=upper,
            comparator=None if most is None else "le",
            threshold=most,
            n=drop.n,
            count=drop.lost,
            class_index=k,
            class_name=env.spec.class_names[k],
            detail=f"{said} and {drop.gained} only after"[:400],
        )
        powered = most is None or drop.best(env.alpha) <= most or lower > most
        return finding if powered else underpowered(finding)

    def _right(self, env: Env, subject: Subject) -> Tensor:
        """(retained classes, n) bool: which samples every judge takes for their class."""
        n = self.params.n_per_class
        return torch.stack([env.recognised(subject, k, n) for k in env.spec.retain_classes])
