"""Attacks that train: a saved model of one's own is taught something, and asked at checkpoints what it knows by then.

An attack is plain values: what is taught, how, and what is asked. Nothing of one attack follows from another, and what two
have in common (seeds, orders, noise) is the same in both; so a list of them may be run in any order, by anyone.

Shape suffixes: N images of a lesson, B images of a batch, C channels, H, W pixels; S checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

import torch
from torch import Tensor

from worker.contract import Curve, Sampling
from worker.engine import optim
from worker.engine.electorate import Electorate
from worker.engine.errors import BadInput, Diverged
from worker.engine.family import Classifier, Family, Generator, Kind, sent
from worker.engine.novel import Novel
from worker.engine.sampling import MissingSamples, sample_seed
from worker.engine.statistics import lower_bound, upper_bound
from worker.engine.streams import Stream, generator
from worker.engine.verifier import Env, Subject

CLIP = 1.0
"""Largest gradient norm: an attacker clips as everybody does who trains, and is not stopped by one steep batch."""
LABEL_DROP = 0.1
"""Share of taught images that are shown without their label, where a model has a null label: as it was trained."""

RATES: dict[Kind, float] = {"generator": 2e-4, "classifier": 1e-3, "i2i": 1e-4}
"""Of AdamW, where a policy names none: what models of a kind are commonly trained with."""


@dataclass(frozen=True)
class Lesson:
    """Images that are taught, each under a label; `rows` of every batch are dealt from them in a random order."""

    images_NCHW: Tensor
    """uint8, on the CPU."""
    labels_N: Tensor
    """int64."""
    rows: int


class Probe(Protocol):
    """What a model is asked at a checkpoint."""

    @property
    def n(self) -> int:
        """Answers."""
        ...

    def __call__(self, family: Family) -> Tensor:
        """bool (n,): which answers show that it knows. Raises: Diverged: an answer is not finite."""
        ...

    def untaught(self, subject: Subject) -> Tensor:
        """The same of a subject as it was saved, which other checks may have asked already. Raises: SamplingFailed."""
        ...


@dataclass(frozen=True)
class Draws:
    """Asked of a generator: images under a label. Which of them show what was looked for?"""

    label: int
    seeds: tuple[int, ...]
    sampling: Sampling
    shown: Callable[[Tensor], Tensor]
    """uint8 (N, C, H, W) -> bool (N,)."""
    saved: Callable[[Subject], Tensor]
    """The same images as a subject draws them that nobody has taught."""

    @property
    def n(self) -> int:
        """See `Probe`."""
        return len(self.seeds)

    def __call__(self, family: Family) -> Tensor:
        """See `Probe`. Raises also: MissingSamples, JudgeUnfit."""
        n = self.n
        images_NCHW = cast(Generator, family).sample(torch.full((n,), self.label), self.seeds, sampling=self.sampling)
        if len(images_NCHW) != n or images_NCHW.dtype != torch.uint8:
            raise MissingSamples(f"expected {n} uint8 samples of a model under attack, got {len(images_NCHW)}")
        return self.shown(images_NCHW)

    def untaught(self, subject: Subject) -> Tensor:
        """See `Probe`."""
        return self.shown(self.saved(subject))


@dataclass(frozen=True)
class Names:
    """Asked of a classifier: are these images of the class?"""

    images_NCHW: Tensor
    label: int
    load: Callable[[Subject], Family]

    @property
    def n(self) -> int:
        """See `Probe`."""
        return len(self.images_NCHW)

    def __call__(self, family: Family) -> Tensor:
        """See `Probe`."""
        return cast(Classifier, family).logits(self.images_NCHW).argmax(dim=1) == self.label

    def untaught(self, subject: Subject) -> Tensor:
        """See `Probe`."""
        return self(self.load(subject))


@dataclass(frozen=True)
class Attack:
    """One model, taught one thing in one way."""

    name: str
    """Decides the order of images and the noise: arms of one experiment share it, and with it both."""
    subject: Subject
    lessons: tuple[Lesson, ...]
    probes: tuple[Probe, ...]
    """Each asked at every checkpoint."""
    rate: float
    """Step size of AdamW."""
    checkpoints: tuple[int, ...]
    """Numbers of updates after which the model is asked, from 0, ascending; the last ends the attack."""
    enough: tuple[float, int] | None = None
    """(level, step): ended early after that step, once every rate lies above the level beyond doubt."""


@dataclass(frozen=True)
class Course:
    """What an attack found."""

    steps: tuple[int, ...]
    shown_SN: Tensor = field(compare=False)
    """bool: which answers show that the model knows, by checkpoint."""
    diverged: str = ""
    """Why it ended before its time; checkpoints until then are sound."""
    hits: tuple[int, ...] = field(init=False)
    """How many, by checkpoint."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "hits", tuple(self.shown_SN.sum(dim=1).tolist()))

    @property
    def n(self) -> int:
        """Answers a checkpoint."""
        return self.shown_SN.shape[1]

    def hits_after(self, steps: int) -> int | None:
        """The hits after so many updates; None where nobody asked."""
        return self.hits[self.steps.index(steps)] if steps in self.steps else None


def checkpoints(steps: int, every: int, *, also: Iterable[int] = (), from_start: bool = True) -> tuple[int, ...]:
    """0, every, 2 every, … and `steps`; before the first of them 1/8, 1/4, 1/2 of it, for what comes back at once.

    Args:
        also: others, as far as they lie in between.
        from_start: with those before the first.
    """
    early = [every // part for part in (8, 4, 2)] if from_start else []
    wanted = {0, *early, *range(every, steps, every), *also, steps}
    return tuple(sorted(step for step in wanted if 0 <= step <= steps))


def run(env: Env, attacks: Sequence[Attack]) -> list[tuple[Course, ...]]:
    """Their courses, in the same order; of each one a probe.

    Raises:
        BadModel: a subject cannot be loaded.
        MissingSamples, JudgeUnfit: a probe could not be answered; see `Probe`.
    """
    return [_run(env, attack) for attack in attacks]


def _run(env: Env, attack: Attack) -> tuple[Course, ...]:
    family = env.fresh(attack.subject)
    trainer = _Trainer(family, attack, env.spec.verification_seed, env.device)
    rows, done, diverged = list[list[Tensor]](), 0, ""
    try:
        for step in attack.checkpoints:
            for i in range(done, step):
                trainer.step(i)
            done = step
            env.busy()
            rows.append([probe(family) if step else probe.untaught(attack.subject) for probe in attack.probes])
            if _enough(attack, step, [int(shown_N.sum()) for shown_N in rows[-1]], env.alpha):
                break
    except Diverged as error:
        diverged = f"before checkpoint {attack.checkpoints[len(rows)]}: {error}"
    steps = attack.checkpoints[: len(rows)]
    return tuple(Course(steps, _stacked(rows, i, probe.n), diverged) for i, probe in enumerate(attack.probes))


def _stacked(rows: Sequence[Sequence[Tensor]], i: int, n: int) -> Tensor:
    return torch.stack([row[i] for row in rows]) if rows else torch.empty(0, n, dtype=torch.bool)


def _enough(attack: Attack, step: int, hits: Sequence[int], alpha: float) -> bool:
    if attack.enough is None or step < attack.enough[1]:
        return False
    bounds = [lower_bound(found, probe.n, alpha=alpha / 2) for found, probe in zip(hits, attack.probes, strict=True)]
    return min(bounds) >= attack.enough[0]


class _Trainer:
    """Descent by AdamW on the family's own loss, from random numbers that follow from the seed, the attack and the step."""

    def __init__(self, family: Family, attack: Attack, seed: int, device: torch.device) -> None:
        self._family, self._attack, self._seed, self._device = family, attack, seed, device
        self._weights = [p for p in family.module.parameters() if p.requires_grad]
        self._optimizer = optim.make("adamw", self._weights, learning_rate=attack.rate)
        self._streams = [
            Stream(f"attack/{attack.name}/{i}", seed, torch.arange(len(one.labels_N)), one.labels_N)
            for i, one in enumerate(attack.lessons)
        ]
        self._held = [family.hold(one.images_NCHW) for one in attack.lessons]

    def step(self, i: int) -> None:
        """One update. Raises: Diverged: loss or gradient is not finite; no weight has moved by it."""
        lessons = self._attack.lessons
        picks = [stream.pick(i, one.rows) for stream, one in zip(self._streams, lessons, strict=True)]
        held_B = torch.cat([held[sent(p, self._device)] for held, p in zip(self._held, picks, strict=True)])
        y_B = torch.cat([one.labels_N[p] for one, p in zip(lessons, picks, strict=True)])
        source = generator(self._seed, "attack", self._attack.name, i, "draw")
        shape = lessons[0].images_NCHW.shape[1:]
        draw = self._family.draw(len(y_B), shape, source, label_drop=LABEL_DROP).to(self._device)
        loss = self._family.loss(self._family.prepare(held_B, draw), sent(y_B, self._device), draw).mean()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self._weights, CLIP)
        said = float(loss.detach())
        if not (math.isfinite(said) and math.isfinite(float(norm))):
            raise Diverged(f"the loss stopped being a finite number at update {i}", step=i, loss=said)
        self._optimizer.step()


# ------------------------------------------------------------------------------------------------- what attacks are made of


def taught_images(env: Env, images_NCHW: Tensor, k: int, name: str) -> Tensor:
    """The first k images in an order that follows from the verification seed; all, where there are fewer. Raises: BadInput."""
    if not len(images_NCHW):
        raise BadInput(f"expected training images of {name}, found none")
    source = generator(env.spec.verification_seed, "attack", "images")
    return images_NCHW[torch.randperm(len(images_NCHW), generator=source)[:k]]


def retained(env: Env, rows: int) -> Lesson:
    """Training images of retained classes."""
    index_N = env.dataset.train_of(env.spec.retain_classes)
    return Lesson(env.dataset.images_NCHW[index_N], env.dataset.labels_N[index_N], rows)


def probe_of(env: Env, k: int, n: int) -> Probe:
    """Does a model know class k? Asked of n of its images, drawn or held out; of all that are held out, where they are fewer.

    The seeds are those of `Env.samples`: before its first update a model draws what other checks have seen of it.
    """
    if env.kind == "generator":
        return _draws(env, k, n, lambda images_NCHW: env.shows_in(images_NCHW, k))
    return Names(env.dataset.images_NCHW[env.shown(k, n)], k, env.load)


def probes_beside_novel(env: Env, k: int, n: int, novel: Novel) -> tuple[Probe, Probe]:
    """The same, and: does a model know the novel class, taught to it in the name of class k? Both asked in one way.

    Raises: JudgeUnfit.
    """
    if env.kind == "classifier":
        return probe_of(env, k, n), Names(novel.held_out_NCHW[:n], k, env.load)
    vote, new = Electorate.of(env, k, novel, half_way=True), len(env.spec.class_names)

    def shows(label: int) -> Callable[[Tensor], Tensor]:
        return lambda images_NCHW: vote.shown(env.judge.look(images_NCHW).features_ND, label)

    return _draws(env, k, n, shows(k)), _draws(env, k, n, shows(new))


def _draws(env: Env, k: int, n: int, shown: Callable[[Tensor], Tensor]) -> Draws:
    seeds = tuple(sample_seed(env.spec.verification_seed, k, i) for i in range(n))
    return Draws(k, seeds, env.spec.policy.sampling, shown, lambda subject: env.samples(subject, k, n))


def curve_of(
    course: Course, *, check: str, name: str, subject: str, k: int, class_name: str, threshold: float, alpha: float
) -> Curve | None:
    """A course for people, with one-sided bounds to either side. None: it has no checkpoint."""
    if not course.steps:
        return None
    return Curve(
        check=check,
        name=name,
        x_name="updates",
        y_name="share that shows the class",
        x=course.steps,
        y=tuple(h / course.n for h in course.hits),
        lower95=tuple(lower_bound(h, course.n, alpha=alpha) for h in course.hits),
        upper95=tuple(upper_bound(h, course.n, alpha=alpha) for h in course.hits),
        subject=subject,
        class_index=k,
        class_name=class_name,
        threshold=threshold,
    )
