"""How far are the candidate's answers about forgotten classes from those of a model that was trained without them?

On the held-out images of each class. The Jensen-Shannon divergence of the candidate from the reference must be at most
`max_ratio` of the original's. A share rather than a number: how far two retrainings are from each other, by their seeds alone,
depends on data and architecture (of KL, 0.10 and more are reported). Beside it stand, for people, KL(reference || candidate),
the activation distance, which is that of the probabilities, and ZRF with a network of the same architecture and new weights,
1 - JS(candidate, new weights) with logarithms to base 2.

Where the job has no reference there is nothing to measure: the check is underpowered, and says so.

Source: Golatkar et al. 2020, arXiv:1911.04933, of activations' distance; Chundawat et al. 2023, arXiv:2205.08096, of ZRF.
"""

from __future__ import annotations

from typing import ClassVar, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from worker.contract import Finding, Spec, Tier
from worker.engine.errors import BadInput
from worker.engine.family import Classifier, Kind
from worker.engine.retrained import no_reference
from worker.engine.statistics import Floats, bootstrap_ratio_upper, resampled_rows
from worker.engine.verifier import Env, Need, Params, Subject, require_classes

FEWEST = 10
"""Held-out images of a class: resampling fewer says too little of how they vary."""


class Thresholds(Params):
    """How near the reference the candidate must be."""

    max_ratio: float = Field(default=0.5, gt=0, lt=1, description="bound on candidate's divergence / original's")
    resamples: int = Field(default=1000, ge=100, le=100_000, description="bootstrap resamples for the bound")


class ReferenceDistance:
    """Divergence of answers from the reference's, candidate over original."""

    name: ClassVar[str] = "reference_distance"
    title: ClassVar[str] = "Images of forgotten classes are answered as by a model trained without them"
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
        """See `Verifier.run`. Raises: BadInput when a forgotten class has too few held-out images, or original and
        reference answer alike.
        """
        if env.reference is None:
            return no_reference(env, self.name, "divergence_ratio")
        return tuple(finding for k in env.spec.all_forgotten for finding in self._on(env, env.reference, k))

    def _on(self, env: Env, reference: Subject, k: int) -> list[Finding]:
        n = len(env.dataset.held_out_of([k]))
        if n < FEWEST:
            raise BadInput(f"expected {FEWEST} held-out images of {env.spec.class_names[k]!r} or more, found {n}")
        due_NK = env.answers(reference, k)
        answers: dict[Subject, Tensor] = {"candidate": env.answers("candidate", k), "original": env.answers("original", k)}
        apart = {subject: divergence(due_NK, logits_NK) for subject, logits_NK in answers.items()}
        findings = [self._ratio(env, k, apart["candidate"], apart["original"])]
        for subject, logits_NK in answers.items():
            measured = {
                "js_divergence": (apart[subject].mean(), "nats, of the answers from the reference's"),
                "kl_divergence": (_kl(due_NK, logits_NK), "nats, KL(reference || answers)"),
                "activation_distance": (_apart(due_NK, logits_NK), "Euclidean distance of probabilities from the reference's"),
                "zrf": (self._zrf(env, k, logits_NK), "1 less the divergence in bits from a network of new weights"),
            }
            findings += [self._reported(env, subject, k, metric, *said, n=n) for metric, said in measured.items()]
        return findings

    def _ratio(self, env: Env, k: int, candidate_N: Floats, original_N: Floats) -> Finding:
        if original_N.mean() <= 0:
            raise BadInput("expected an original that answers unlike the reference, found none: it is the reference")
        floor = float(np.finfo(np.float64).tiny)  # a candidate that is the reference has a ratio of 0, and no logarithm

        def ratio(rows_N: np.ndarray | slice) -> float:
            return max(float(candidate_N[rows_N].mean()), floor) / max(float(original_N[rows_N].mean()), floor)

        point, n = ratio(slice(None)), len(candidate_N)
        upper = bootstrap_ratio_upper(
            lambda rng: ratio(resampled_rows(n, rng)), point,
            resamples=self.params.resamples, rng=env.generator(f"{self.name}/{k}"), alpha=env.alpha,
        )  # fmt: skip
        return Finding(
            check=self.name,
            metric="divergence_ratio",
            subject="candidate",
            gating=True,
            passed=upper <= self.params.max_ratio,
            value=point,
            upper95=upper,
            comparator="le",
            threshold=self.params.max_ratio,
            n=n,
            class_index=k,
            class_name=env.spec.class_names[k],
            detail=f"Jensen-Shannon divergence from the reference on {n} held-out images, candidate over original",
        )

    def _zrf(self, env: Env, k: int, logits_NK: Tensor) -> float:
        model = cast(Classifier, env.fresh("candidate"))
        model.module.load_state_dict(model.fresh(env.spec.verification_seed % 2**31).state_dict())
        images_NCHW = env.dataset.images_NCHW[env.dataset.held_out_of([k])]
        return 1 - float(divergence(model.logits(images_NCHW), logits_NK).mean() / np.log(2))

    def _reported(self, env: Env, subject: Subject, k: int, metric: str, value: float, detail: str, *, n: int) -> Finding:
        return Finding(
            check=self.name,
            metric=metric,
            subject=subject,
            gating=False,
            value=float(value),
            n=n,
            class_index=k,
            class_name=env.spec.class_names[k],
            detail=f"{detail}; mean over {n} held-out images",
        )


def divergence(one_NK: Tensor, other_NK: Tensor) -> Floats:
    """(N,) Jensen-Shannon divergence of the softmaxes of two sets of logits, in nats, 0 to ln 2."""
    p_NK, q_NK = (logits_NK.double().log_softmax(dim=1) for logits_NK in (one_NK, other_NK))
    middle_NK = torch.logaddexp(p_NK, q_NK) - np.log(2)
    halves = [F.kl_div(middle_NK, log_NK, log_target=True, reduction="none").sum(dim=1) for log_NK in (p_NK, q_NK)]
    return np.asarray((sum(halves) / 2).clamp_min(0).numpy())


def _kl(due_NK: Tensor, logits_NK: Tensor) -> float:
    p_NK, q_NK = (z_NK.double().log_softmax(dim=1) for z_NK in (due_NK, logits_NK))
    return float(F.kl_div(q_NK, p_NK, log_target=True, reduction="none").sum(dim=1).mean())


def _apart(due_NK: Tensor, logits_NK: Tensor) -> float:
    return float((due_NK.double().softmax(dim=1) - logits_NK.double().softmax(dim=1)).norm(dim=1).mean())
