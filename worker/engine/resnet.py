"""The ResNets of CIFAR-size images: He et al.'s own (depth 20 to 56, no parameters in a shortcut), and the wider ResNet-18.

Both begin with a 3x3 convolution at full size, where the ImageNet networks begin by halving twice.

Shape suffixes: B images, C channels, H, W pixels, K classes.
Source: He et al. 2016 (arXiv:1512.03385), section 4.2, shortcut option A; tensor names as in
github.com/akamaster/pytorch_resnet_cifar10 and, for depth 18, github.com/kuangliu/pytorch-cifar.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from worker.engine.errors import BadModel, in_words

ARCHITECTURE = "cifar_resnet"


class Config(BaseModel):
    """`config.json` of a CIFAR ResNet. Unknown keys are refused: one that changed the network would go unheeded."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    architecture: Literal["cifar_resnet"] = "cifar_resnet"
    depth: Literal[18, 20, 32, 44, 56]
    class_count: int = Field(ge=2, le=1_000_000)
    mean: tuple[float, ...] = Field(description="of each channel, pixels / 255")
    std: tuple[float, ...]
    image_size: int = Field(default=32, ge=8, le=1024)
    channels: Literal[1, 3] = 3

    @model_validator(mode="after")
    def _one_a_channel(self) -> Self:
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"expected mean and std of {self.channels} channels, found {len(self.mean)} and {len(self.std)}")
        return self

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Self:
        """Raises: BadModel."""
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise BadModel(f"config.json is not a CIFAR ResNet's: {in_words(error)}") from error


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut: where the shape changes, a projection if `project` is set, else option A."""

    def __init__(self, before: int, width: int, stride: int, *, project: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        changes = stride != 1 or before != width
        self.shortcut: nn.Module = nn.Identity()
        if changes and project:
            self.shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))
        elif changes:
            self.shortcut = Subsample(stride, width - before)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, width, H / stride, W / stride)."""
        inner_BCHW = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x_BCHW)))))
        return F.relu(inner_BCHW + self.shortcut(x_BCHW))


class Subsample(nn.Module):
    """Shortcut option A: every `stride`-th pixel, and zeros for the new channels, half of them before the old ones."""

    def __init__(self, stride: int, more: int) -> None:
        super().__init__()
        self.stride = stride
        self.around = (more // 2, more - more // 2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C + more, H / stride, W / stride)."""
        return F.pad(x_BCHW[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.around))


class ResNet(nn.Module):
    """A stem, three or four stages of blocks, the mean over pixels, a linear layer; He-initialised."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        project = config.depth == 18
        widths = (64, 128, 256, 512) if project else (16, 32, 64)
        blocks = 2 if project else (config.depth - 2) // 6
        self.conv1 = nn.Conv2d(config.channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stages = len(widths)
        before = widths[0]
        for i, width in enumerate(widths, start=1):
            strides = [1 if i == 1 else 2] + [1] * (blocks - 1)
            stage = [Block(before if j == 0 else width, width, stride, project=project) for j, stride in enumerate(strides)]
            self.add_module(f"layer{i}", nn.Sequential(*stage))
            before = width
        self.linear = nn.Linear(before, config.class_count)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, K) logits."""
        x_BCHW = F.relu(self.bn1(self.conv1(x_BCHW)))
        for i in range(1, self.stages + 1):
            x_BCHW = self.get_submodule(f"layer{i}")(x_BCHW)
        logits_BK: Tensor = self.linear(torch.mean(x_BCHW, dim=(2, 3)))
        return logits_BK
