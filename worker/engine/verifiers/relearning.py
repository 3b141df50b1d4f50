"""How soon does the candidate learn a forgotten class again, beside one that never knew it?

A few real images of the class are shown to a copy of the saved model. Where the class was only hidden it is back after a
handful of updates; where it is gone, it takes about as long as with a model that never saw it. T is the first number of
updates after which half of the answers show the class, and what is gated is T of the candidate over T of the control: the
geometric mean over the settings of the attack that tell anything. None of them may refute by itself, or lie far below.

The control is the reference, a model trained without the class, where the job has one: the same images, the same label. Else
the candidate itself is taught a class that nobody ever saw (`worker.engine.novel`), under the *forgotten* label of another
copy, not under a label of its own. So both arms start from the same weights, the same label row and the same answers to it,
and differ in nothing but the images. A fresh row would be a head start: unlearning may have left the forgotten row far off,
and a candidate that hides the class behind such a row would then look as if it had lost it. What a generator draws by then is
asked in one way in both arms, too: see `worker.engine.electorate`.

Where there is no reference the ratio has another bound. A class of the data is nearer to what a model knows than a turned one,
and so sooner learned even by a model that never saw it: of the digits' example three models retrained without the 3 took 0.46
to 0.74 of the novel class's time (200 answers), one whose label row was zeroed 0.24.

Source: the ratio of relearning times and the novel class are ours; relearning as a test: arXiv:2505.16174, arXiv:2510.03263.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from worker.contract import Finding, Spec, Tier
from worker.engine import attacks
from worker.engine.attacks import Attack, Course, Lesson, Probe
from worker.engine.errors import Diverged
from worker.engine.family import Kind
from worker.engine.novel import Turn, novel_class
from worker.engine.relearning_time import FEWEST, LEVEL, Cell, Overall, Ratio, in_words, refuters, resampled
from worker.engine.statistics import lower_bound
from worker.engine.verifier import Env, Need, Params, Subject

REPORTED_AFTER = 50
"""Updates after which the rate is reported, beside the gate."""
REPORTED_OF = 20
"""Images, of an attack whose rate is reported; the nearest number, where a policy asks for others."""

ArmName = Literal["candidate", "control", "original"]
Setting = tuple[ArmName, int, float]
"""Whose copy is attacked, with how many images, at which multiple of the rate."""


class Thresholds(Params):
    """What is taught, how, how often it is asked, and how much sooner than the control the candidate may learn."""

    images: tuple[int, ...] = Field(
        default=(5, 20, 100), min_length=1, max_length=8, description="real images of the class that an attack is given, each"
    )
    rates: tuple[float, ...] = Field(
        default=(1.0, 3.0), min_length=1, max_length=8, description="multiples of learning_rate that are tried"
    )
    learning_rate: float | None = Field(
        default=None, gt=0, le=1, description="of AdamW; null: what models of the kind are commonly trained with"
    )
    steps: int = Field(default=500, ge=1, le=100_000, description="updates of an attack on the candidate, at most")
    every: int = Field(default=25, ge=1, le=10_000, description="updates between two checkpoints; the first few lie closer")
    batch_size: int = Field(default=32, ge=2, le=4096, description="images of an update")
    n_per_class: int = Field(default=200, ge=FEWEST, le=100_000, description="answers at a checkpoint")
    min_ratio: float = Field(default=0.5, gt=0, le=1, description="bound on the candidate's time over the reference's")
    novel_min_ratio: float = Field(
        default=0.3,
        gt=0,
        le=1,
        description="the same over a novel class's, where there is no reference: classes differ in how soon they are learned",
    )
    turn: Turn = Field(default="auto", description="how images are turned into the novel class, where there is no reference")

    @model_validator(mode="after")
    def _sensible(self) -> Thresholds:
        if min(self.images) < 1 or min(self.rates) <= 0:
            raise ValueError("expected at least one image, and rates above 0")
        return self


@dataclass(frozen=True)
class Arm:
    """Who is taught what, and how it is asked whether it knows."""

    subject: Subject
    probe: Probe
    images_NCHW: Tensor
    steps: int
    """At most."""


class Relearning:
    """Ratio of relearning times, candidate over control, of every class that was ever forgotten on this lineage."""

    name: ClassVar[str] = "relearning"
    title: ClassVar[str] = "Forgotten classes are no sooner learned again than a class that was never known"
    tier: ClassVar[Tier] = "L3"
    kinds: ClassVar[tuple[Kind, ...]] = ("generator", "classifier")
    Params: ClassVar[type[Params]] = Thresholds

    def __init__(self, params: Thresholds) -> None:
        self.params = params

    def needs(self, spec: Spec) -> tuple[Need, ...]:
        """What is asked of models under attack is asked of no other."""
        return ()

    def run(self, env: Env) -> tuple[Finding, ...]:
        """See `Verifier.run`. Nothing where only single samples were forgotten.

        Raises:
            BadInput: a forgotten class has no training image, or no class is left that can be turned into a novel one.
            Diverged: no attack on some class came to an end on either arm.
        """
        return tuple(finding for k in env.spec.all_forgotten for finding in self._of_class(env, k))

    def _of_class(self, env: Env, k: int) -> list[Finding]:
        arms = self._arms(env, k)
        for arm in arms.values():
            if arm.probe.n < FEWEST:
                return [self._of_few(env, k, arms["candidate"].probe)]
        plan = self._attacks(env, k, arms)
        courses = {setting: course for setting, (course,) in zip(plan, attacks.run(env, list(plan.values())), strict=True)}
        cells = [
            Cell(f"{images} images, rate x{multiple:g}", images, multiple, course, courses["control", images, multiple])
            for (arm, images, multiple), course in courses.items()
            if arm == "candidate"
        ]
        probe = arms["candidate"].probe
        original = Course((0,), probe.untaught("original")[None])
        self._draw(env, k, {**courses, ("original", cells[0].images, cells[0].multiple): original})
        return [self._gate(env, k, cells), *self._reported(env, k, cells, original)]

    # ------------------------------------------------------------------------------------------------------- the attacks

    def _arms(self, env: Env, k: int) -> dict[ArmName, Arm]:
        """Who is taught what, how it is asked, and for how long: the control until nothing that came later could matter."""
        p, data = self.params, env.dataset
        own_NCHW, longer = data.images_NCHW[data.train_of([k])], math.ceil(p.steps / self._min_ratio(env))
        if env.reference is not None:
            probe = attacks.probe_of(env, k, p.n_per_class)
            return {
                "candidate": Arm("candidate", probe, own_NCHW, p.steps),
                "control": Arm(env.reference, probe, own_NCHW, longer),
            }
        novel = novel_class(env, k, p.turn)
        own, other = attacks.probes_beside_novel(env, k, p.n_per_class, novel)
        return {
            "candidate": Arm("candidate", own, own_NCHW, p.steps),
            "control": Arm("candidate", other, novel.train_NCHW, longer),
        }

    def _attacks(self, env: Env, k: int, arms: dict[ArmName, Arm]) -> dict[Setting, Attack]:
        """Independent of each other, by what they are."""
        p = self.params
        base = p.learning_rate or attacks.RATES[env.kind]
        sizes = sorted({min(images, len(arms["candidate"].images_NCHW)) for images in p.images})
        return {
            (name, images, multiple): Attack(
                name=f"{self.name}/{k}",
                subject=arm.subject,
                lessons=self._lessons(env, k, arm.images_NCHW, images),
                probes=(arm.probe,),
                rate=base * multiple,
                checkpoints=attacks.checkpoints(arm.steps, p.every, also=[REPORTED_AFTER]),
                enough=(LEVEL, min(arm.steps, REPORTED_AFTER) if images == self._middle(sizes) else 0),
            )
            for (name, arm), images, multiple in product(arms.items(), sizes, sorted(set(p.rates)))
        }

    def _lessons(self, env: Env, k: int, images_NCHW: Tensor, images: int) -> tuple[Lesson, ...]:
        """To a classifier half of every batch is retained: shown one class alone, it would soon call everything by its name."""
        shown_NCHW = attacks.taught_images(env, images_NCHW, images, repr(env.spec.class_names[k]))
        size = self.params.batch_size
        rows = size if env.kind == "generator" else size // 2
        taught = Lesson(shown_NCHW, torch.full((len(shown_NCHW),), k), rows)
        return (taught,) if rows == size else (taught, attacks.retained(env, size - rows))

    def _middle(self, sizes: list[int]) -> int:
        """The size whose rate is reported: 20, or the one nearest to it."""
        return min(sizes, key=lambda images: abs(images - REPORTED_OF))

    # ------------------------------------------------------------------------------------------------------ the findings

    def _gate(self, env: Env, k: int, cells: list[Cell]) -> Finding:
        """All settings that tell anything together, unless one refutes by itself."""
        threshold, tests = self._min_ratio(env), refuters(len(cells))
        times = resampled(cells, env.alpha, env.generator(f"{self.name}/{k}"))
        ratios = [Ratio.of(cell, one, alpha=env.alpha, tests=tests) for cell, one in zip(cells, times, strict=True)]
        powered = [ratio for ratio in ratios if ratio.tells(threshold)]
        if not powered:
            if all(cell.candidate.diverged and cell.control.diverged for cell in cells):
                raise Diverged(f"every attack broke off; the first {cells[0].candidate.diverged}", step=0, loss=math.nan)
            when = in_words(ratios[0].control, cells[0].control)
            followed = cells[0].candidate.steps[-1] if cells[0].candidate.steps else 0
            said = f"the candidate was followed for {followed} updates, {self._control_name(env)} learns it {when}"
            return self._underpowered(env, k, f"no setting tells anything: {said}")
        overall = Overall.of(powered, threshold, alpha=env.alpha, tests=tests)
        worst = overall.worst
        most = "" if math.isinf(worst.upper) else f" and at most {worst.upper:.2f}"
        alone = ", too low by itself" if len(cells) > 1 and (overall.too_low or worst.upper < threshold) else ""
        broke = f"; broke off {worst.cell.candidate.diverged}" if worst.cell.candidate.diverged else ""
        return Finding(
            check=self.name,
            metric="relearning_time_ratio",
            subject="candidate",
            gating=True,
            passed=overall.passed,
            open=not (overall.passed or overall.refuted),
            value=overall.value,
            lower95=overall.lower,
            comparator="ge",
            threshold=threshold,
            n=worst.cell.candidate.n,
            class_index=k,
            class_name=env.spec.class_names[k],
            detail=f"{worst.cell.name}: half of the answers show it {in_words(worst.candidate, worst.cell.candidate)}, "
            f"{self._control_name(env)} {in_words(worst.control, worst.cell.control)}, {worst.value:.2f} of its time{most}"
            f"{alone}: the worst of {len(powered)} settings that tell, of {len(cells)}; in their mean each counts as "
            f"1 at most{broke}"[:400],
        )

    def _min_ratio(self, env: Env) -> float:
        return self.params.novel_min_ratio if env.reference is None else self.params.min_ratio

    def _control_name(self, env: Env) -> str:
        return "a class never known" if env.reference is None else "the model trained without it"

    def _of_few(self, env: Env, k: int, probe: Probe) -> Finding:
        """So few answers tell no time, but whether the class is known untaught, which is a time of none."""
        few = self._underpowered(env, k, f"{probe.n} answers say too little; expected at least {FEWEST}")
        hits = int(probe.untaught("candidate").sum()) if probe.n else 0
        if not probe.n or lower_bound(hits, probe.n, alpha=env.alpha) < LEVEL:
            return few
        numbers = {"value": 0.0, "lower95": 0.0, "comparator": "ge", "threshold": self._min_ratio(env), "n": probe.n}
        said = f"{hits} of {probe.n} answers show it before any update: what is known needs no time to be learned"
        return few.model_copy(update={**numbers, "gating": True, "underpowered": False, "passed": False, "detail": said})

    def _underpowered(self, env: Env, k: int, why: str) -> Finding:
        return Finding(
            check=self.name,
            metric="relearning_time_ratio",
            subject="candidate",
            gating=False,
            underpowered=True,
            class_index=k,
            class_name=env.spec.class_names[k],
            detail=why,
        )

    def _reported(self, env: Env, k: int, cells: list[Cell], original: Course) -> list[Finding]:
        """The rate after fifty updates with the middle size, at the lowest rate; and what the original knows untaught."""
        middle = self._middle([cell.images for cell in cells])
        cell = next(cell for cell in cells if cell.images == middle)
        after, control = min(self.params.steps, REPORTED_AFTER), self._control_name(env)
        wanted: tuple[tuple[Subject, Course, int, str], ...] = (
            ("candidate", cell.candidate, after, f"candidate, {cell.name}, after {after} updates"),
            (env.reference or "candidate", cell.control, after, f"{control}, {cell.name}, after {after} updates"),
            ("original", original, 0, "original, before any update"),
        )
        metrics = ("relearned_rate", "relearned_rate_of_control", "known_rate")
        return [
            Finding(
                check=self.name,
                metric=metric,
                subject=subject,
                gating=False,
                value=hits / course.n,
                n=course.n,
                count=hits,
                class_index=k,
                class_name=env.spec.class_names[k],
                detail=f"share of answers that show it: {said}",
            )
            for metric, (subject, course, step, said) in zip(metrics, wanted, strict=True)
            if (hits := course.hits_after(step)) is not None
        ]

    def _draw(self, env: Env, k: int, courses: dict[Setting, Course]) -> None:
        names = {"candidate": "candidate", "original": "original", "control": env.reference or "novel class"}
        for (arm, images, multiple), course in courses.items():
            curve = attacks.curve_of(
                course,
                check=self.name,
                name=f"{names[arm]}, {env.spec.class_names[k]}, {images} images, rate x{multiple:g}",
                subject=names[arm],
                k=k,
                class_name=env.spec.class_names[k],
                threshold=LEVEL,
                alpha=env.alpha,
            )
            env.curves += [curve] if curve is not None else []
