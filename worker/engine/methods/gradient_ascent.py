"""Gradient ascent: climb the forget loss and nothing else. The plainest baseline; it repairs nothing that it breaks.

Source: Thudi et al. 2022, "Unrolling SGD", arXiv:2109.13398, whose single-gradient unlearning this repeats over batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from worker.engine.batch import Batch, Part
from worker.engine.method import Descent, Params, Preset
from worker.engine.stepper import Stepper


class AscentParams(Descent):
    """More steps or a larger rate forget more, and damage more."""

    iterations: int = Field(default=20, ge=1, le=1_000_000, description="ascent steps")
    algorithm: Literal["sgd", "adam", "adamw"] = Field(default="sgd", description="optimizer")
    learning_rate: float = Field(default=0.1, gt=0, le=100, description="at the first iteration")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="of sgd; beta_1 of adam and adamw")
    clip: float | None = Field(default=1.0, gt=0, le=1e6, description="largest gradient norm; null: unclipped")


PRESETS: Mapping[str, Preset] = {
    "classifier": Preset(
        families=("classifier",),
        params={},
        source="ours: the method's own defaults; unmeasured",
    ),
    "cifar10-resnet18": Preset(
        families=("classifier",),
        params={
            "algorithm": "sgd",
            "learning_rate": 1e-4,
            "decay": "cosine",
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "clip": 0.1,
            "batch_size": 128,
            "iterations": 360,
            "augment": "crop_flip",
        },
        source="the gradient-ascent baseline of arXiv:2409.19732: 9 epochs of 5,000 images to forget of CIFAR-10; the rate "
        "falls by iterations, theirs by epochs",
    ),
    "tinyimagenet-swin": Preset(
        families=("classifier",),
        params={
            "algorithm": "adamw",
            "learning_rate": 1e-6,
            "momentum": 0.9,
            "weight_decay": 0.05,
            "clip": 0.1,
            "batch_size": 128,
            "iterations": 711,
        },
        source="the same for TinyImageNet: 9 epochs of 10,000 images; the batch size is not published; here without "
        "RandAugment and stochastic depth",
    ),
}


class GradientAscent(Stepper[AscentParams]):
    """Descent on the negated mean loss of the forget set."""

    name: ClassVar[str] = "gradient_ascent"
    title: ClassVar[str] = "Gradient ascent (baseline)"
    paper: ClassVar[str] = "arXiv:2109.13398"
    guarantee: ClassVar[Literal["empirical"]] = "empirical"
    families: ClassVar[tuple[str, ...]] = ("classifier", "ddpm", "dit", "stable_diffusion")
    shards: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Preset]] = PRESETS
    Params: ClassVar[type[Params]] = AscentParams

    def step(self, iteration: int) -> None:
        """See `Method.step`."""
        batch = self.run.batch(self.run.forget, iteration, self.params.batch_size)
        self.descend([Part(batch, self.rows)], iteration)

    def rows(self, batch: Batch, module: nn.Module) -> tuple[Tensor, Tensor]:
        """The negated native loss of each sample."""
        loss_B = self.run.family.loss(batch.x_BCHW, batch.y_B, batch.draw, module=module)
        return -loss_B, loss_B
