"""What is measured, and how large: one task a family, in four sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DDPMScheduler, VQModel
from transformers import ViTMAEForPreTraining

from tests.benchmarks.i2i import subjects, training
from tests.benchmarks.i2i.subjects import Images, Split
from tests.benchmarks.i2i.training import Recipe
from tests.benchmarks.kept import kept
from tests.worker.engine.tiny import i2i_diffusion as palette
from tests.worker.engine.tiny import mae, vqgan
from worker.contract import JudgePolicy, MaskSpec

SizeName = Literal["smoke", "quick", "default", "full"]

FAMILIES = ("mae", "vqgan", "i2i_diffusion")
NEEDS_CIFAR = frozenset({"mae", "vqgan"})

HOLE = MaskSpec(kind="center", ratio=0.25)
LARGE_HOLE = MaskSpec(kind="center", ratio=0.5)
EVERY = (
    HOLE,
    LARGE_HOLE,
    MaskSpec(kind="outpaint", ratio=0.5),
    MaskSpec(kind="strip", ratio=0.5),
    MaskSpec(kind="box", ratio=0.25),
    MaskSpec(kind="brush", ratio=0.25),
    MaskSpec(kind="random_patch", ratio=0.5),
)


@dataclass(frozen=True)
class Method:
    """A row of the table that a request makes."""

    name: str
    stand_in: bool = False
    """Proxy classes in place of real retained images."""
    factor: int = 1
    """Times the iterations of a task: the bounded variant looks for both ends of the trade first."""


BASELINES = ("max_loss", "noisy_label", "retain_label", "random_encoder")
OURS, OURS_PROXY = "encoder_l2", "encoder_l2 (proxy)"
METHODS: Mapping[str, Method] = {
    **{name: Method(name) for name in BASELINES},
    OURS: Method("encoder_l2"),
    OURS_PROXY: Method("encoder_l2", stand_in=True),
    "encoder_l2_epsilon": Method("encoder_l2_epsilon", factor=2),
}
"""Row -> what makes it. Every method has as many updates of as many images, at one rate, and alpha 0.25 where it has one."""


@dataclass(frozen=True)
class Task:
    """One family's part of the benchmark."""

    family: str
    shape: Mapping[str, Any]
    """Of the network, beyond what the images say."""
    recipe: Recipe
    splits: Mapping[str, Split]
    corruptions: tuple[MaskSpec, ...]
    """The first is the one that the figures are of."""
    params: Mapping[str, Any]
    """Of every method."""
    per_class: int
    """Training images of a class that a method is given."""
    shown: int
    """Held-out images of a class that are completed, at most."""
    judge: JudgePolicy
    steps: int
    """Of the sampler."""
    seeds: tuple[int, ...] = (0,)
    only_splits: tuple[str, ...] = (subjects.INTERLEAVED,)
    train_part: int | None = None
    """Training images of a class that the original and the judge see; None: all."""
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    tokenizer_recipe: Recipe | None = None
    per_method: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Parameters of single rows, over those of all."""

    def asked(self, row: str) -> dict[str, Any]:
        """The parameters of a row."""
        method = METHODS[row]
        iterations = int(self.params["iterations"]) * method.factor
        return {**self.params, "iterations": iterations, **self.per_method.get(row, {})}


def task(family: str, size: SizeName) -> Task:
    """The task of a family in a size."""
    made = {"mae": _mae, "vqgan": _vqgan, "i2i_diffusion": _diffusion}[family]()
    match size:
        case "full":
            return replace(made, corruptions=_every(made), seeds=(0, 1, 2), only_splits=(subjects.INTERLEAVED, subjects.APART))
        case "quick":
            return _quick(made)
        case "smoke":
            return _smoke(made)
    return made


def _every(made: Task) -> tuple[MaskSpec, ...]:
    return (*made.corruptions, *(c for c in EVERY if c not in made.corruptions))


def _mae() -> Task:
    return Task(
        family="mae",
        shape={
            "image_size": 32, "patch_size": 4, "num_channels": 3, "mask_ratio": 0.75, "hidden_dropout_prob": 0.0,
            "hidden_size": 128, "num_hidden_layers": 5, "num_attention_heads": 4, "intermediate_size": 384,
            "decoder_hidden_size": 96, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 3,
            "decoder_intermediate_size": 288,
        },
        recipe=Recipe(steps=1500, rate=2e-3, augment="flip"),
        splits=subjects.CIFAR_SPLITS,
        corruptions=(HOLE,),
        params={"iterations": 200, "batch_size": 64, "learning_rate": 3e-4},
        per_class=1000,
        shown=250,
        judge=JudgePolicy(epochs=8, min_accuracy=0.5),
        steps=1,
    )  # fmt: skip


def _vqgan() -> Task:
    return Task(
        family="vqgan",
        shape={
            "sample_size": 8, "codebook_size": 256, "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
            "intermediate_size": 384, "decoder_hidden_size": 96, "decoder_num_hidden_layers": 2,
            "decoder_num_attention_heads": 3, "decoder_intermediate_size": 288,
        },
        tokenizer={
            "in_channels": 3, "block_out_channels": (24, 32, 48), "latent_channels": 8, "norm_num_groups": 8,
            "num_vq_embeddings": 256, "sample_size": 32,
        },
        tokenizer_recipe=Recipe(steps=800, batch=64, rate=2e-3),
        recipe=Recipe(steps=1200, rate=2e-3),
        splits=subjects.CIFAR_SPLITS,
        corruptions=(HOLE,),
        params={"iterations": 200, "batch_size": 64, "learning_rate": 3e-4},
        per_class=1000,
        shown=150,
        judge=JudgePolicy(epochs=8, min_accuracy=0.5),
        steps=8,
    )  # fmt: skip


def _diffusion() -> Task:
    return Task(
        family="i2i_diffusion",
        shape={
            "channels": 1, "layers_per_block": 1, "block_out_channels": (24, 64), "norm_num_groups": 8, "dropout": 0.0,
            "add_attention": True, "attention_head_dim": 16,
        },
        recipe=Recipe(steps=2500, batch=64, rate=2e-3, weight_decay=0.01),
        splits=subjects.DIGIT_SPLITS,
        corruptions=(LARGE_HOLE,),
        params={"iterations": 200, "batch_size": 32, "learning_rate": 3e-4},
        per_class=1000,
        shown=100,
        judge=JudgePolicy(epochs=30, min_accuracy=0.5),
        steps=20,
        per_method={row: {"target": "mean_embedding"} for row in (OURS, OURS_PROXY, "encoder_l2_epsilon")},
    )  # fmt: skip


def _quick(made: Task) -> Task:
    """Little of everything: every figure is there, and of CIFAR-10 it says nothing about quality. Digits get a fifth."""
    if made.family == "i2i_diffusion":
        return replace(made, recipe=replace(made.recipe, steps=400), params={**made.params, "iterations": 60})
    return replace(
        made,
        recipe=replace(made.recipe, steps=100 if made.family == "mae" else 60),
        tokenizer_recipe=made.tokenizer_recipe and replace(made.tokenizer_recipe, steps=60),
        params={**made.params, "iterations": 20},
        train_part=1000,
        per_class=500,
        shown=20,
        judge=made.judge.model_copy(update={"epochs": 4, "min_accuracy": 0.3}),
        steps=min(made.steps, 4),
    )


def _smoke(made: Task) -> Task:
    """Networks and loops so small that seconds suffice; the figures mean nothing."""
    narrow = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 16,
    }  # fmt: skip
    shape = dict(made.shape) | (
        {"block_out_channels": (8, 8), "attention_head_dim": 8} if made.family == "i2i_diffusion" else narrow
    )
    return replace(
        made,
        shape=shape | ({"codebook_size": 16} if made.family == "vqgan" else {}),
        tokenizer=made.tokenizer and {**made.tokenizer, "block_out_channels": (8, 8, 8), "num_vq_embeddings": 16},
        recipe=replace(made.recipe, steps=4, batch=8),
        tokenizer_recipe=made.tokenizer_recipe and replace(made.tokenizer_recipe, steps=4, batch=8),
        params={**made.params, "iterations": 3, "batch_size": 4},
        train_part=12,
        per_class=8,
        shown=4,
        judge=made.judge.model_copy(update={"epochs": 1, "min_accuracy": 0.0}),
        steps=2,
    )


# --------------------------------------------------------------------------------------------------------- untrained models


def write_untrained(made: Task, folder: Path, images: Images, *, seed: int, cache: Path, on: torch.device) -> None:
    """A model folder of the task's family with new weights; of `vqgan`, behind a tokenizer that is trained already."""
    match made.family:
        case "mae":
            mae.write_model(folder, ViTMAEForPreTraining(mae.config(**made.shape)))
        case "vqgan":
            vqgan.write_model(folder, vqgan.transformer(**made.shape), _tokenizer(made, images, seed=seed, cache=cache, on=on))
        case "i2i_diffusion":
            side = images.images.shape[1]
            palette.write_model(folder, palette.tiny_unet(**made.shape, sample_size=side))
            # At 8x8 the linear schedule erases a digit in its first fifth; see the example's own training.
            DDPMScheduler(beta_schedule="squaredcos_cap_v2").save_pretrained(folder)


def _tokenizer(made: Task, images: Images, *, seed: int, cache: Path, on: torch.device) -> VQModel:
    recipe = made.tokenizer_recipe
    assert recipe is not None

    def make(folder: Path) -> None:
        vq = vqgan.vq_model(**made.tokenizer)
        training.train_tokenizer(vq, images, recipe, seed=seed, on=on)
        vq.save_pretrained(folder)

    asked = {"tokenizer": dict(made.tokenizer), "recipe": recipe.__dict__, "seed": seed, "images": images.digest}
    what = {"version": training.RECIPE, **asked}
    return VQModel.from_pretrained(kept(cache, what, make).folder, low_cpu_mem_usage=False)
