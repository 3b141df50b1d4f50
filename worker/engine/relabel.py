"""Relabelling: what the label of a forgotten image shall mean from now on, and the objective that teaches it.

Shape suffixes: N items of the dataset, M some of them, B images of a batch, K classes, R retained classes.
Source: Golatkar et al. 2020, "Eternal Sunshine of the Spotless Net", arXiv:1911.04933, for random labels as a baseline;
Graves et al. 2021, "Amnesiac Machine Learning", arXiv:2010.10981, for training on them together with what is retained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from worker.engine import streams
from worker.engine.batch import Batch, Part
from worker.engine.errors import BadInput
from worker.engine.method import Descent
from worker.engine.run import Run
from worker.engine.stepper import native


class RelabelParams(Descent):
    """Of the methods that relabel. The two weights of 0.1 and 0.9 are a shuffled mix in which one image in ten is forgotten."""

    relabel: Literal["random", "next"] = Field(
        default="random",
        description="the class that a forgotten image is pulled towards: drawn once for every image, or the next retained one",
    )
    forget_weight: float = Field(default=1.0, gt=0, le=1e6, description="of the mean relabelled loss of forgotten images")
    retain_weight: float = Field(default=1.0, ge=0, le=1e6, description="of the mean loss of retained images")
    label_drop: float = Field(default=0.1, ge=0, le=1, description="share of retained images shown without their label")
    forget_label_drop: float = Field(default=0.0, ge=0, le=1, description="the same for forgotten images")


def random_others(labels_M: Tensor, retained: Sequence[int], chance_M: Tensor) -> Tensor:
    """(M,) for every item a retained class other than its own, each as likely as the next.

    Args:
        chance_M: in [0, 1), uniform; it decides alone which of an item's classes is taken.

    Raises:
        BadInput: the only class that is retained is an item's own.
    """
    retained_R = torch.tensor(sorted(retained))
    own_M = torch.searchsorted(retained_R, labels_M)
    is_retained_M = retained_R[own_M.clamp(max=len(retained_R) - 1)] == labels_M
    count_M = len(retained_R) - is_retained_M.long()
    if bool((count_M == 0).any()):
        raise BadInput("expected a retained class beside that of every image to forget; an image of the only one has none")
    pick_M = torch.minimum((chance_M * count_M).long(), count_M - 1)  # in float32, 1 - 2^-25 times a count rounds up to it
    return retained_R[pick_M + (is_retained_M & (pick_M >= own_M)).long()]


def following(retained: Sequence[int], class_count: int) -> Tensor:
    """(K,) for every class the next retained one after it, cyclically; itself where it is the only one."""
    cycles = ([(k + i) % class_count for i in range(1, class_count + 1)] for k in range(class_count))
    return torch.tensor([next(c for c in cycle if c in retained) for cycle in cycles])


def next_others(labels_M: Tensor, retained: Sequence[int], class_count: int) -> Tensor:
    """(M,) for every item the next retained class after its own, cyclically. Raises: BadInput as `random_others`."""
    others_M = following(retained, class_count)[labels_M]
    if bool((others_M == labels_M).any()):
        raise BadInput("expected a retained class beside that of every image to forget; an image of the only one has none")
    return others_M


class Relabelling:
    """The parts of an objective that pulls forgotten images to other labels and trains on the retained ones."""

    def __init__(self, params: RelabelParams, run: Run) -> None:
        self.params, self.run = params, run
        self._native = native(run.family)
        self.anchor_N = self._anchors()

    def _anchors(self) -> Tensor:
        """(N,) the class that each item to forget is pulled towards, drawn once from (seed, item); -1 elsewhere.

        On the device: a batch looks its anchors up there.
        """
        run, index_M = self.run, self.run.forget.indices_N
        labels_M, retained = run.dataset.labels_N[index_M], run.spec.retain_classes
        if self.params.relabel == "random":
            chance_N = torch.rand(len(run.dataset.labels_N), generator=streams.generator(run.spec.seed, "relabel"))
            others_M = random_others(labels_M, retained, chance_N[index_M])
        else:
            others_M = next_others(labels_M, retained, len(run.spec.class_names))
        anchor_N = torch.full((len(run.dataset.labels_N),), -1)
        anchor_N[index_M] = others_M
        return anchor_N.to(run.ranks.device)

    def parts(self, iteration: int) -> list[Part]:
        """Forgotten and retained images of an iteration, for one update together."""
        p, run = self.params, self.run
        forget = run.batch(run.forget, iteration, p.batch_size, label_drop=p.forget_label_drop)
        parts = [Part(forget, self.forget_rows, scale=p.forget_weight)]
        if p.retain_weight > 0:
            retain = run.batch(run.retain, iteration, p.batch_size, label_drop=p.label_drop)
            parts.append(Part(retain, self._native, scale=p.retain_weight))
        return parts

    def forget_rows(self, batch: Batch, module: nn.Module) -> tuple[Tensor, Tensor]:
        """(B,) the distance to what the anchors' labels ask for, and (B,) the native loss; see `Labelled.contrast`."""
        anchor_B = self.anchor_N[batch.index_B]
        loss_B, distance_B = self.run.family.contrast(batch.x_BCHW, batch.y_B, anchor_B, batch.draw, module=module)
        return distance_B, loss_B
