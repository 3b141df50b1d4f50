"""Can the candidate's answers about a forgotten class be told from those of a model that was trained without it?

An attacker sees how probable each *other* class is made, and asks which model said so: what is pushed away from a class
leaves a trace in where it goes. He learns from the two models' answers to the same held-out images; both answers to an image
are in one fold, so that the image tells nothing. 50 % is chance, and two retrainings of different seeds lie above it (62 %
where the tests train two perceptrons): `max_auc` leaves room.

Where the job has no reference there is nothing to measure: the check is underpowered, and says so.

Source: of membership by neighbouring classes, arXiv:2506.20893.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field
from scipy.stats import norm
from torch import Tensor

from worker.contract import Finding, Spec, Tier
from worker.engine.errors import BadInput
from worker.engine.family import Kind
from worker.engine.intervals import LEARNED, Auc, auc, chance_error
from worker.engine.retrained import no_reference
from worker.engine.signals import FOLDS, attack_on_pairs, log_probabilities
from worker.engine.statistics import Floats
from worker.engine.verifier import Env, Need, Params, Subject, require_classes


class Thresholds(Params):
    """How well the two may be told apart, and by what."""

    max_auc: float = Field(default=0.70, gt=0.5, lt=1, description="bound on the AUC; 0.5 is no better than chance")
    neighbours: int = Field(default=10, ge=2, le=1000, description="classes, the likeliest on these images, that are looked at")


class ReferenceMembership:
    """A learned attack that tells candidate and reference apart, on every class that was ever forgotten on this lineage."""

    name: ClassVar[str] = "reference_membership"
    title: ClassVar[str] = "Answers about forgotten classes cannot be told from a retrained model's"
    tier: ClassVar[Tier] = "L2"
    kinds: ClassVar[tuple[Kind, ...]] = ("classifier",)
    Params: ClassVar[type[Params]] = Thresholds

    def __init__(self, params: Thresholds) -> None:
        self.params = params

    def needs(self, spec: Spec) -> tuple[Need, ...]:
        """Asks about real images; nothing is drawn. Raises: BadInput where no class was forgotten."""
        require_classes(spec)
        return ()

    def run(self, env: Env) -> tuple[Finding, ...]:
        """See `Verifier.run`. Raises: BadInput where an attack has too few images to be learned from."""
        if env.reference is None:
            return no_reference(env, self.name, "told_from_reference_auc")
        return tuple(finding for k in env.spec.all_forgotten for finding in self._on(env, env.reference, k))

    def _on(self, env: Env, reference: Subject, k: int) -> list[Finding]:
        n = len(env.dataset.held_out_of([k]))
        if n < FOLDS:
            raise BadInput(f"expected {FOLDS} held-out images of {env.spec.class_names[k]!r} or more, found {n}")
        due_NK = env.answers(reference, k)
        candidate, original = (self._told(env, k, env.answers(subject, k), due_NK) for subject in ("candidate", "original"))
        limit = self.params.max_auc
        # The bound of a model that answers alike, and by as much as one in twenty such models exceeds 1/2.
        expected = 0.5 + chance_error(n, n) * float(norm.ppf(1 - env.alpha) + LEARNED * norm.ppf(0.95))
        gates = expected <= limit or candidate.lower > limit
        return [self._finding(env, "candidate", k, candidate, n, gates), self._finding(env, "original", k, original, n, False)]

    def _told(self, env: Env, k: int, logits_NK: Tensor, due_NK: Tensor) -> Auc:
        shown = _neighbours(logits_NK, due_NK, k, self.params.neighbours)
        return auc(*attack_on_pairs(*shown, env.generator(f"{self.name}/{k}")), alpha=env.alpha)

    def _finding(self, env: Env, subject: Subject, k: int, found: Auc, n: int, gates: bool) -> Finding:
        few = (
            ""
            if gates or subject != "candidate"
            else f"; {n} images are too few for a model that answers alike to pass reliably"
        )
        return Finding(
            check=self.name,
            metric="told_from_reference_auc",
            subject=subject,
            gating=gates,
            underpowered=subject == "candidate" and not gates,
            passed=found.upper <= self.params.max_auc,
            value=found.value,
            lower95=found.lower,
            upper95=found.upper,
            comparator="le",
            threshold=self.params.max_auc,
            n=n,
            class_index=k,
            class_name=env.spec.class_names[k],
            detail=f"answers to {n} held-out images are told from the reference's in {found.value:.1%} of pairs{few}",
        )


def _neighbours(logits_NK: Tensor, due_NK: Tensor, k: int, count: int) -> tuple[Floats, Floats]:
    """(N, M) log odds of the likeliest classes and of class k, by either model; the likeliest on average of both."""
    both = [log_probabilities(z_NK) for z_NK in (logits_NK, due_NK)]
    mean_K = sum(np.exp(log_p_NK).mean(axis=0) for log_p_NK, _ in both)
    columns = sorted({k, *np.argsort(-np.asarray(mean_K), kind="stable")[:count].tolist()})
    one_NM, other_NM = ((log_p_NK - log_not_p_NK)[:, columns] for log_p_NK, log_not_p_NK in both)
    return one_NM, other_NM
