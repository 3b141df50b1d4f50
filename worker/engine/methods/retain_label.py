"""Retain label: answer about what is retained as before, and about what is forgotten as if it were something retained.

    mean_r d(h(T(x_r)), h0(T(x_r))) + alpha mean_f d(h(T(x_f)), h0(T(x_r'))),   h0 the network as it came

x_r' are the retained images of the same update, one after the other. A baseline of image-to-image unlearning.

Source: Li et al. 2024, "Machine Unlearning for Image-to-Image Generative Models", arXiv:2402.00351, baseline RETAIN LABEL.
The published code weighs both terms by the weight of retained images (1 + label, where the second needs 1 - label): there the
second term pulls at retained images as well, and no forgotten image has a gradient.
Where we differ, besides: the retained image that a forgotten one is answered with is hidden by the forgotten one's mask, so
that both answers are about the same places; d is the family's `distance`, over what is hidden; each mean is over its own kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from worker.engine.batch import Batch
from worker.engine.completion import with_numbers
from worker.engine.composite import PRESETS, Composite, CompositeParams
from worker.engine.family import ImageToImage
from worker.engine.method import Params, Preset
from worker.engine.run import Run
from worker.engine.stepper import apart, frozen_copy


class RetainLabelParams(CompositeParams):
    """The whole network is trained, beside a copy of it. A larger alpha forgets more, and leaves less to be retained."""


class RetainLabel(Composite):
    """Descent on the distances to the original's answers about retained images, in one update."""

    name: ClassVar[str] = "retain_label"
    title: ClassVar[str] = "Retain label: complete what is forgotten as something retained (baseline)"
    paper: ClassVar[str] = "arXiv:2402.00351"
    guarantee: ClassVar[Literal["empirical"]] = "empirical"
    families: ClassVar[tuple[str, ...]] = ("i2i_diffusion", "mae", "sd_inpainting", "vqgan")
    presets: ClassVar[Mapping[str, Preset]] = PRESETS
    Params: ClassVar[type[Params]] = RetainLabelParams

    def __init__(self, params: RetainLabelParams, run: Run) -> None:
        super().__init__(params, run)
        self.family = cast(ImageToImage, run.family)
        self.original = frozen_copy(run.family.module)
        self.retained = apart(run.family, self.original)

    def forget_batch(self, iteration: int) -> Batch:
        """This rank's rows; `instead` of their draw are positions of retained images of the same iteration."""
        run, batch = self.run, super().forget_batch(iteration)
        retained = run.retain.pick(iteration, self.params.batch_size)
        tiled = retained[torch.arange(batch.total) % len(retained)]
        more = {"instead": tiled[run.ranks.rows(batch.total)]}
        return replace(batch, draw=with_numbers(batch.draw, more, run.ranks.device))

    def forgotten(self, batch: Batch, module: nn.Module) -> tuple[Tensor, Tensor]:
        """How far each answer is from the original's about the retained image."""
        index_B = batch.draw["instead"]
        instead = self.family.prepare(self.run.held_N[index_B], batch.draw), self.run.labels_N[index_B]
        distance_B = self.family.distance(
            batch.x_BCHW, batch.y_B, batch.draw, teacher=self.original, instead=instead, module=module
        )
        return distance_B, distance_B
