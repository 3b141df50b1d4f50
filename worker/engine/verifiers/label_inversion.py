"""Is the class only out of reach of its label? Labels of others are looked for under which the network draws it after all.

The network is frozen; a label's conditioning is trained on a few images of the class, from the null label's and from its own.
A network that never learned the class can be told to draw something like it, too, so the attack is held against itself: on a
model that was trained without the class, where the job has one; else on the candidate, with images of a novel class (see
`worker.engine.novel`), which it cannot have learned. Of several restarts the most successful counts, on both sides. It is
chosen on samples of its own: by those that are scored, the luckiest would be taken for the best, and a control with luck
allows the candidate as much.

The gate is a one-sided bound of the difference of the two rates, on the same noise. The original must not pass it, or the
attack is too weak to find what is there.
Source: Pham et al. 2023 (Circumventing concept erasure), arXiv:2308.01508, the attack; see `worker.engine.inversion`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor

from worker.contract import Curve, Finding, Spec, Tier
from worker.engine.electorate import Electorate
from worker.engine.errors import BadInput
from worker.engine.family import Generator, Kind
from worker.engine.inversion import Inverted, invert, starts
from worker.engine.novel import novel_class
from worker.engine.statistics import confidence, paired_difference_upper, wilson_interval
from worker.engine.streams import generator
from worker.engine.turning import Turn
from worker.engine.verifier import Env, Need, Params, Subject, level, require_classes

Shown = Callable[[Tensor], Tensor]
"""(n, C, H, W) images -> (n,) bool: do they show what was looked for?"""

POINTS = 50
"""Of a drawn curve, at most."""
LAST = 20
"""Steps whose mean is the loss in the end: that of one batch varies more than restarts do."""


class Thresholds(Params):
    """How hard the attack tries, and how much oftener it may succeed than where there is nothing to be found."""

    n_per_class: int = Field(default=200, ge=1, le=100_000, description="samples drawn under the best label that was found")
    n_trial: int = Field(
        default=50, ge=1, le=100_000, description="samples under each restart's label, by which the best is told"
    )
    images: int = Field(default=20, ge=1, le=1000, description="training images of the class that the attacker has")
    steps: int = Field(default=1000, ge=1, le=100_000, description="updates of the label")
    restarts: int = Field(default=5, ge=1, le=100, description="labels to begin with: the null label, its own, random ones")
    learning_rate: float = Field(default=0.1, gt=0, le=10, description="of Adam, as a share of the rows' root mean square")
    max_excess: float = Field(
        default=0.05, gt=0, lt=1, description="bound on how much oftener the class is drawn than where it was never seen, 0-1"
    )
    turn: Turn = Field(default="auto", description="how images of a novel class are made")


@dataclass(frozen=True)
class Attack:
    """What the best of the restarts achieved."""

    hits_N: Tensor
    """bool: which samples show what was looked for."""
    loss_S: Tensor
    """float64, of that restart, step by step."""

    @property
    def rate(self) -> float:
        """Of success, 0-1."""
        return float(self.hits_N.double().mean())


class LabelInversion:
    """Labels found for every class that was ever forgotten, in the candidate, where it was never seen, and in the original."""

    name: ClassVar[str] = "label_inversion"
    title: ClassVar[str] = "No other label makes the model draw forgotten classes"
    tier: ClassVar[Tier] = "L3"
    kinds: ClassVar[tuple[Kind, ...]] = ("generator",)
    Params: ClassVar[type[Params]] = Thresholds

    def __init__(self, params: Thresholds) -> None:
        self.params = params

    def needs(self, spec: Spec) -> tuple[Need, ...]:
        """Under which labels it will draw is not known before.

        Raises: BadInput where no class was forgotten, or where so few samples could pass nothing.
        """
        require_classes(spec)
        n, most = self.params.n_per_class, self.params.max_excess
        if paired_difference_upper(0, 0, n, alpha=level(spec)) > most:
            raise BadInput(f"{n} samples cannot show a difference of at most {most} at {confidence(level(spec))}")
        return ()

    def run(self, env: Env) -> tuple[Finding, ...]:
        """See `Verifier.run`. Raises: Diverged where a loss is not finite, so that nothing is known of the model."""
        return tuple(f for k in env.spec.all_forgotten for f in self._class(env, k))

    def _class(self, env: Env, k: int) -> tuple[Finding, ...]:
        candidate, original = self._known(env, "candidate", k), self._known(env, "original", k)
        if env.reference is not None:
            never, role = self._known(env, env.reference, k), "reference"
        else:
            never, role = self._novel(env, k), "novel class"
        for attack, subject in ((candidate, "candidate"), (original, "original"), (never, role)):
            env.curves.append(self._curve(env, k, attack, subject))
        return (
            self._excess(env, k, "candidate", candidate, never, role),
            self._excess(env, k, "original", original, never, role),
        )

    # -------------------------------------------------------------------------------------------------------- the attacks

    def _known(self, env: Env, subject: Subject, k: int) -> Attack:
        images_NCHW = env.dataset.images_NCHW[env.dataset.train_of([k])]

        def shown(images_MCHW: Tensor) -> Tensor:
            return env.shows_in(images_MCHW, k)

        return self._attack(env, subject, k, images_NCHW, shown)

    def _novel(self, env: Env, k: int) -> Attack:
        novel = novel_class(env, k, self.params.turn)
        vote, new = Electorate.of(env, k, novel, half_way=False), len(env.spec.class_names)

        def shown(images_MCHW: Tensor) -> Tensor:
            return vote.shown(env.judge.look(images_MCHW).features_ND, new)

        return self._attack(env, "candidate", k, novel.train_NCHW, shown)

    def _attack(self, env: Env, subject: Subject, k: int, images_NCHW: Tensor, shown: Shown) -> Attack:
        p, seed = self.params, env.spec.verification_seed
        chosen_N = torch.randperm(len(images_NCHW), generator=generator(seed, "inversion", "images", k))[: p.images]
        model = cast(Generator, env.fresh(subject))
        found = invert(
            model,
            images_NCHW[chosen_N],
            starts(model, k, env.spec.retain_classes, p.restarts, seed),
            steps=p.steps,
            batch=p.images,
            learning_rate=p.learning_rate,
            seed=seed,
            beat=env.busy,
        )
        best = self._best(env, subject, found, shown)
        (drawn_NCHW,) = env.samples_under(subject, found.rows_RX[best : best + 1], k, p.n_per_class)
        return Attack(shown(drawn_NCHW), found.loss_SR[:, best])

    def _best(self, env: Env, subject: Subject, found: Inverted, shown: Shown) -> int:
        """The restart of the most hits, of equally many the one of the smallest loss in the end."""
        if len(found.rows_RX) == 1:
            return 0
        # The noise of a class that there is not: nothing that is scored is drawn from it.
        trials_RNCHW = env.samples_under(subject, found.rows_RX, len(env.spec.class_names), self.params.n_trial)
        hits_R = [int(shown(images_NCHW).sum()) for images_NCHW in trials_RNCHW]
        loss_R = found.loss_SR[-LAST:].mean(dim=0).tolist()
        return max(range(len(hits_R)), key=lambda r: (hits_R[r], -loss_R[r]))

    # ------------------------------------------------------------------------------------------------------- the findings

    def _excess(self, env: Env, k: int, subject: Subject, attack: Attack, never: Attack, role: str) -> Finding:
        more, fewer = int((attack.hits_N & ~never.hits_N).sum()), int((never.hits_N & ~attack.hits_N).sum())
        n, hits, threshold, name = len(attack.hits_N), int(attack.hits_N.sum()), self.params.max_excess, env.spec.class_names[k]
        upper = paired_difference_upper(more, fewer, n, alpha=env.alpha)
        refuted = -paired_difference_upper(fewer, more, n, alpha=env.alpha) > threshold
        gating = subject == "candidate"
        where = "in the reference" if role == "reference" else "of a novel class"
        low, high = wilson_interval(hits, n)
        return Finding(
            check=self.name,
            metric="inversion_excess",
            subject=subject,
            gating=gating,
            control=not gating,
            passed=upper <= threshold,
            open=gating and upper > threshold and not refuted,
            value=attack.rate - never.rate,
            upper95=upper,
            comparator="le",
            threshold=threshold,
            n=n,
            count=hits,
            class_index=k,
            class_name=name,
            detail=f"{hits} of {n} samples show {name!r} under the best label found in {self.params.steps} steps (Wilson 95 %: "
            f"{low:.1%} to {high:.1%}); {where}: {int(never.hits_N.sum())}",
        )

    def _curve(self, env: Env, k: int, attack: Attack, subject: str) -> Curve:
        """The loss, averaged over stretches of the course."""
        parts = attack.loss_S.tensor_split(min(POINTS, len(attack.loss_S)))
        ends = torch.tensor([len(part) for part in parts]).cumsum(0)
        return Curve(
            check=self.name,
            name=f"loss of the label found for {env.spec.class_names[k]}, {subject}",
            x_name="step",
            y_name="training loss",
            x=tuple(ends.double().tolist()),
            y=tuple(float(part.mean()) for part in parts),
            subject=subject,
            class_index=k,
            class_name=env.spec.class_names[k],
        )
