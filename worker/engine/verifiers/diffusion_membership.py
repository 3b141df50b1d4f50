"""Do the candidate's losses, or its answers to the images themselves, betray which images of a class it was trained on?

Members are training images of a forgotten class, or forgotten samples of one; beside them stand held-out images of the same
class. Each class is measured by itself: among several, one that is betrayed would be lost in their mean. Two statistics an
image:

    loss:  mean over timesteps of the training loss, at the same noise for all
    score: |eps_theta(sqrt(abar_t) x, t)|^2, the answer to the image without any noise, at one timestep (SimA)

A true retrain treats members like any unseen image: an AUC of 1/2 give or take chance, to either side. Members that fit *worse*
than unseen images were in the training data as surely as those that fit better, so both tails gate. Few images cannot show
that; the finding then says so and gates nothing, unless those few refute it. A latent model leaks little through its
autoencoder: that nothing was found of one is weak evidence.

Members may be easier images, for whoever looks: a random split holds out the odd scans, now and then, and for every model that
is ever asked about them. Where the job has a reference, the AUC that it betrays is allowed. Else the same images are shown
turned (`worker.engine.turning`), as nothing is commonly trained on them. What turned images betray refutes no candidate, but
it lets none pass, and no more of it is believed than the luck of a random split could do: whoever turns images in training
teaches the turned ones, too.

A network that predicts velocity is scored by its noise, too. Shown sqrt(abar) x it should answer -sqrt(1 - abar) x, its noise
is eps = sqrt(abar) v + sqrt(1 - abar) sqrt(abar) x, and so its loss there is |eps|^2 / abar: at one timestep the same order.

Source: Carlini et al. 2023, arXiv:2301.13188, and Matsumoto et al. 2023, arXiv:2302.03262, for the loss; arXiv:2509.25003 for
the score. Here, as the schedule would have it, the image is scaled by sqrt(abar_t) before it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from worker.contract import Finding, Spec, Tier
from worker.engine.errors import BadInput, Diverged
from worker.engine.family import Draw, Generator, Kind
from worker.engine.intervals import chance_of_as_many, hits_at
from worker.engine.membership import Answers, Comparison, Estimate, expected_upper
from worker.engine.statistics import Floats, lower_bound, upper_bound
from worker.engine.streams import generator
from worker.engine.turning import Turn, turned
from worker.engine.verifier import Env, Need, Params, Subject

FALSE_ALARMS = 0.01
"""The share of unseen images that an attacker takes for members, where true alarms are counted."""
SURE = 0.999
"""No AUC that explains anything is beyond it."""
LUCK = 1e-4
"""Chance of a random split that makes members so much easier. A data set is split once, for all that is ever asked of it."""


class Thresholds(Params):
    """How well members may be told from unseen images."""

    max_auc: float = Field(
        default=0.55, gt=0.5, lt=1, description="bound on the AUC, and on 1 less it; 0.5 is no better than chance"
    )
    reference_slack: float = Field(
        default=0.03,
        ge=0,
        lt=0.5,
        description="what the bound may lie beyond a reference's AUC, and a refutation beyond that of turned images",
    )
    max_true_alarms: float = Field(
        default=0.03,
        gt=FALSE_ALARMS,
        lt=1,
        description="bound on the share of members found at 1 % false alarms, at either end, 0-1",
    )
    n_per_class: int = Field(default=1000, ge=10, le=100_000, description="members of each class, and unseen images, at most")
    timesteps: int = Field(default=10, ge=1, le=1000, description="of the loss, evenly spread")
    score_depth: float = Field(default=0.1, gt=0, lt=1, description="t / T at which the score is asked for")
    resamples: int = Field(default=1000, ge=200, le=100_000, description="bootstrap resamples for the bounds")
    turn: Turn = Field(default="auto", description="how the same images are turned, where there is no reference")


TOLD: Mapping[str, str] = {
    "original": "of the original, which was trained on the members: what there was to be found",
    "reference": "of the reference, which never saw them: what the images tell by themselves",
    "turned": "of the same images turned: what they tell by themselves",
}


@dataclass(frozen=True)
class Themselves:
    """What the images of one class tell by one statistic of who was trained on them, where nothing was."""

    auc: Estimate
    allowed: bool
    """Of a reference: the candidate may tell as much. Of turned images: as much is no refutation."""
    luck: float
    """The AUC to which a random split of as many images may come by chance."""

    def within(self, auc: float) -> float:
        """As much of it as is believed."""
        return auc if self.allowed else min(max(auc, 1 - self.luck), self.luck)


class DiffusionMembership:
    """Membership inference on generators, by loss and by score, on all that was ever forgotten on this lineage."""

    name: ClassVar[str] = "diffusion_membership"
    title: ClassVar[str] = "Images of forgotten classes are met like unseen ones"
    tier: ClassVar[Tier] = "L3"
    kinds: ClassVar[tuple[Kind, ...]] = ("generator",)
    Params: ClassVar[type[Params]] = Thresholds

    def __init__(self, params: Thresholds) -> None:
        self.params = params

    def needs(self, spec: Spec) -> tuple[Need, ...]:
        """Asks about real images; nothing is drawn."""
        return ()

    def run(self, env: Env) -> tuple[Finding, ...]:
        """See `Verifier.run`. Raises: BadInput without held-out images of a class; Diverged where a loss is not finite."""
        groups = self._groups(env)
        candidate, original = (self._scores(env, subject, groups) for subject in ("candidate", "original"))
        control = self._scores(env, env.reference or "candidate", groups, turn=env.reference is None)
        found: list[Finding] = []
        for (statistic, k), scores in candidate.items():
            told = self.themselves(env, k, control[statistic, k], allowed=env.reference is not None)
            found += [*self._of_auc(env, statistic, k, scores, told), *self._of_alarms(env, statistic, k, scores, told)]
        shown: list[tuple[Mapping[tuple[str, int], Comparison], Subject, str]] = [(original, "original", "")]
        shown += [(control, env.reference, "")] if env.reference else [(control, "candidate", "_turned")]
        for some, subject, suffix in shown:
            found += [self._reported(env, statistic, k, scores, subject, suffix) for (statistic, k), scores in some.items()]
        return tuple(found)

    # --------------------------------------------------------------------------------------------------------- the scores

    def _groups(self, env: Env) -> dict[int, tuple[Tensor, Tensor]]:
        """By class, positions of members and of unseen images. Raises: BadInput where a class has none of either."""
        data, spec = env.dataset, env.spec
        rows_N = torch.cat([data.train_of(spec.all_forgotten), data.positions_of(spec.all_forgotten_samples)]).unique()
        groups = {}
        for k in sorted(set(data.labels_N[rows_N].tolist())):
            members_N = rows_N[data.labels_N[rows_N] == k]
            order_N = torch.randperm(len(members_N), generator=generator(spec.verification_seed, "members", k))
            groups[k] = members_N[order_N[: self.params.n_per_class]], env.shown(k, self.params.n_per_class)
        if not groups or any(not len(unseen_N) for _, unseen_N in groups.values()):
            raise BadInput("expected training and held-out images of what was forgotten, found none of some")
        return groups

    def _scores(
        self, env: Env, subject: Subject, groups: Mapping[int, tuple[Tensor, Tensor]], *, turn: bool = False
    ) -> dict[tuple[str, int], Comparison]:
        """By statistic and class."""
        model = cast(Generator, env.load(subject))
        asked = {k: [self._asked(env, model, k, rows_N, turn=turn) for rows_N in pair] for k, pair in groups.items()}
        return {
            (statistic, k): Comparison({k: _answers(members[statistic])}, {k: _answers(unseen[statistic])})
            for k, (members, unseen) in asked.items()
            for statistic in ("loss", "score")
        }

    @torch.inference_mode()
    def _asked(self, env: Env, model: Generator, k: int, rows_N: Tensor, *, turn: bool) -> dict[str, Floats]:
        """(N,) each, float64. Every image meets the same noise, whoever is asked."""
        steps = model.timesteps
        times = [int((i + 0.5) * steps / self.params.timesteps) for i in range(self.params.timesteps)]
        parts: dict[str, list[Tensor]] = {"loss": [], "score": []}
        for chunk_B in rows_N.split(env.spec.policy.sampling.batch_size):
            images_BCHW = env.dataset.images_NCHW[chunk_B]
            images_BCHW = turned(images_BCHW, self.params.turn) if turn else images_BCHW
            held_B, label_B = model.hold(images_BCHW), torch.full((len(chunk_B),), k)
            losses = [self._loss(env, model, held_B, label_B, images_BCHW, t, noisy=True) for t in times]
            parts["loss"].append(torch.stack(losses).mean(dim=0))
            at = int(self.params.score_depth * steps)
            parts["score"].append(self._loss(env, model, held_B, label_B, images_BCHW, at, noisy=False))
            env.busy()
        return {statistic: torch.cat(some).numpy() for statistic, some in parts.items()}

    def _loss(
        self, env: Env, model: Generator, held_B: Tensor, label_B: Tensor, images_BCHW: Tensor, t: int, *, noisy: bool
    ) -> Tensor:
        """(B,) float64. Without noise there is none to be found, so that the loss is the norm of the noise that is found."""
        source = generator(env.spec.verification_seed, "membership", t)
        one = model.draw(1, images_BCHW.shape[1:], source, label_drop=0.0)
        count = len(label_B)
        numbers = {name: row.expand(count, *row.shape[1:]).clone() for name, row in one.tensors.items()}
        numbers["t"] = torch.full((count,), t)
        if not noisy:
            numbers["eps"] = torch.zeros_like(numbers["eps"])
        drawn = Draw(numbers).to(held_B.device)
        loss_B = model.loss(model.prepare(held_B, drawn), label_B.to(held_B.device), drawn).double().cpu()
        if not bool(torch.isfinite(loss_B).all()):
            raise Diverged("expected finite losses of real images, found NaN or infinity", step=t, loss=float("nan"))
        return loss_B

    # ------------------------------------------------------------------------------------------------------- the findings

    def _auc(self, env: Env, k: int, scores: Comparison) -> Estimate:
        return scores.measure(self.params.resamples, env.generator(f"{self.name}/{k}"), alpha=env.alpha)[0]

    def themselves(self, env: Env, k: int, control: Comparison, *, allowed: bool) -> Themselves:
        """By a control that nobody trained on the images as they are shown to it."""
        members, unseen = _counts(control, k)
        luck = min(expected_upper({k: members}, {k: unseen}, alpha=LUCK), SURE)
        return Themselves(self._auc(env, k, control), allowed, luck)

    def _about(self, env: Env, metric: str, k: int, *, powerless: bool) -> dict[str, Any]:
        return {
            "check": self.name, "metric": metric, "subject": "candidate", "gating": not powerless, "underpowered": powerless,
            "class_index": k, "class_name": env.spec.class_names[k],
        }  # fmt: skip

    def _of_auc(self, env: Env, statistic: str, k: int, scores: Comparison, told: Themselves) -> list[Finding]:
        """Two findings on one number, its bound to either side."""
        auc, slack, most = self._auc(env, k, scores), self.params.reference_slack, self.params.max_auc
        members, unseen = _counts(scores, k)
        explained = told.within(told.auc.value - slack), told.within(told.auc.value + slack)
        beyond = min(1 - most, explained[0]), max(most, explained[1])
        low, high = beyond if told.allowed else (1 - most, most)
        expected = expected_upper({k: members}, {k: unseen}, alpha=env.alpha)
        refuted = auc.lower95 > beyond[1] or auc.upper95 < beyond[0]
        powerless = expected > min(high, 1 - low) and not refuted
        shared = {
            "value": auc.value, "lower95": auc.lower95, "upper95": auc.upper95, "n": members,
            "detail": f"{members} training images of {env.spec.class_names[k]!r} have a smaller {statistic} than {unseen} "
            f"unseen ones in {auc.value:.1%} of pairs; 50% is chance, {told.auc.value:.1%} of "
            + ("the reference" if told.allowed else "the same images turned"),
        }  # fmt: skip
        sides: tuple[tuple[str, Literal["le", "ge"], float, bool], ...] = (
            ("", "le", high, auc.upper95 <= high),
            ("_low", "ge", low, auc.lower95 >= low),
        )
        return [
            Finding(
                **self._about(env, f"membership_auc_{statistic}{side}", k, powerless=powerless),
                **shared,
                passed=None if powerless else passed,
                open=not (powerless or refuted or passed),
                comparator=comparator,
                threshold=threshold,
            )
            for side, comparator, threshold, passed in sides
        ]

    def _of_alarms(self, env: Env, statistic: str, k: int, scores: Comparison, told: Themselves) -> list[Finding]:
        """Members that lie beyond all but one in a hundred of the unseen images of their class: below, and above."""
        (members, unseen), threshold, alpha = _counts(scores, k), self.params.max_true_alarms, env.alpha
        # The quantile needs a hundred unseen images; and as many hits as false alarms are what chance alone would give.
        few = unseen * FALSE_ALARMS < 1 or upper_bound(round(FALSE_ALARMS * members), members, alpha=alpha) > threshold
        found = []
        slack = self.params.reference_slack
        for side, words, sign, told_auc in (
            ("", "smaller", -1, told.within(told.auc.value + slack)),
            ("_high", "larger", 1, 1 - told.within(told.auc.value - slack)),
        ):
            hits = hits_at(sign * scores.items[k].misfit_N, sign * scores.unseen[k].misfit_N, FALSE_ALARMS)
            upper, lower = (bound(hits, members, alpha=alpha) for bound in (upper_bound, lower_bound))
            shift = min(max(told_auc, 0.5), SURE)
            refuted = lower > threshold and chance_of_as_many(hits, members, unseen, FALSE_ALARMS, auc=shift) <= alpha
            powerless = few and not refuted
            finding = Finding(
                **self._about(env, f"membership_true_alarms_{statistic}{side}", k, powerless=powerless),
                passed=None if powerless else upper <= threshold,
                open=not powerless and not refuted and upper > threshold,
                value=hits / members,
                lower95=lower,
                upper95=upper,
                comparator="le",
                threshold=threshold,
                n=members,
                count=hits,
                detail=f"{hits} of {members} training images of {env.spec.class_names[k]!r} have a {words} {statistic} than "
                f"99 % of {unseen} unseen ones",
            )
            found.append(finding)
        return found

    def _reported(self, env: Env, statistic: str, k: int, scores: Comparison, subject: Subject, suffix: str) -> Finding:
        auc = self._auc(env, k, scores)
        return Finding(
            check=self.name,
            metric=f"membership_auc_{statistic}{suffix}",
            subject=subject,
            gating=False,
            value=auc.value,
            lower95=auc.lower95,
            upper95=auc.upper95,
            n=scores.n,
            class_index=k,
            class_name=env.spec.class_names[k],
            detail=TOLD["turned" if suffix else subject],
        )


def _counts(scores: Comparison, k: int) -> tuple[int, int]:
    """Members and unseen images."""
    return len(scores.items[k].misfit_N), len(scores.unseen[k].misfit_N)


def _answers(statistic_N: Floats) -> Answers:
    return Answers(statistic_N, np.zeros(len(statistic_N), dtype=np.bool_))
