"""Settings of SFR-on by task: our own, which were measured, and the published ones by the name of their task.

The first preset that names a family, and what is forgotten, is the default there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worker.engine.method import Preset

DIGITS: Mapping[str, Any] = {
    "iterations": 50,
    "batch_size": 64,
    "learning_rate": 1e-4,
    "decay": "linear",
    "clip": 1.0,
    "alpha_forget": 8.0,
    "saliency": "share",
    "share": 0.08,
    "precision": "fp32",
}

PRESETS: Mapping[str, Preset] = {
    "ddpm": Preset(
        families=("ddpm",), params=DIGITS, source="measured on all ten digits of the example model; see docs/benchmarks.md"
    ),
    "ddpm-robust": Preset(
        families=("ddpm",),
        params={**DIGITS, "iterations": 200, "share": 0.15},
        source="more updates of more weights, so that the class is slower to come back; measured on the digits of the example; "
        "see docs/benchmarks.md",
    ),
    "classifier": Preset(
        families=("classifier",),
        units=("class",),
        params={
            "iterations": 200,
            "batch_size": 128,
            "algorithm": "sgd",
            "learning_rate": 0.01,
            "weight_decay": 5e-4,
            "decay": "cosine",
            "alpha_forget": 0.5,
            "forget_every": 3,
            "forget_loss": "ascent",
            "loss_ceiling": 4.0,
            "forget_clip": 7.0,
            "saliency": "share",
            "share": 0.2,
            "augment": "crop_flip",
        },
        source="measured on all ten classes of CIFAR-10 with ResNet-20; see docs/benchmarks.md",
    ),
    "classifier-samples": Preset(
        families=("classifier",),
        units=("sample",),
        params={
            "iterations": 100,
            "batch_size": 128,
            "algorithm": "sgd",
            "learning_rate": 0.01,
            "weight_decay": 5e-4,
            "decay": "cosine",
            "alpha_forget": 2.0,
            "forget_every": 2,
            "forget_loss": "ascent",
            "loss_ceiling": 3.0,
            "forget_clip": 7.0,
        },
        source="one random 10 % of CIFAR-10 with ResNet-20, images as they are, statistics of BatchNorm as they came, so that "
        "several ranks agree; see docs/benchmarks.md",
    ),
    "cifar10-resnet20-samples": Preset(
        families=("classifier",),
        units=("sample",),
        params={
            "iterations": 300,
            "batch_size": 128,
            "algorithm": "sgd",
            "learning_rate": 0.02,
            "weight_decay": 5e-4,
            "decay": "cosine",
            "alpha_forget": 4.0,
            "forget_loss": "ascent",
            "loss_ceiling": 3.0,
            "forget_clip": 7.0,
            "batch_norm": "train",
        },
        source="measured on a random 10 % of CIFAR-10 with ResNet-20, three seeds, beside every baseline; on one rank alone; "
        "see docs/benchmarks.md",
    ),
    "dit": Preset(
        families=("dit",),
        params={
            "iterations": 50,
            "batch_size": 48,
            "learning_rate": 5e-4,
            "decay": "linear",
            "alpha_forget": 1.0,
            "fisher_samples": 32,
        },
        source="a small DiT on real digits, one digit and seed (the slow test); not measured on a trained model of full size",
    ),
    "stable-diffusion": Preset(
        families=("stable_diffusion",),
        params={
            "iterations": 200,
            "batch_size": 8,
            "learning_rate": 1e-5,
            "decay": "linear",
            "clip": 1.0,
            "alpha_forget": 1.0,
            "gamma": 1.0,
            "fisher_batch_size": 4,
            "fisher_samples": 64,
        },
        source="published rate with the mask, both clips and a decay in place, on larger batches; not measured",
    ),
    "stable-diffusion-published": Preset(
        families=("stable_diffusion",),
        params={
            "iterations": 1000,
            "batch_size": 2,
            "algorithm": "adam",
            "learning_rate": 1e-5,
            "decay": "constant",
            "alpha_forget": 1.0,
            "alpha_decay": "constant",
            "temperature": 0.0,
            "forget_loss": "relabel",
            "forget_clip": None,
            "clip": None,
            "gamma": 1.0,
            "fisher": "batch",
            "fisher_batch_size": 2,
            "fisher_samples": 1000,
            "optimizer": "shared",
            "label_drop": 0.0,
            "precision": "fp32",
        },
        source="authors' published script for nudity; gamma is not published; the script's mask, never applied, is here; its "
        "Fisher information is guided at 7.5, here it is not",
    ),
    "cifar10-resnet18": Preset(
        families=("classifier",),
        params={
            "iterations": 1500,
            "batch_size": 128,
            "algorithm": "sgd",
            "learning_rate": 0.01,
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "decay": "cosine",
            "alpha_forget": 25.0,
            "alpha_decay": "cosine",
            "forget_every": 5,
            "temperature": 0.5,
            "forget_loss": "ascent",
            "forget_clip": 7.0,
            "gamma": 1.0,
            "fisher": "batch",
            "fisher_batch_size": 128,
            "fisher_samples": 50_000,
            "optimizer": "shared",
            "batch_norm": "train",
            "augment": "crop_flip",
        },
        source="the authors' configuration for CIFAR-10, ResNet-18, a random 10 %; their Fisher information is taken on varied "
        "images, here on images as they are",
    ),
    "tinyimagenet-swin": Preset(
        families=("classifier",),
        params={
            "iterations": 500,
            "batch_size": 128,
            "algorithm": "adamw",
            "learning_rate": 2e-5,
            "weight_decay": 0.05,
            "decay": "cosine",
            "alpha_forget": 500.0,
            "alpha_decay": "cosine",
            "forget_every": 1,
            "temperature": 0.6,
            "forget_loss": "ascent",
            "forget_clip": 7.0,
            "gamma": 1.0,
            "fisher": "batch",
            "fisher_batch_size": 128,
            "fisher_samples": 100_000,
            "optimizer": "shared",
            "augment": "flip",
        },
        source="the authors' configuration for TinyImageNet, Swin-T, a random 10 %; the batch size is not published; here "
        "without stochastic depth, with a mirroring for their RandAugment, and Fisher information on images as they are",
    ),
    "cifar10-ddpm": Preset(
        families=("ddpm",),
        params={
            "iterations": 150,
            "batch_size": 128,
            "learning_rate": 1e-4,
            "loss_scale": 3072.0,
            "clip": 1.0,
            "forget_clip": 1.0,
            "fisher_clip": 1.0,
            "alpha_forget": 10.0,
            "alpha_decay": "cosine",
            "forget_loss": "ascent",
            "optimizer": "shared",
            "gamma": 1.0,
            "fisher": "batch",
            "fisher_batch_size": 128,
            "fisher_samples": 50_000,
            "forget_label_drop": 0.1,
            "augment": "flip",
        },
        source="the authors' configuration for CIFAR-10 (32x32x3, a sum over pixels); here without their dropout of 0.1, and "
        "Fisher information is not guided",
    ),
    "imagenet-dit": Preset(
        families=("dit",),
        params={
            "iterations": 600,
            "batch_size": 1,
            "algorithm": "adamw",
            "learning_rate": 1e-4,
            "alpha_forget": 1e-3,
            "alpha_decay": "constant",
            "temperature": 0.0,
            "forget_loss": "ascent",
            "forget_clip": 1.0,
            "gamma": 1.0,
            "fisher": "batch",
            "fisher_batch_size": 1,
            "fisher_samples": 2000,
            "optimizer": "shared",
            "forget_label_drop": 0.1,
        },
        source="the authors' command for DiT-XL/2 at 256x256; gamma is not published; here without the variance's loss, in "
        "updates and in Fisher information",
    ),
}
