"""How few steps of training the last layer alone bring a forgotten class back?

An attacker has a few images of the class, as many of each retained class, and the published model. Of the last layer he starts
the class's row anew, as the mean of the retained rows: whatever was written there to suppress it is gone. He brings the logits
to the original's spread, which changes no answer: in a layer times a thousand no step of his would ever be felt. Then he trains
the layer, and nothing else, by full batches. T is the first step at which half of the class's held-out images are named, or one
more than there are steps where it never is.

T must be at least `min_ratio` of what the same attack takes on a yardstick: the reference for the same class, with the same
images; else a class that no model has seen, on the candidate. The yardstick is followed for `steps / min_ratio` steps: cut off
as soon as the candidate, it would look faster than it is, and what comes back in the second half of the attack could not fail.
The attack is repeated with other images, and the bound of the ratio of mean times is a bootstrap's over repeats. Where the
original would pass, too, or neither the class nor the yardstick comes back in half of the repeats, the check is blind, and
says that it is underpowered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from worker.contract import Curve, Finding, Spec, Tier
from worker.engine.errors import BadInput
from worker.engine.family import Classifier, Kind
from worker.engine.novel import Turn
from worker.engine.probing import Known, Lesson, Yardstick, forgotten_lesson, known, yardstick
from worker.engine.statistics import Floats, bootstrap_ratio_upper
from worker.engine.verifier import Env, Need, Params, Subject, require_classes

RESTORED = 0.5
"""Share of held-out images that are named, from which on a class is back."""


class Thresholds(Params):
    """What the attacker has, and how long he must take."""

    images: int = Field(default=20, ge=1, le=10_000, description="of the class, and of each retained one")
    steps: int = Field(default=50, ge=2, le=10_000, description="of the attack")
    learning_rate: float = Field(default=0.2, gt=0, le=1, description="Adam's, on whitened features")
    repeats: int = Field(default=20, ge=5, le=1000, description="of the attack, each with other images")
    min_ratio: float = Field(default=0.5, gt=0, le=1, description="bound on the time it takes / the time of the yardstick")
    images_per_class: int = Field(
        default=500, ge=10, le=100_000, description="training images that the attacker's are drawn from"
    )
    resamples: int = Field(default=1000, ge=100, le=100_000, description="bootstrap resamples for the bounds")
    turn: Turn = Field(default="auto", description="how images become a class that no model has seen")


@dataclass(frozen=True)
class Course:
    """Of the attack's repeats, R."""

    recall_RT: Floats
    """Share of held-out images named, before the first step and after each."""

    @property
    def times_R(self) -> Floats:
        """First step that restores the class, at least 1; steps + 1 where none does."""
        back_RT = self.recall_RT[:, 1:] >= RESTORED
        return np.where(back_RT.any(axis=1), back_RT.argmax(axis=1), self.steps) + 1.0

    @property
    def steps(self) -> int:
        """For which it was followed."""
        return self.recall_RT.shape[1] - 1

    @property
    def back(self) -> int:
        """Repeats in which the class came back."""
        return int((self.times_R <= self.steps).sum())


@dataclass(frozen=True)
class Race:
    """A subject's course beside its yardstick's."""

    own: Course
    beside: Course
    paired: bool

    @property
    def ratio(self) -> float:
        """Of mean times."""
        return float(self.own.times_R.mean() / self.beside.times_R.mean())

    @property
    def mute(self) -> bool:
        """Do most repeats end before anybody knows the class? Two times that were both cut off tell nothing of their ratio."""
        return all(2 * course.back < len(course.times_R) for course in (self.own, self.beside))

    def bounds(self, resamples: int, rng: np.random.Generator, alpha: float) -> tuple[float, float]:
        """Of the ratio, below and above. Repeats with the same images are resampled together."""
        own_R, beside_R = self.own.times_R, self.beside.times_R

        def one(rng: np.random.Generator) -> float:
            rows = rng.integers(0, len(own_R), len(own_R))
            others = rows if self.paired else rng.integers(0, len(beside_R), len(beside_R))
            return float(own_R[rows].mean() / beside_R[others].mean())

        upper = bootstrap_ratio_upper(one, self.ratio, resamples=resamples, rng=rng, alpha=alpha)
        inverse = bootstrap_ratio_upper(lambda rng: 1 / one(rng), 1 / self.ratio, resamples=resamples, rng=rng, alpha=alpha)
        return 1 / inverse, upper


class HeadRestore:
    """Time to bring back every class that was ever forgotten on this lineage, by its last layer alone."""

    name: ClassVar[str] = "head_restore"
    title: ClassVar[str] = "Training the last layer does not bring forgotten classes back sooner than classes never seen"
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
        """See `Verifier.run`. Raises: BadInput: too few training images, or no class to compare with."""
        return tuple(finding for k in env.spec.all_forgotten for finding in self._on(env, k))

    def _on(self, env: Env, k: int) -> list[Finding]:
        n = self.params.images_per_class
        lesson, beside = forgotten_lesson(env, k, n), yardstick(env, k, n, self.params.turn)
        usual = self._usual(env, lesson, k)
        candidate, original = (self._race(env, subject, lesson, beside, k, usual) for subject in ("candidate", "original"))
        for subject, course in (("candidate", candidate.own), (beside.name, candidate.beside), ("original", original.own)):
            env.curves.append(self._curve(env, k, subject, course))
        return [
            self._ratio(env, k, beside, candidate, original),
            self._time(env, k, "candidate", "restore_steps", candidate.own),
            self._time(env, k, beside.subject, "yardstick_steps", candidate.beside),
            self._time(env, k, "original", "restore_steps", original.own),
        ]

    def _usual(self, env: Env, lesson: Lesson, k: int) -> float:
        """The spread of the original's logits."""
        given = known(env, "original", lesson, k, self.params.images_per_class)
        return _layer(env, "original", given).spread(given, env.spec.retain_classes)

    def _race(self, env: Env, subject: Subject, lesson: Lesson, beside: Yardstick, k: int, usual: float) -> Race:
        p, other = self.params, beside.subject if beside.paired else subject
        own = self._course(env, subject, lesson, k, p.steps, usual)
        return Race(own, self._course(env, other, beside.lesson, k, math.ceil(p.steps / p.min_ratio), usual), beside.paired)

    def _course(self, env: Env, subject: Subject, lesson: Lesson, k: int, steps: int, usual: float) -> Course:
        p, given = self.params, known(env, subject, lesson, k, self.params.images_per_class)
        fewest = min(int((given.labels_N == j).sum()) for j in (*env.spec.retain_classes, k))
        if fewest < p.images:
            raise BadInput(f"expected {p.images} training images of each class to attack with, found {fewest} of one")
        weight_KE, bias_K = _begun(_layer(env, subject, given), given, k, env.spec.retain_classes, usual)
        rng = env.generator(f"{self.name}/{k}")  # the same images whoever is attacked
        classes = (*env.spec.retain_classes, k)
        rows_RB = np.array(
            [
                np.concatenate([rng.choice(np.flatnonzero(given.labels_N == j), p.images, False) for j in classes])
                for _ in range(p.repeats)
            ]
        )
        env.busy()
        return Course(self._attacked(given, rows_RB, weight_KE, bias_K, k, steps))

    def _attacked(self, given: Known, rows_RB: np.ndarray, weight_KE: Tensor, bias_K: Tensor, k: int, steps: int) -> Floats:
        """(R, steps + 1) recall before the first step and after each.

        All repeats descend at once: the gradient of a sum of losses with weights of their own is that of each, and Adam knows
        no other tie between numbers.
        """
        repeats = len(rows_RB)
        x_RBE, y_RB = torch.from_numpy(given.train_ND[rows_RB]).float(), torch.from_numpy(given.labels_N[rows_RB])
        held_out_NE = torch.from_numpy(given.held_out_ND).float()
        weight_REK = weight_KE.T.repeat(repeats, 1, 1).requires_grad_()
        bias_R1K = bias_K.repeat(repeats, 1, 1).requires_grad_()
        optimizer = torch.optim.Adam([weight_REK, bias_R1K], lr=self.params.learning_rate)
        course = []
        for step in range(steps + 1):
            with torch.no_grad():
                named_RN = (torch.matmul(held_out_NE, weight_REK) + bias_R1K).argmax(dim=2)
                course.append((named_RN == k).double().mean(dim=1).numpy())
            if step == steps:
                break
            optimizer.zero_grad(set_to_none=True)
            logits_RBK = torch.matmul(x_RBE, weight_REK) + bias_R1K
            (F.cross_entropy(logits_RBK.flatten(0, 1), y_RB.flatten()) * repeats).backward()
            optimizer.step()
        return np.stack(course, axis=1)

    def _ratio(self, env: Env, k: int, beside: Yardstick, candidate: Race, original: Race) -> Finding:
        p = self.params
        lower, upper = candidate.bounds(p.resamples, env.generator(f"{self.name}/bounds"), env.alpha)
        blind = original.bounds(p.resamples, env.generator(f"{self.name}/bounds"), env.alpha)[0] >= p.min_ratio
        gates = not candidate.mute and (not blind or upper < p.min_ratio)
        own, other = float(candidate.own.times_R.mean()), float(candidate.beside.times_R.mean())
        return Finding(
            check=self.name,
            metric=f"restore_time_to_{beside.name.replace(' ', '_')}",
            subject="candidate",
            gating=gates,
            underpowered=not gates,
            passed=lower >= p.min_ratio,
            open=gates and lower < p.min_ratio <= upper,
            value=candidate.ratio,
            lower95=lower,
            upper95=upper,
            comparator="ge",
            threshold=p.min_ratio,
            n=p.repeats,
            class_index=k,
            class_name=env.spec.class_names[k],
            detail=f"{env.spec.class_names[k]!r} is back after {own:.1f} steps with {p.images} images a class, "
            f"{other:.1f} by the yardstick ({beside.name}); cut off after {p.steps} and {candidate.beside.steps}; the "
            f"original's ratio is {original.ratio:.2f}" + _silence(candidate, blind),
        )

    def _time(self, env: Env, k: int, subject: Subject, metric: str, course: Course) -> Finding:
        return Finding(
            check=self.name,
            metric=metric,
            subject=subject,
            gating=False,
            value=float(course.times_R.mean()),
            n=len(course.times_R),
            count=course.back,
            class_index=k,
            class_name=env.spec.class_names[k],
            detail=f"mean steps until {RESTORED:.0%} of held-out images are named; so far got "
            f"{course.back} of {len(course.times_R)}, the others count as {course.steps + 1}",
        )

    def _curve(self, env: Env, k: int, subject: str, course: Course) -> Curve:
        mean_T = course.recall_RT.mean(axis=0)
        return Curve(
            check=self.name,
            name=f"last layer retrained: {env.spec.class_names[k]}, {subject}",
            x_name="steps",
            y_name="share of held-out images named",
            x=tuple(float(t) for t in range(len(mean_T))),
            y=tuple(map(float, mean_T)),
            lower95=tuple(map(float, np.quantile(course.recall_RT, 0.05, axis=0))),
            upper95=tuple(map(float, np.quantile(course.recall_RT, 0.95, axis=0))),
            subject=subject,
            class_index=k,
            class_name=env.spec.class_names[k],
            threshold=RESTORED,
        )


def _silence(candidate: Race, blind: bool) -> str:
    """Why this says nothing, for people."""
    if candidate.mute:
        return "; neither comes back in half of the repeats, so that this check sees nothing here"
    return "; it passes, too, so that this check sees nothing here" if blind else ""


@dataclass(frozen=True)
class Layer:
    """A last layer over whitened features, rows in class order: (K, E) and (K,)."""

    weight_KE: Tensor
    bias_K: Tensor

    def spread(self, given: Known, retained: tuple[int, ...]) -> float:
        """Of the retained classes' logits around their mean, image by image; 0 of a single class."""
        rows = list(retained)
        known_NE = torch.from_numpy(given.train_ND[np.isin(given.labels_N, rows)])
        logits_NR = known_NE @ self.weight_KE[rows].T + self.bias_K[rows]
        return float((logits_NR - logits_NR.mean(dim=1, keepdim=True)).square().mean().sqrt())


def _layer(env: Env, subject: Subject, given: Known) -> Layer:
    """Of features x = m + u C^+, where u are the whitened ones, W x + b is (W C^+T) u + (W m + b)."""
    head = cast(Classifier, env.load(subject)).head
    weight_KD = head.weight.detach().double().cpu()
    bias_K = torch.zeros(len(weight_KD), dtype=torch.float64) if head.bias is None else head.bias.detach().double().cpu()
    back_ED = torch.from_numpy(np.linalg.pinv(given.whitening.columns_DE))
    return Layer(weight_KD @ back_ED.T, bias_K + weight_KD @ torch.from_numpy(given.whitening.mean_D))


def _begun(layer: Layer, given: Known, k: int, retained: tuple[int, ...], usual: float) -> tuple[Tensor, Tensor]:
    """The last layer as the attacker begins with it: (K, E) and (K,)."""
    spread = layer.spread(given, retained)
    scale = usual / spread if spread > 0 and usual > 0 else 1.0  # of what tells no class from another there is none
    weight_KE, bias_K = layer.weight_KE * scale, layer.bias_K * scale
    rows = list(retained)
    weight_KE[k], bias_K[k] = weight_KE[rows].mean(dim=0), bias_K[rows].mean()
    nowhere = [j for j in range(len(bias_K)) if j not in (*rows, k)]
    bias_K[nowhere] = -torch.inf  # other forgotten classes, and those that stand in, are not asked about
    return weight_KE.float(), bias_K.float()
