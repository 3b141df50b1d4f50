"""A class that no model has seen: the control of attacks, where no retrained model is at hand.

How hard is it to teach a model something that it never knew? A class that is truly forgotten should be about as hard to bring
back. The stand-in is made of real images, turned so that they are no longer what they were: rotated by 90 degrees where they
are in colour, turned upside down where they are grey. Of all classes whose turned images the judge no longer takes for the
class, it is the one nearest to the forgotten class in judge features: a far one would be easy to learn, and flatter nobody.
Of classifiers the original is the judge, which knows its own classes best, and nearness is that of its logits.
Turned images that pass for the forgotten class itself are none: an upside-down 5 is a 2, which a model that hid its 2s draws.

Shape suffixes: N images, C channels, H, W pixels, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from worker.engine.errors import BadInput
from worker.engine.family import Classifier
from worker.engine.turning import Turn as Turn
from worker.engine.turning import turned as turned
from worker.engine.verifier import Env

STILL_ITSELF = 0.5
"""Share of turned images that the judge takes for their class, from which on a class is not novel when turned: a 0, an 8."""
THE_FORGOTTEN = 0.1
"""Share that the judge takes for the forgotten class, from which on others are preferred; of fewer than ten classes it is what
falls to each by chance, as who knows nothing of an image must still name one."""
TOO_MUCH = 0.3
"""The same, from which on they would stand in for it. Some classes are what a classifier says when it does not know: of turned
CIFAR-10 images of any class, the public ResNet-20 takes a fifth or more for cats."""
FAMILIAR = 0.5
"""Share that the judge takes for one and the same class, from which on others are preferred: such images are hardly new."""
LOOKED_AT = 200
"""Training images of a class by which that is decided, at most."""


@dataclass(frozen=True)
class Novel:
    """The stand-in of one forgotten class."""

    source: int
    """The class whose images are turned."""
    train_NCHW: Tensor
    """uint8, of training images, in the dataset's order: what an attack is given."""
    held_out_NCHW: Tensor
    """uint8, of held-out images: by which it is scored."""


def novel_class(env: Env, forgotten: int, turn: Turn = "auto") -> Novel:
    """The stand-in of a forgotten class, the same in every check that asks.

    Raises:
        BadInput: every retained class looks like itself when it is turned, or like the forgotten one.
        JudgeUnfit: see `Env.judge`.
    """
    images_NCHW, data = env.dataset.images_NCHW, env.dataset
    middle_D = _middle(env, images_NCHW[data.train_of([forgotten])[:LOOKED_AT]])
    found: list[tuple[bool, bool, float, int]] = []
    too_often = max(THE_FORGOTTEN, 1 / len(env.spec.class_names))
    for k in env.spec.retain_classes:
        predicted_N, features_ND = _looked(env, turned(images_NCHW[data.train_of([k])[:LOOKED_AT]], turn))
        itself, forgotten_ = (float((predicted_N == name).double().mean()) for name in (k, forgotten))
        if len(predicted_N) and itself < STILL_ITSELF and forgotten_ < max(TOO_MUCH, too_often):
            familiar = max(torch.bincount(predicted_N).tolist()) >= FAMILIAR * len(predicted_N)
            found.append((forgotten_ >= too_often, familiar, float((features_ND.mean(dim=0) - middle_D).norm()), k))
    if not found:
        raise BadInput("expected a retained class that looks like nothing known when it is turned, found none")
    source = min(found)[3]
    train, held_out = data.train_of([source]), data.held_out_of([source])
    return Novel(source, turned(images_NCHW[train], turn), turned(images_NCHW[held_out], turn))


def _middle(env: Env, images_NCHW: Tensor) -> Tensor:
    if not len(images_NCHW):
        raise BadInput("expected training images of the forgotten class, found none")
    return _looked(env, images_NCHW)[1].mean(dim=0)


def _looked(env: Env, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) which classes images are taken for, and (N, D) float64 where they lie."""
    if env.kind == "classifier":
        logits_NK = cast(Classifier, env.load("original")).logits(images_NCHW).double()
        return logits_NK.argmax(dim=1), logits_NK
    judged = env.judge.look(images_NCHW)
    return judged.predicted_N, judged.features_ND
