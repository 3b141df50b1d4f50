"""Max loss: train on what is retained, and away from what is forgotten. A baseline of image-to-image unlearning.

    mean_r l(x_r) - alpha mean_f l(x_f),   l the network's own training loss

The second term has no lower bound: what it forgets by is that the run ends, or that the retained term holds against it.

Source: Li et al. 2024, "Machine Unlearning for Image-to-Image Generative Models", arXiv:2402.00351, baseline MAX LOSS. The
command that its published code names for this baseline asks for another one, NOISY LABEL; here is what the paper describes.
Where we differ: each mean is over its own kind (see `worker.engine.composite`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor, nn

from worker.engine.batch import Batch
from worker.engine.composite import PRESETS, Composite, CompositeParams
from worker.engine.method import Params, Preset
from worker.engine.run import Run
from worker.engine.stepper import native


class MaxLossParams(CompositeParams):
    """The whole network is trained. A larger alpha forgets more, and leaves less to be retained."""


class MaxLoss(Composite):
    """Descent on the retained loss and ascent on the forgotten one, in one update."""

    name: ClassVar[str] = "max_loss"
    title: ClassVar[str] = "Max loss: train away from what is forgotten (baseline)"
    paper: ClassVar[str] = "arXiv:2402.00351"
    guarantee: ClassVar[Literal["empirical"]] = "empirical"
    families: ClassVar[tuple[str, ...]] = ("i2i_diffusion", "mae", "sd_inpainting", "vqgan")
    presets: ClassVar[Mapping[str, Preset]] = PRESETS
    Params: ClassVar[type[Params]] = MaxLossParams

    def __init__(self, params: MaxLossParams, run: Run) -> None:
        super().__init__(params, run)
        self.retained = native(run.family)

    def forgotten(self, batch: Batch, module: nn.Module) -> tuple[Tensor, Tensor]:
        """The negated native loss of each image."""
        loss_B, _ = self.retained(batch, module)
        return -loss_B, loss_B
