"""Noisy label: train on what is retained as it is, and on what is forgotten with noise for truth. A baseline.

    mean_r l(x_r) + alpha mean_f l(x_f, n),   l the network's own training loss, n Gaussian noise in place of what is hidden

Source: Li et al. 2024, "Machine Unlearning for Image-to-Image Generative Models", arXiv:2402.00351, baseline NOISY LABEL. What
noise is to a family's loss is its own: see `ImageToImage.loss_to_noise`.
Where we differ: each mean is over its own kind (see `worker.engine.composite`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal, cast

from torch import Tensor, nn

from worker.engine.batch import Batch
from worker.engine.completion import with_numbers
from worker.engine.composite import PRESETS, Composite, CompositeParams
from worker.engine.family import ImageToImage
from worker.engine.method import Params, Preset
from worker.engine.run import Run
from worker.engine.stepper import native


class NoisyLabelParams(CompositeParams):
    """The whole network is trained. A larger alpha forgets more, and leaves less to be retained."""


class NoisyLabel(Composite):
    """Descent on the retained loss and on the loss to noise, in one update."""

    name: ClassVar[str] = "noisy_label"
    title: ClassVar[str] = "Noisy label: complete what is forgotten with noise (baseline)"
    paper: ClassVar[str] = "arXiv:2402.00351"
    guarantee: ClassVar[Literal["empirical"]] = "empirical"
    families: ClassVar[tuple[str, ...]] = ("i2i_diffusion", "mae", "sd_inpainting", "vqgan")
    presets: ClassVar[Mapping[str, Preset]] = PRESETS
    Params: ClassVar[type[Params]] = NoisyLabelParams

    def __init__(self, params: NoisyLabelParams, run: Run) -> None:
        super().__init__(params, run)
        self.family = cast(ImageToImage, run.family)
        self.retained = native(run.family)

    def forget_batch(self, iteration: int) -> Batch:
        """This rank's rows, with noise anew for each."""
        run, batch = self.run, super().forget_batch(iteration)
        source = run.forget.generator(iteration, "noise")
        noise = self.family.noise(batch.total, run.dataset.image_shape, source, scope="hole")
        more = {} if noise is None else {"noise": noise[run.ranks.rows(batch.total)]}
        return replace(batch, draw=with_numbers(batch.draw, more, run.ranks.device))

    def forgotten(self, batch: Batch, module: nn.Module) -> tuple[Tensor, Tensor]:
        """The loss of each image with noise for truth."""
        loss_B = self.family.loss_to_noise(batch.x_BCHW, batch.y_B, batch.draw, module=module)
        return loss_B, loss_B
