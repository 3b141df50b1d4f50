"""Fine-tuning on what is retained, in the hope that the rest is forgotten; with an l1 penalty, l1-sparse unlearning.

Source: Golatkar et al. 2020, arXiv:1911.04933, for the baseline; Jia et al. 2023, "Model Sparsity Can Simplify Machine
Unlearning", arXiv:2304.04934, for the penalty alpha ||theta||_1 whose alpha falls linearly to 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from worker.engine.batch import Part
from worker.engine.method import Descent, Params, Preset
from worker.engine.optim import decayed
from worker.engine.run import Run
from worker.engine.stepper import Stepper, native


class FinetuneParams(Descent):
    """Forgets little where the network has learned much; the yardstick for methods that claim more."""

    iterations: int = Field(default=500, ge=1, le=1_000_000, description="updates of the loop")
    l1: float = Field(
        default=0.0, ge=0, le=100, description="alpha of the penalty alpha ||theta||_1 at the first iteration; falls to 0"
    )
    label_drop: float = Field(default=0.1, ge=0, le=1, description="share of images shown without their label")


SGD: Mapping[str, Any] = {
    "algorithm": "sgd",
    "learning_rate": 0.01,
    "decay": "cosine",
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "batch_size": 128,
}

PRESETS: Mapping[str, Preset] = {
    "classifier": Preset(
        families=("classifier",),
        params={**SGD, "iterations": 500},
        source="cifar10-resnet18 in a shorter run, with images as they are (not all may be mirrored); unmeasured",
    ),
    "cifar10-resnet18": Preset(
        families=("classifier",),
        params={**SGD, "iterations": 3520, "batch_norm": "train", "augment": "crop_flip"},
        source="the fine-tuning baseline of arXiv:2409.19732: 10 epochs of the 45,000 images retained of CIFAR-10; the rate "
        "falls by iterations, theirs by epochs",
    ),
    "tinyimagenet-swin": Preset(
        families=("classifier",),
        params={"algorithm": "adamw", "learning_rate": 1e-4, "weight_decay": 0.05, "batch_size": 128, "iterations": 704},
        source="the same for TinyImageNet: one epoch of 90,000 images; the batch size is not published; here without "
        "RandAugment and stochastic depth",
    ),
    "mae": Preset(
        families=("mae",),
        params={"algorithm": "adamw", "learning_rate": 1e-4, "iterations": 500, "batch_size": 64},
        source="as in encoder_l2's preset, so that the two are compared at the same number of updates; unmeasured",
    ),
    "inpainting": Preset(
        families=("i2i_diffusion", "sd_inpainting"),
        params={"learning_rate": 1e-5, "iterations": 500, "batch_size": 8},
        source="as in encoder_l2's preset, so that the two are compared at the same number of updates; unmeasured",
    ),
    "stable_diffusion": Preset(
        families=("stable_diffusion",),
        params={"learning_rate": 1e-5, "batch_size": 8},
        source="the learning rate of arXiv:2409.19732 for Stable Diffusion; the rest is ours, unmeasured",
    ),
}


def add_l1(gradients: list[Tensor], weights: list[nn.Parameter], alpha: float) -> None:
    """Add the subgradient of alpha ||theta||_1, alpha sign(theta), in place; 0 at 0."""
    torch._foreach_add_(gradients, torch._foreach_sign([w.detach() for w in weights]), alpha=alpha)


class Finetune(Stepper[FinetuneParams]):
    """Descent on the mean retained loss."""

    name: ClassVar[str] = "finetune"
    title: ClassVar[str] = "Fine-tuning on what is retained (baseline; with l1: l1-sparse)"
    paper: ClassVar[str] = "arXiv:2304.04934"
    guarantee: ClassVar[Literal["empirical"]] = "empirical"
    families: ClassVar[tuple[str, ...]] = (
        "classifier",
        "ddpm",
        "dit",
        "i2i_diffusion",
        "mae",
        "sd_inpainting",
        "stable_diffusion",
    )
    shards: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Preset]] = PRESETS
    Params: ClassVar[type[Params]] = FinetuneParams

    def __init__(self, params: FinetuneParams, run: Run) -> None:
        super().__init__(params, run)
        self._native = native(run.family)

    def step(self, iteration: int) -> None:
        """See `Method.step`."""
        p = self.params
        alpha = p.l1 * decayed("linear", iteration, p.iterations)

        def penalise(gradients: list[Tensor]) -> None:
            add_l1(gradients, self.run.parameters, alpha)

        batch = self.run.batch(self.run.retain, iteration, p.batch_size, label_drop=p.label_drop)
        self.descend([Part(batch, self._native)], iteration, edit=penalise if alpha > 0 else None)
