"""How easily a class is learned from what a frozen model knows of images: shared by the probes of the last layer.

The class is taught beside the retained ones, from training images, and asked about on held-out images. How well it goes says
little by itself: features that serve nine classes serve a tenth that the model never saw. So it is held against a *yardstick*:
the same class taught to the reference, a model that was trained without it; else a class that no model saw, taught to the
candidate.

Shape suffixes: N images, D features, D' of them that vary, K classes.
Source: of probes, Alain & Bengio 2016, arXiv:1610.01644.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from worker.engine.errors import BadInput
from worker.engine.novel import Turn, novel_class
from worker.engine.statistics import Floats
from worker.engine.streams import generator
from worker.engine.verifier import Env, Subject

FAINT = 1e-8
"""Of the variance of the strongest direction: fainter ones are float32's rounding."""


@dataclass(frozen=True)
class Lesson:
    """A class to be taught beside the retained ones."""

    which: Literal["forgotten class", "novel class"]
    train_NCHW: Tensor
    """uint8."""
    held_out_NCHW: Tensor
    """uint8: by which it is scored."""


@dataclass(frozen=True)
class Yardstick:
    """Who is taught what, for comparison."""

    subject: Subject
    lesson: Lesson

    @property
    def name(self) -> str:
        """For people."""
        return "reference" if self.subject == "reference" else self.lesson.which

    @property
    def paired(self) -> bool:
        """Is it asked about the very images that the candidate is asked about?"""
        return self.subject == "reference"


@dataclass(frozen=True)
class Known:
    """One subject's features for one lesson, whitened: rows of training images, and of the taught class's held-out ones."""

    train_ND: Floats
    labels_N: np.ndarray
    """int64: class indices; the taught class has the forgotten one's."""
    held_out_ND: Floats
    whitening: Whitening


@dataclass(frozen=True)
class Whitening:
    """An invertible change of what features are called: uncorrelated, each of variance 1.

    A linear layer can undo it, so it is no knowledge. Without it a class that is hidden in a faint direction of the features
    would go unnoticed by a probe that is regularised, or descends a few steps.
    """

    mean_D: Floats
    columns_DE: Floats

    @classmethod
    def of(cls, features_ND: Floats) -> Self:
        """Of what varies in these features at all."""
        mean_D = features_ND.mean(axis=0)
        centred_ND = features_ND - mean_D
        values_D, vectors_DD = np.linalg.eigh(centred_ND.T @ centred_ND / max(1, len(features_ND) - 1))
        kept = values_D > FAINT * max(float(values_D[-1]), np.finfo(np.float64).tiny)
        return cls(mean_D, vectors_DD[:, kept] / np.sqrt(values_D[kept]))

    def __call__(self, features_ND: Floats) -> Floats:
        """(N, E)."""
        return np.asarray((features_ND - self.mean_D) @ self.columns_DE)


def forgotten_lesson(env: Env, k: int, n: int) -> Lesson:
    """The forgotten class itself, from at most n training images. Raises: BadInput where none of either kind is there."""
    held_out_NCHW = env.dataset.images_NCHW[env.dataset.held_out_of([k])]
    if not len(held_out_NCHW):
        raise BadInput(f"expected held-out images of {env.spec.class_names[k]!r}, found none")
    return Lesson("forgotten class", env.dataset.images_NCHW[_chosen(env, k, n)], held_out_NCHW)


def yardstick(env: Env, k: int, n: int, turn: Turn) -> Yardstick:
    """What a forgotten class is held against. Raises: BadInput, JudgeUnfit: see `novel_class`."""
    if env.reference is not None:
        return Yardstick(env.reference, forgotten_lesson(env, k, n))
    novel = novel_class(env, k, turn)
    source = generator(env.spec.verification_seed, "probe", "novel", k)
    train_NCHW = novel.train_NCHW[torch.randperm(len(novel.train_NCHW), generator=source)[:n]]
    if not len(novel.held_out_NCHW):
        raise BadInput(
            f"expected held-out images of {env.spec.class_names[novel.source]!r}, which is the novel class, found none"
        )
    return Yardstick("candidate", Lesson("novel class", train_NCHW, novel.held_out_NCHW))


def known(env: Env, subject: Subject, lesson: Lesson, k: int, n: int) -> Known:
    """A subject's features of at most n training images of each retained class, and of the lesson, labelled k.

    Raises:
        SamplingFailed: see `Env.features`.
        BadInput: a retained class has no training image.
    """
    retained = [(j, env.dataset.images_NCHW[_chosen(env, j, n)]) for j in env.spec.retain_classes]
    parts = [(j, env.features(subject, images_NCHW).double().numpy()) for j, images_NCHW in retained]
    parts.append((k, env.features(subject, lesson.train_NCHW).double().numpy()))
    if empty := [env.spec.class_names[j] for j, rows_ND in parts if not len(rows_ND)]:
        raise BadInput(f"expected training images to teach from, found none of {', '.join(empty)}")
    train_ND = np.concatenate([rows_ND for _, rows_ND in parts])
    whitening = Whitening.of(train_ND)
    held_out_ND = whitening(env.features(subject, lesson.held_out_NCHW).double().numpy())
    return Known(whitening(train_ND), np.repeat(*np.array([(j, len(rows)) for j, rows in parts]).T), held_out_ND, whitening)


def _chosen(env: Env, k: int, n: int) -> Tensor:
    """Positions of at most n training images of a class, the same in every check that asks."""
    train_N = env.dataset.train_of([k])
    return train_N[torch.randperm(len(train_N), generator=generator(env.spec.verification_seed, "probe", k))[:n]]
