"""Training anew without what is forgotten: the definition of exact unlearning, and the reference for everything else.

The new weights are drawn from the request's seed alone; only retained images are trained on. What the network knows of the
forgotten ones can come from nowhere but the choice of architecture and hyper-parameters; and from a frozen autoencoder or
tokenizer, where the family has it work behind one: that stays the parent's. The label of a forgotten class means to a generator
what no label does.

Source: Cao & Yang 2015, "Towards Making Systems Forget with Machine Unlearning", for retraining as the goal; the training
recipes are those of the presets' sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

from pydantic import Field

from worker.engine.batch import Part
from worker.engine.family import Generator
from worker.engine.method import Descent, Params, Preset
from worker.engine.run import Run
from worker.engine.stepper import Stepper, native


class RetrainParams(Descent):
    """How the network is trained: its quality is decided here, as nothing of the parent is kept.

    An epoch of N images is N / batch_size iterations.
    """

    iterations: int = Field(default=20_000, ge=1, le=1_000_000, description="updates of the training, from new weights")
    batch_size: int = Field(default=128, ge=1, le=65_536, description="images of a global batch")
    learning_rate: float = Field(default=2e-4, gt=0, le=100, description="at the first iteration")
    clip: float | None = Field(default=1.0, gt=0, le=1e6, description="largest gradient norm; null: unclipped")
    batch_norm: Literal["frozen", "train"] = Field(
        default="train",
        description="statistics of BatchNorm layers; new weights need new ones, which each of several ranks would estimate for "
        "itself: a network with BatchNorm is retrained on one rank, or frozen at mean 0 and variance 1",
    )
    label_drop: float = Field(default=0.1, ge=0, le=1, description="share of images shown without their label")


SGD: Mapping[str, Any] = {
    "algorithm": "sgd",
    "learning_rate": 0.1,
    "decay": "cosine",
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "batch_size": 128,
    "clip": None,
}

PRESETS: Mapping[str, Preset] = {
    "classifier": Preset(
        families=("classifier",),
        params={**SGD, "iterations": 20_000},
        source="cifar10-resnet18 in a shorter run, with images as they are (not all may be mirrored); unmeasured",
    ),
    "cifar10-resnet18": Preset(
        families=("classifier",),
        params={**SGD, "iterations": 70_400, "augment": "crop_flip"},
        source="the retraining of arXiv:2409.19732: 200 epochs of the 45,000 images retained of CIFAR-10; the rate falls by "
        "iterations, theirs by epochs",
    ),
    "ddpm": Preset(
        families=("ddpm",),
        params={"iterations": 20_000},
        source="cifar10-ddpm in a shorter run, with images as they are (not all may be mirrored); unmeasured",
    ),
    "cifar10-ddpm": Preset(
        families=("ddpm",),
        params={"iterations": 800_000, "augment": "flip"},
        source="the retraining of arXiv:2409.19732, without its moving average of the weights and its dropout of 0.1; here the "
        "loss is a mean over pixels, so that the clip acts on a gradient 3072 times smaller than theirs",
    ),
    "mae": Preset(
        families=("mae",),
        params={"algorithm": "adamw", "learning_rate": 1e-3, "decay": "cosine", "weight_decay": 0.05, "clip": None},
        source="the optimizer of arXiv:2111.06377 without its warm-up and with beta_2 0.999, in a shorter run of smaller "
        "batches, with images as they are (not all may be mirrored); unmeasured",
    ),
    "vqgan": Preset(
        families=("vqgan",),
        params={"algorithm": "adamw", "learning_rate": 1e-3, "decay": "cosine", "weight_decay": 0.05, "clip": 3.0},
        source="the optimizer and clip of arXiv:2211.09117 without its warm-up and with beta_2 0.999, in a shorter run of "
        "smaller batches; the tokenizer is not retrained; unmeasured",
    ),
    "i2i_diffusion": Preset(
        families=("i2i_diffusion",),
        params={"learning_rate": 1e-4, "batch_size": 64},
        source="ours, unmeasured; arXiv:2111.05826 trains longer, with larger batches and a moving average of the weights",
    ),
    "dit": Preset(
        families=("dit",),
        params={"algorithm": "adamw", "learning_rate": 1e-4, "batch_size": 256, "iterations": 400_000, "clip": None},
        source="Peebles & Xie 2023, arXiv:2212.09748, section 4, without its moving average of the weights, its mirrored "
        "images and the variance's loss",
    ),
}


class Retrain(Stepper[RetrainParams]):
    """Descent on the mean retained loss, from new weights."""

    name: ClassVar[str] = "retrain"
    title: ClassVar[str] = "Retraining from new weights on what is retained"
    paper: ClassVar[str] = "doi:10.1109/SP.2015.35"
    guarantee: ClassVar[Literal["exact-retrain"]] = "exact-retrain"
    families: ClassVar[tuple[str, ...]] = ("classifier", "ddpm", "dit", "i2i_diffusion", "mae", "vqgan")
    presets: ClassVar[Mapping[str, Preset]] = PRESETS
    Params: ClassVar[type[Params]] = RetrainParams

    def __init__(self, params: RetrainParams, run: Run) -> None:
        super().__init__(params, run)
        self._native = native(run.family)

    def prepare(self) -> None:
        """Put new weights and statistics in the place of the parent's; a resumed run has its own."""
        family = self.run.family
        family.module.load_state_dict(family.fresh(self.run.spec.seed).state_dict())

    def step(self, iteration: int) -> None:
        """See `Method.step`."""
        p = self.params
        batch = self.run.batch(self.run.retain, iteration, p.batch_size, label_drop=p.label_drop)
        self.descend([Part(batch, self._native)], iteration)
        if self.run.family.kind == "generator":
            cast(Generator, self.run.family).unname(self.run.spec.all_forgotten)
