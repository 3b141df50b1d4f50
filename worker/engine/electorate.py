"""What an image shows, by a vote of the real images nearest to it: for classes that the judge has no word for.

The judge's features still tell images that it has no word for from others, so what an image shows is decided by a vote of the
real images nearest to it: no second judge is to be trained, and a novel image that is not recognised makes the control weaker
and the gate stricter.

Two that learn are compared, one a class of the data and one a class of turned images, and each is asked now and then how much
of what it draws shows what it was taught. The judge knows only one of the two, and it must choose: whatever is nearer to a 3
than to any other digit is a 3 to it, long before it is one. So neither is asked of the judge. Both are put to the same vote, in
the judge's features, in which pictures half-way between two classes, and half-way to the mean of all images, have a vote as
well and stand for nothing: what is only on its way is not there yet. A control that seemed to be there too soon would let a
candidate pass that is as soon there; one that seemed late would fail a model that never saw the class.

Shape suffixes: N images in question, R images that vote, V votes, C channels, H, W pixels, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from worker.engine.novel import Novel
from worker.engine.streams import generator
from worker.engine.verifier import Env

VOTES = 5
MEMBERS = 200
"""Training images of a class that vote, at most: as many of each, so that none wins by its number."""
ROWS = 4096
"""Images whose distances are held at a time."""
NOTHING = -1
"""What a picture half-way stands for."""


@dataclass(frozen=True)
class Electorate:
    """Images that vote, and what they stand for."""

    features_RD: Tensor
    label_R: Tensor
    """int64: a class; one more than the last for the novel class; or nothing."""

    @classmethod
    def of(cls, env: Env, forgotten: int, novel: Novel, *, half_way: bool) -> Self:
        """Training images of every class and of the novel one. Raises: JudgeUnfit.

        Args:
            half_way: pictures half-way vote, too. They belong where both arms of an attack are asked by vote; where the other
                arm is asked of the judge, which must choose, they would be a handicap of one.
        """
        data, count = env.dataset, len(env.spec.class_names)
        members = [data.images_NCHW[data.train_of([k])[:MEMBERS]] for k in range(count)] + [novel.train_NCHW[:MEMBERS]]
        images, labels = [*members], [torch.full((len(some),), k) for k, some in enumerate(members)]
        if half_way:
            source = generator(env.spec.verification_seed, "electorate", forgotten)
            images.append(torch.cat([_half_way(members, k, source) for k in (forgotten, count)]))
            labels.append(torch.full((len(images[-1]),), NOTHING))
        return cls(env.judge.look(torch.cat(images)).features_ND, torch.cat(labels))

    def shown(self, features_ND: Tensor, label: int) -> Tensor:
        """bool (N,): do most of the nearest stand for this?"""
        parts = []
        for begin in range(0, len(features_ND), ROWS):
            rows_ND = features_ND[begin : begin + ROWS]
            nearest_NV = torch.cdist(rows_ND, self.features_RD).topk(min(VOTES, len(self.label_R)), largest=False).indices
            parts.append((self.label_R[nearest_NV] == label).double().mean(dim=1) > 0.5)
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.bool)


def _half_way(members: list[Tensor], k: int, source: torch.Generator) -> Tensor:
    """uint8: between images of class k and of others, between those and the mean of all, between others and the mean."""
    own_MCHW, others_OCHW = members[k].float(), torch.cat([images for j, images in enumerate(members) if j != k]).float()
    mean_1CHW = torch.cat(members).double().mean(dim=0, keepdim=True).float()
    own_MCHW, others_MCHW = (
        images_NCHW[torch.randint(len(images_NCHW), (MEMBERS,), generator=source)] for images_NCHW in (own_MCHW, others_OCHW)
    )
    pairs = ((own_MCHW, others_MCHW), (own_MCHW, mean_1CHW), (others_MCHW, mean_1CHW))
    return torch.cat([(one + other).div(2).round().to(torch.uint8) for one, other in pairs])
