"""A CIFAR ResNet-20 on 8x8 grey images, and tiny transformers classifiers built from their configurations.

`CASE` is the ResNet: it has BatchNorm, whose buffers are the ones that a family may get wrong.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from tests.worker.engine.tiny import NAMES, Case
from worker.engine import resnet

SIDE = 8
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def config(depth: int = 20, channels: int = 1, **changes: object) -> dict[str, object]:
    given = {"architecture": "cifar_resnet", "depth": depth, "class_count": len(NAMES), "image_size": SIDE}
    return given | {"channels": channels, "mean": MEAN[:channels], "std": STD[:channels]} | changes


def tiny_resnet(depth: int = 20, channels: int = 1) -> resnet.ResNet:
    """Seeded; its statistics are those of noise, so that its logits are of ordinary size."""
    torch.manual_seed(3)
    network = resnet.ResNet(resnet.Config.read(config(depth, channels)))
    calibrate(network, channels)
    return network


def calibrate(network: nn.Module, channels: int) -> None:
    """Give BatchNorm the statistics of noise."""
    layers = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for layer in layers:
        layer.momentum = None  # the mean over all batches seen
    with torch.no_grad():
        for _ in range(4):
            network.train()(torch.randn(16, channels, SIDE, SIDE))
    for layer in layers:
        layer.momentum = 0.1


def write_model(directory: Path, depth: int = 20, channels: int = 1) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config(depth, channels)))
    save_file(tiny_resnet(depth, channels).state_dict(), directory / "model.safetensors", metadata={"format": "pt"})


def _labels() -> dict[str, object]:
    return {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}


def _resnet() -> nn.Module:
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    network = ResNetForImageClassification(ResNetConfig(layer_type="basic", **sizes, **_labels()))
    calibrate(network, 3)
    return network


def _swin() -> nn.Module:
    sizes = {"image_size": SIDE, "patch_size": 1, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
    return SwinForImageClassification(SwinConfig(**sizes, drop_path_rate=0.5, hidden_dropout_prob=0.5, **_labels()))


def _vit() -> nn.Module:
    sizes = {"image_size": SIDE, "patch_size": 2, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return ViTForImageClassification(ViTConfig(**sizes, intermediate_size=32, hidden_dropout_prob=0.5, **_labels()))


TRANSFORMERS = {"resnet": _resnet, "swin": _swin, "vit": _vit}


def write_transformers(directory: Path, name: str) -> None:
    """A folder as `save_pretrained` leaves it."""
    torch.manual_seed(3)
    TRANSFORMERS[name]().save_pretrained(directory)


CASE = Case(write_model, 1, SIDE)
