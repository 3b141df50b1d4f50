"""The networks that judge images, and the seats that they take: two architectures of one width, taught from different seeds.

What fools one need not fool the other: small kernels, batch statistics and maxima on one side, wide kernels channel by channel
and means on the other. Both take grey or colour images of 8 to 64 pixels a side, and end in the same number of features.

Shapes: B batch, C channels, H height, W width, F features, K classes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

FEATURES = 32
"""Width of the penultimate layer: small, so that a few hundred images determine its 32x32 covariance."""


class JudgeNetwork(nn.Module):
    """A plain convolutional classifier: halve until the side is at most 4, then two linear layers."""

    def __init__(self, channels: int, height: int, width: int, class_count: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = [*_block(channels, 32)]
        before, after = 32, 64
        while max(height, width) > 4:
            blocks += [*_block(before, after), nn.MaxPool2d(2, ceil_mode=True)]
            height, width, before = math.ceil(height / 2), math.ceil(width / 2), after
        self.blocks = nn.Sequential(*blocks)
        self.features = nn.Linear(before * height * width, FEATURES)
        self.classes = nn.Linear(FEATURES, class_count)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and penultimate features (B, F), taken before their nonlinearity, which would zero half of them."""
        features_BF = self.features(self.blocks(x_BCHW).flatten(1))
        return self.classes(F.relu(features_BF)), features_BF


def _block(channels_in: int, channels_out: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(channels_out), nn.ReLU()


REACH = 5
"""Side of the kernels that look around, each in one channel."""
LARGEST = 16
"""Cells along a side, at most, after the first convolution."""


class WideNetwork(nn.Module):
    """A small ConvNeXt: wide kernels channel by channel, channels mixed position by position, the mean over positions judged.

    Nothing of it is in the first judge: no batch statistics, no maxima, no weights that belong to a position. A transformer of
    this size was measured, too: of a few hundred images a class it learns less, in more time.

    Source: Liu et al. 2022 (ConvNeXt), arXiv:2201.03545, figure 4, without its layer scale and stochastic depth. Overlapping
        patches are ours: so few pixels are not to be cut apart.
    """

    def __init__(self, channels: int, height: int, width: int, class_count: int) -> None:
        super().__init__()
        side, before, after = max(height, width), 32, 64
        stride = math.ceil(side / LARGEST)
        layers: list[nn.Module] = [nn.Conv2d(channels, before, 2 * stride + 1, stride=stride, padding=stride), _Mixing(before)]
        side = math.ceil(side / stride)
        while side > 4:
            layers += [nn.GroupNorm(1, before), nn.Conv2d(before, after, 3, stride=2, padding=1), _Mixing(after)]
            side, before, after = math.ceil(side / 2), after, after + 32
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(before)
        self.features = nn.Linear(before, FEATURES)
        self.classes = nn.Linear(FEATURES, class_count)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and penultimate features (B, F), taken before their nonlinearity."""
        features_BF = self.features(self.norm(self.layers(x_BCHW).mean(dim=(2, 3))))
        return self.classes(F.gelu(features_BF)), features_BF


class _Mixing(nn.Module):
    """What surrounds a position in each channel, then all channels of it, added to what it was given."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.around = nn.Conv2d(channels, channels, REACH, padding=REACH // 2, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.mixing = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        mixed_BHWC: Tensor = self.mixing(self.norm(self.around(x_BCHW).permute(0, 2, 3, 1)))
        return x_BCHW + mixed_BHWC.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Seat:
    """One of the judges of a dataset: what it is built as, and the seed that it learns from."""

    recipe: str
    """Part of the cache key, and the judge's name. Change it whenever a line changes the weights that training gives."""
    build: Callable[[int, int, int, int], nn.Module]
    """Of channels, height, width and number of classes; called gives logits (B, K) and features (B, F)."""
    learning_rate: float
    """The highest of the schedule."""
    own: str = ""
    """Set apart from the other seats' seeds by this; empty: the policy's own."""

    def seed(self, policy_seed: int) -> int:
        """Of initial weights and of the order of the images, in [0, 2^56)."""
        if not self.own:
            return policy_seed
        return int.from_bytes(hashlib.sha256(f"{policy_seed}/{self.own}".encode()).digest()[:7], "big")


FIRST = Seat("judge-cnn/1", JudgeNetwork, 3e-3)
"""The judge of every policy, whose features are measured in."""
SECOND = Seat("judge-convnext/1", WideNetwork, 4e-3, "second judge")
"""Beside it where the policy asks for two."""
WATCHER = Seat("judge-cnn/1 of early stops", JudgeNetwork, 3e-3, "judge of early stops")
"""Of the unlearning stage alone: what decides when to stop must not be what verifies."""
