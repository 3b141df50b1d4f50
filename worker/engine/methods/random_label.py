"""Random labels: learn another label for every image to forget, together with what is retained.

A classifier learns a fixed wrong label for each image. A generator learns to answer under the forgotten label as it does
under another, which it takes from its own answer, so nothing new is learned.

Source: Graves et al. 2021, "Amnesiac Machine Learning", arXiv:2010.10981, its unlearning; Golatkar et al. 2020,
arXiv:1911.04933. For generators as in Fan et al. 2024 (SalUn), arXiv:2310.12508, without the mask.
Where we differ: forgotten and retained images come in two streams of equal length with a weight each, not in one shuffled
stream; wrong labels are drawn among the retained classes, as a label that is forgotten too is no place to go.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from worker.engine.method import Params, Preset
from worker.engine.relabel import Relabelling, RelabelParams
from worker.engine.run import Run
from worker.engine.stepper import Stepper


class RandomLabelParams(RelabelParams):
    """More iterations or a larger rate forget more; a larger retain_weight repairs more."""


SGD: Mapping[str, Any] = {
    "algorithm": "sgd",
    "learning_rate": 3e-3,
    "decay": "cosine",
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "batch_size": 128,
}

PRESETS: Mapping[str, Preset] = {
    "classifier": Preset(
        families=("classifier",),
        params={**SGD, "learning_rate": 0.01, "iterations": 500, "clip": 5.0},
        source="the published kind of optimizer, a shorter run, images as they are (not all may be mirrored); unmeasured",
    ),
    "cifar10-resnet18": Preset(
        families=("classifier",),
        params={
            **SGD,
            "iterations": 3910,
            "forget_weight": 0.1,
            "retain_weight": 0.9,
            "batch_norm": "train",
            "augment": "crop_flip",
        },
        source="the random-label baseline of arXiv:2409.19732: 10 epochs of CIFAR-10 with one image in ten to forget; two "
        "streams with weights here, one shuffled stream there; the rate falls by iterations, theirs by epochs",
    ),
    "tinyimagenet-swin": Preset(
        families=("classifier",),
        params={
            "algorithm": "adamw",
            "learning_rate": 1e-4,
            "weight_decay": 0.05,
            "batch_size": 128,
            "iterations": 782,
            "forget_weight": 0.1,
            "retain_weight": 0.9,
        },
        source="the same for TinyImageNet: one epoch of 100,000 images; the batch size is not published; here without "
        "RandAugment and stochastic depth",
    ),
    "generator": Preset(
        families=("ddpm", "dit"),
        params={"iterations": 200, "learning_rate": 1e-4, "clip": 1.0},
        source="ours, "
        "tried once on the example model: a judge reads none of 60 samples of the forgotten 3 as 3, 108 of 108 others right",
    ),
    "stable_diffusion": Preset(
        families=("stable_diffusion",),
        params={"iterations": 500, "learning_rate": 1e-5, "batch_size": 8, "retain_weight": 0.5},
        source="learning rate and weight as SalUn's authors publish for Imagenette; the rest is ours, unmeasured",
    ),
}


class RandomLabel(Stepper[RandomLabelParams]):
    """Descent on the relabelled forget loss and the retained loss, in one update."""

    name: ClassVar[str] = "random_label"
    title: ClassVar[str] = "Random labels for what is forgotten (baseline)"
    paper: ClassVar[str] = "arXiv:2010.10981"
    guarantee: ClassVar[Literal["empirical"]] = "empirical"
    families: ClassVar[tuple[str, ...]] = ("classifier", "ddpm", "dit", "stable_diffusion")
    shards: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Preset]] = PRESETS
    Params: ClassVar[type[Params]] = RandomLabelParams

    def __init__(self, params: RandomLabelParams, run: Run) -> None:
        super().__init__(params, run)
        self.objective = Relabelling(params, run)

    def step(self, iteration: int) -> None:
        """See `Method.step`."""
        self.descend(self.objective.parts(iteration), iteration)
