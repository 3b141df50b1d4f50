"""Do the candidate's losses still betray that it was trained on the forgotten samples?

A true retrain without them treats them like any unseen image: an AUC of 1/2 give or take chance, no gain in accuracy. The
original must be told apart, or nothing was memorised that this test could see, and the verdict is VOID.

`max_auc` is .55 by default: the average retrain reaches its bound with about 90 samples or more, and passes 19 times in 20
with about 360 (1/2 + 2 * 1.645 / sqrt(12 n) <= .55), while an attacker who guesses by the loss alone gains little. What the
gate does not refuse is a sample that stands out as *worse* known than an unseen one; the report shows that as an AUC below 1/2.
Source: Yeom et al. 2018, arXiv:1709.01604.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from worker.contract import Finding, Spec, Tier
from worker.engine.errors import BadInput
from worker.engine.family import Kind
from worker.engine.membership import Answers, Comparison, Estimate, expected_upper
from worker.engine.statistics import confidence
from worker.engine.verifier import Env, Need, Params, Subject

CHANCE = 0.5
MIN_UNSEEN = 10
"""Held-out images of a class: resampling fewer says too little of how they vary."""


class Thresholds(Params):
    """How well losses may still tell forgotten samples from unseen images of the same classes."""

    max_auc: float = Field(default=0.55, gt=0.5, lt=1, description="bound on the AUC of -loss; 0.5 is no better than chance")
    max_gap: float = Field(
        default=0.05, gt=0, lt=1, description="bound on how much oftener they are recognised than unseen images, 0-1"
    )
    resamples: int = Field(default=1000, ge=200, le=100_000, description="bootstrap resamples for the bounds")


class SampleMembership:
    """Membership inference by loss on all samples ever forgotten on this lineage, with the original as control."""

    name: ClassVar[str] = "sample_membership"
    title: ClassVar[str] = "Forgotten samples are answered like unseen images"
    tier: ClassVar[Tier] = "L2"
    kinds: ClassVar[tuple[Kind, ...]] = ("classifier",)
    Params: ClassVar[type[Params]] = Thresholds

    def __init__(self, params: Thresholds) -> None:
        self.params = params

    def needs(self, spec: Spec) -> tuple[Need, ...]:
        """Asks about real images; nothing is drawn. Raises: BadInput where no sample was forgotten."""
        if not spec.all_forgotten_samples:
            raise BadInput("expected forgotten samples, found none: this check says nothing of whole classes")
        return ()

    def run(self, env: Env) -> tuple[Finding, ...]:
        """See `Verifier.run`. Raises: BadInput when there are too few samples, or held-out images of their classes."""
        positions = _by_class(env)
        self._require_showable(env, {k: len(rows_N) for k, rows_N in positions.items()})
        candidate, original = (_compared(env, subject, positions) for subject in ("candidate", "original"))
        # The same resamples of both: the same purpose, so the same random numbers.
        auc, gap = candidate.measure(self.params.resamples, env.generator(self.name), alpha=env.alpha)
        known, _ = original.measure(self.params.resamples, env.generator(self.name), alpha=env.alpha)
        return (
            self._auc("candidate", auc, candidate.n),
            self._gap(gap, candidate),
            self._auc("original", known, original.n),
            self._telling(known, original.n),
        )

    def _require_showable(self, env: Env, counts: Mapping[int, int]) -> None:
        unseen = {k: len(env.dataset.held_out_of([k])) for k in counts}
        for k, n in unseen.items():
            if n < MIN_UNSEEN:
                raise BadInput(f"expected {MIN_UNSEEN} held-out images of {env.spec.class_names[k]!r} or more, found {n}")
        upper = expected_upper(counts, unseen, alpha=env.alpha)
        if upper > self.params.max_auc:
            raise BadInput(
                f"{sum(counts.values())} samples cannot show an AUC of at most {self.params.max_auc} at "
                f"{confidence(env.alpha)}: a model that "
                f"never saw them would be bounded by {upper:.3f} on average"
            )

    def _auc(self, subject: Subject, auc: Estimate, n: int) -> Finding:
        return Finding(
            check=self.name,
            metric="membership_auc",
            subject=subject,
            gating=subject == "candidate",
            control=subject == "original",
            passed=auc.upper95 <= self.params.max_auc,
            open=subject == "candidate" and auc.lower95 <= self.params.max_auc < auc.upper95,
            value=auc.value,
            lower95=auc.lower95,
            upper95=auc.upper95,
            comparator="le",
            threshold=self.params.max_auc,
            n=n,
            detail=f"forgotten samples fit better than unseen images of their class in {auc.value:.1%} of pairs; 50% is chance",
        )

    def _gap(self, gap: Estimate, items: Comparison) -> Finding:
        return Finding(
            check=self.name,
            metric="membership_accuracy_gap",
            subject="candidate",
            gating=True,
            passed=gap.upper95 <= self.params.max_gap,
            open=gap.lower95 <= self.params.max_gap < gap.upper95,
            value=gap.value,
            lower95=gap.lower95,
            upper95=gap.upper95,
            comparator="le",
            threshold=self.params.max_gap,
            n=items.n,
            count=items.right(),
            detail=f"{items.right()} of {items.n} forgotten samples are recognised, {gap.value:+.1%} against unseen images",
        )

    def _telling(self, known: Estimate, n: int) -> Finding:
        """The second control: few samples have a wide bound, which alone would count as being told apart."""
        return Finding(
            check=self.name,
            metric="membership_auc_beyond_chance",
            subject="original",
            gating=False,
            control=True,
            passed=known.lower95 <= CHANCE,
            value=known.value,
            lower95=known.lower95,
            comparator="le",
            threshold=CHANCE,
            n=n,
            detail="the original must fit them better than chance, even at its lower bound, or it never memorised them",
        )


def _by_class(env: Env) -> dict[int, Tensor]:
    """Positions of the forgotten samples in the dataset."""
    rows_N = env.dataset.positions_of(env.spec.all_forgotten_samples)
    labels_N = env.dataset.labels_N[rows_N]
    return {k: rows_N[labels_N == k] for k in sorted(set(labels_N.tolist()))}


def _compared(env: Env, subject: Subject, positions: Mapping[int, Tensor]) -> Comparison:
    asked = env.answers_to(subject, torch.cat(list(positions.values()))).split([len(rows_N) for rows_N in positions.values()])
    items = {k: _answers(logits_NK, k) for k, logits_NK in zip(positions, asked, strict=True)}
    return Comparison(items, {k: _answers(env.answers(subject, k), k) for k in positions})


def _answers(logits_NK: Tensor, k: int) -> Answers:
    logits_NK = logits_NK.double()
    others_NK = logits_NK.index_fill(1, torch.tensor([k]), -torch.inf)
    misfit_N = others_NK.logsumexp(dim=1) - logits_NK[:, k]
    return Answers(misfit_N.numpy(), (logits_NK.argmax(dim=1) == k).numpy())
