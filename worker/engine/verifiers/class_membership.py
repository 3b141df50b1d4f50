"""Do the candidate's answers still betray which images of a forgotten class it was trained on?

Members are the class's training images, the others its held-out images: a model that never saw the class treats both alike. An
attacker learns to tell them apart by loss, confidence, entropy and modified entropy. Both directions are knowledge: an image
that stands out as *worse* known than an unseen one was in the training data as surely as one that is known better.

This is a population attack. Such attacks see less than one that trains shadow models for every item (Hayes et al. 2024,
arXiv:2403.01218): what it finds is a leak, and what it does not find may still leak. The original is measured beside the
candidate; one that never overfitted the class passes, too, and then no more is shown than that nothing was to be found.

Source: Song & Mittal 2021, arXiv:2003.10595; Carlini et al. 2022, arXiv:2112.03570, for the rate at few false alarms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from scipy.stats import norm

from worker.contract import Finding, Spec, Tier
from worker.engine.errors import BadInput
from worker.engine.family import Kind
from worker.engine.intervals import LEARNED, auc, chance_error, chance_of_as_many, chance_of_hits, hits_at
from worker.engine.signals import FOLDS, SIGNALS, attack, signals
from worker.engine.statistics import Floats, lower_bound, upper_bound
from worker.engine.streams import generator
from worker.engine.verifier import Env, Need, Params, Subject, require_classes

CHANCE = 0.5
FEW_FALSE_ALARMS = 0.01
RETRAIN_PASSES = 0.95
"""How often a model that never saw the class must pass for a number to gate."""


class Thresholds(Params):
    """How well training images may still be told from unseen ones."""

    max_offset: float = Field(default=0.05, gt=0, lt=0.5, description="of the AUC from 1/2, to either side")
    max_reach: float = Field(default=0.10, gt=0, lt=0.5, description="of the AUC's bounds from 1/2, to either side")
    max_hit_rate: float = Field(
        default=0.03, gt=FEW_FALSE_ALARMS, lt=1, description="bound on the share of members found at 1 % false alarms"
    )
    members: int = Field(default=5000, ge=FOLDS, le=1_000_000, description="training images of a class that are asked about")


@dataclass(frozen=True)
class Told:
    """Signals of one model to one class."""

    members_MS: Floats
    others_US: Floats
    member_scores_M: Floats
    other_scores_U: Floats


class ClassMembership:
    """A learned membership attack on every class that was ever forgotten on this lineage."""

    name: ClassVar[str] = "class_membership"
    title: ClassVar[str] = "Training images of forgotten classes are answered like unseen ones"
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
        return tuple(finding for k in env.spec.all_forgotten for finding in self._on(env, k))

    def _on(self, env: Env, k: int) -> list[Finding]:
        candidate, original = self._told(env, "candidate", k), self._told(env, "original", k)
        return [
            *self._area(env, "candidate", k, candidate),
            self._hits(env, "candidate", k, candidate),
            *self._area(env, "original", k, original),
            self._hits(env, "original", k, original),
            *(self._signal(env, "candidate", k, candidate, i) for i in range(len(SIGNALS))),
        ]

    def _told(self, env: Env, subject: Subject, k: int) -> Told:
        train_N = env.dataset.train_of([k])
        source = generator(env.spec.verification_seed, self.name, k)
        members_N = train_N[torch.randperm(len(train_N), generator=source)[: self.params.members]]
        if min(len(members_N), len(env.dataset.held_out_of([k]))) < FOLDS:
            raise BadInput(f"expected {FOLDS} training and {FOLDS} held-out images of {env.spec.class_names[k]!r} or more")
        members_MS = signals(env.answers_to(subject, members_N), k)
        others_US = signals(env.answers(subject, k), k)
        return Told(members_MS, others_US, *attack(members_MS, others_US, env.generator(f"{self.name}/{k}")))

    def _area(self, env: Env, subject: Subject, k: int, told: Told) -> list[Finding]:
        """Three findings on one number: its bounds to either side, and the number itself."""
        p, found = self.params, auc(told.member_scores_M, told.other_scores_U, alpha=env.alpha)
        members, others = len(told.member_scores_M), len(told.other_scores_U)
        error = chance_error(members, others)
        strays = LEARNED * error * float(norm.ppf((1 + RETRAIN_PASSES) / 2))
        can_pass = strays <= p.max_offset and strays + error * float(norm.ppf(1 - env.alpha)) <= p.max_reach
        refuted = found.lower > CHANCE + p.max_offset or found.upper < CHANCE - p.max_offset
        outside = max(0.0, abs(found.value - CHANCE) - p.max_offset)
        gates = subject == "candidate" and (can_pass or refuted)
        about = {
            "check": self.name, "subject": subject, "gating": gates, "n": members, "class_index": k,
            "underpowered": subject == "candidate" and not gates, "class_name": env.spec.class_names[k],
        }  # fmt: skip
        few = "" if can_pass else f"; {members} and {others} images are too few for a retrained model to pass reliably"
        detail = (
            f"{members} training images are told from {others} unseen ones in {found.value:.1%} of pairs; 50% is chance{few}"
        )
        high, low = CHANCE + p.max_reach, CHANCE - p.max_reach
        bounds = {"value": found.value, "lower95": found.lower, "upper95": found.upper, "detail": detail}
        return [
            Finding(**about, **bounds, metric="membership_auc", comparator="le", threshold=high, passed=found.upper <= high),
            Finding(**about, **bounds, metric="membership_auc_low", comparator="ge", threshold=low, passed=found.lower >= low),
            Finding(
                **about, metric="membership_auc_outside_band", value=outside, comparator="eq", threshold=0,
                passed=outside == 0, detail=f"by how much the AUC of {found.value:.3f} is further than {p.max_offset} from 1/2",
            ),
        ]  # fmt: skip

    def _hits(self, env: Env, subject: Subject, k: int, told: Told) -> Finding:
        p, members, others = self.params, len(told.member_scores_M), len(told.other_scores_U)
        hits = hits_at(told.member_scores_M, told.other_scores_U, FEW_FALSE_ALARMS)
        upper, lower = (bound(hits, members, alpha=env.alpha) for bound in (upper_bound, lower_bound))
        chance = chance_of_hits(members, others, FEW_FALSE_ALARMS, p.max_hit_rate, alpha=env.alpha)
        can_pass = chance >= RETRAIN_PASSES
        by_luck = chance_of_as_many(hits, members, others, FEW_FALSE_ALARMS)
        refuted = lower > p.max_hit_rate and by_luck <= env.alpha
        gates = subject == "candidate" and (can_pass or refuted)
        few = "" if can_pass else f"; of a model that never saw the class {chance:.0%} would pass with so few images"
        return Finding(
            check=self.name,
            metric="membership_hits_at_1_percent_false_alarms",
            subject=subject,
            gating=gates,
            underpowered=subject == "candidate" and not gates,
            passed=upper <= p.max_hit_rate,
            value=hits / members,
            lower95=lower,
            upper95=upper,
            comparator="le",
            threshold=p.max_hit_rate,
            n=members,
            count=hits,
            class_index=k,
            class_name=env.spec.class_names[k],
            detail=f"{hits} of {members} training images score above 99% of {others} unseen ones{few}",
        )

    def _signal(self, env: Env, subject: Subject, k: int, told: Told, i: int) -> Finding:
        better = 1 if SIGNALS[i] == "confidence" else -1
        found = auc(better * told.members_MS[:, i], better * told.others_US[:, i], alpha=env.alpha)
        return Finding(
            check=self.name,
            metric=f"{SIGNALS[i]}_auc",
            subject=subject,
            gating=False,
            value=found.value,
            lower95=found.lower,
            upper95=found.upper,
            n=len(told.members_MS),
            class_index=k,
            class_name=env.spec.class_names[k],
            detail="of this signal alone; below 50% training images are known worse than unseen ones, which betrays them, too",
        )
