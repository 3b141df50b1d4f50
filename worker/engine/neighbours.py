"""Whom images resemble, in judge features: the retained class nearest to a forgotten one, and who knows a novel class.

The judge has a word for every class of the data and none for one that is made of turned images. Its features still tell such
images from others, so what an image shows is decided by a vote of the real images nearest to it, the novel ones among them:
no second judge is to be trained, and a novel image that is not recognised makes the control weaker and the gate stricter.

Shape suffixes: N images in question, R real images that vote, D features, V votes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from worker.engine.errors import BadInput
from worker.engine.novel import Novel
from worker.engine.verifier import Env

VOTES = 5
ELECTORATE = 200
"""Training images of a class that may vote, at most: as many of each, so that none wins by its number."""
ROWS = 4096
"""Images whose distances are held at a time."""


@dataclass(frozen=True)
class Recogniser:
    """Tells a novel class from all others."""

    features_RD: Tensor
    novel_R: Tensor
    """bool: who of them is of the novel class."""

    @classmethod
    def of(cls, env: Env, novel: Novel) -> Self:
        """From training images of every class, and of the novel one. Raises: JudgeUnfit."""
        data = env.dataset
        per_class = [data.train_of([k])[:ELECTORATE] for k in range(len(env.spec.class_names))]
        real_RD = env.judge.look(data.images_NCHW[torch.cat(per_class)]).features_ND
        own_RD = env.judge.look(novel.train_NCHW[:ELECTORATE]).features_ND
        return cls(torch.cat([real_RD, own_RD]), torch.arange(len(real_RD) + len(own_RD)) >= len(real_RD))

    def shown(self, features_ND: Tensor) -> Tensor:
        """(N,) bool: is it the novel class that most of the nearest images are of?"""
        parts = []
        for rows_ND in features_ND.split(ROWS):
            nearest_NV = torch.cdist(rows_ND, self.features_RD).topk(VOTES, largest=False).indices
            parts.append(self.novel_R[nearest_NV].double().mean(dim=1) > 0.5)
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.bool)


def nearest_class(env: Env, forgotten: int) -> int:
    """The retained class whose training images lie nearest to a forgotten one's, on average, in judge features.

    Raises:
        BadInput: no class is retained, or the forgotten one has no training images.
        JudgeUnfit: see `Env.judge`.
    """
    data = env.dataset
    index = {k: data.train_of([k])[:ELECTORATE] for k in (forgotten, *env.spec.retain_classes)}
    if len(index) < 2 or not len(index[forgotten]):
        raise BadInput("expected a retained class, and training images of the forgotten one, found none")
    middle = {k: env.judge.look(data.images_NCHW[rows]).features_ND.mean(dim=0) for k, rows in index.items() if len(rows)}
    return min((float((at_D - middle[forgotten]).norm()), k) for k, at_D in middle.items() if k != forgotten)[1]
