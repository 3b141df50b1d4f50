"""SCRUB: disobey the original on what is forgotten, obey it on the rest.

    max step, the first `max_iterations` times:   ascend   mean_f D(theta_0 ‖ theta)
    min step, every iteration:                    descend  gamma mean_r l(theta) + alpha mean_r D(theta_0 ‖ theta)

Source: Kurmanji et al. 2023, "Towards Unbounded Machine Unlearning", arXiv:2302.09880, without its rewinding. D is the
divergence of a classifier's softmaxes at a temperature; for a generator, which the paper does not treat, the squared
difference of predictions.
Where we differ: max and min steps alternate by iteration, not by epoch. With frozen BatchNorm the first max step finds the
network equal to its teacher, where the distance has no slope; the min step after it makes one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from worker.engine.batch import Batch, Part
from worker.engine.method import Conditions, Descent, Params, Preset
from worker.engine.run import Run
from worker.engine.stepper import Stepper, apart, frozen_copy, native


class ScrubParams(Descent):
    """Both steps share the optimizer, its momentum and its rate. Too many max steps or too high a rate destroy the network."""

    conditions: ClassVar[Conditions] = {"temperature": {"kind": ("classifier",)}}

    iterations: int = Field(default=200, ge=1, le=1_000_000, description="min steps")
    max_iterations: int = Field(
        default=50, ge=0, le=1_000_000, description="the first so many iterations begin with a max step"
    )
    gamma: float = Field(default=0.99, gt=0, le=1e6, description="of the retained loss in a min step")
    alpha: float = Field(default=1e-3, ge=0, le=1e6, description="of the distance to the original in a min step")
    temperature: float = Field(default=4.0, gt=0, le=1000, description="of a classifier's and its teacher's softmax")
    clip: float | None = Field(default=1.0, gt=0, le=1e6, description="largest gradient norm; null: unclipped")
    label_drop: float = Field(default=0.1, ge=0, le=1, description="share of retained images shown without their label")
    forget_label_drop: float = Field(default=0.0, ge=0, le=1, description="the same for forgotten images")


SGD: Mapping[str, Any] = {"algorithm": "sgd", "decay": "cosine", "momentum": 0.9, "weight_decay": 5e-4, "batch_size": 128}

PRESETS: Mapping[str, Preset] = {
    "classifier": Preset(
        families=("classifier",),
        params={**SGD, "learning_rate": 5e-3, "iterations": 500, "max_iterations": 80},
        source="the published kind of optimizer, clipped; a shorter run at a higher rate, images as they are; unmeasured",
    ),
    "cifar10-resnet18": Preset(
        families=("classifier",),
        params={
            **SGD,
            "learning_rate": 8e-5,
            "clip": None,
            "iterations": 2112,
            "max_iterations": 80,
            "batch_norm": "train",
            "augment": "crop_flip",
        },
        source="the baseline of arXiv:2409.19732: 6 epochs of the 45,000 images retained of CIFAR-10, 2 of the 5,000 to "
        "forget; max and min steps alternate by iterations and the rate falls by them, theirs by epochs",
    ),
    "tinyimagenet-swin": Preset(
        families=("classifier",),
        params={
            "algorithm": "adamw",
            "learning_rate": 1e-4,
            "weight_decay": 0.05,
            "clip": None,
            "batch_size": 128,
            "iterations": 704,
            "max_iterations": 79,
        },
        source="the same for TinyImageNet: one epoch of each stream; the batch size is not published; here without RandAugment "
        "and stochastic depth",
    ),
}


class Scrub(Stepper[ScrubParams]):
    """Ascent on the forget distance and descent on the retained loss and distance, in alternation."""

    name: ClassVar[str] = "scrub"
    title: ClassVar[str] = "SCRUB: disobey the original where it must forget"
    paper: ClassVar[str] = "arXiv:2302.09880"
    guarantee: ClassVar[Literal["empirical"]] = "empirical"
    families: ClassVar[tuple[str, ...]] = ("classifier", "ddpm")
    presets: ClassVar[Mapping[str, Preset]] = PRESETS
    Params: ClassVar[type[Params]] = ScrubParams

    def __init__(self, params: ScrubParams, run: Run) -> None:
        super().__init__(params, run)
        self._native = native(run.family)
        self.original = frozen_copy(run.family.module)
        self._distance = apart(run.family, self.original, temperature=params.temperature)

    def step(self, iteration: int) -> None:
        """See `Method.step`."""
        if iteration < self.params.max_iterations:
            self.max_step(iteration)
        self.min_step(iteration)

    def max_step(self, iteration: int) -> None:
        """Away from the original's answers to forgotten images."""
        p, run = self.params, self.run
        batch = run.batch(run.forget, iteration, p.batch_size, label_drop=p.forget_label_drop)
        self.descend([Part(batch, self.away_rows)], iteration)

    def away_rows(self, batch: Batch, module: nn.Module) -> tuple[Tensor, Tensor]:
        """(B,) the negated distance to the original, and (B,) the distance."""
        _, distance_B = self._distance(batch, module)
        return -distance_B, distance_B

    def min_step(self, iteration: int) -> None:
        """Towards the labels of retained images, and towards the original's answers to them."""
        p, run = self.params, self.run
        batch = run.batch(run.retain, iteration, p.batch_size, label_drop=p.label_drop)
        parts = [Part(batch, self._native, scale=p.gamma)]
        if p.alpha > 0:
            parts.append(Part(batch, self._distance, scale=p.alpha))
        self.descend(parts, iteration)
