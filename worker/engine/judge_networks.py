"""The networks that judge images, and the seats that they take: two architectures of one width, taught from different seeds.

What fools one need not fool the other: a convolution looks at neighbours alone, attention at every patch from the first layer
on. Both are small, take grey or colour images of 8 to 64 pixels a side, and end in the same number of features.

Shapes: B batch, C channels, H height, W width, T tokens, D width of a token, F features, K classes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
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


WIDTH, HEADS, DEPTH = 64, 4, 4
TOKENS = 8
"""Patches along a side, at most: attention costs the square of their number."""


class AttentionNetwork(nn.Module):
    """A small vision transformer: two convolutions make overlapping patches, attention compares them, their mean is judged.

    Convolutions before attention let so small a transformer learn from a few thousand images, which plain patches do not.

    Source: Dosovitskiy et al. 2021 (ViT), arXiv:2010.11929; Xiao et al. 2021, "Early convolutions help transformers see
        better", arXiv:2106.14881, for what comes before it. The mean of the tokens in place of a class token is ours.
    """

    def __init__(self, channels: int, height: int, width: int, class_count: int) -> None:
        super().__init__()
        patch = max(2, math.ceil(max(height, width) / TOKENS))
        reach = (patch + 1) // 2
        rows, columns = ((side + 2 * reach - (patch + 1)) // patch + 1 for side in (height, width))
        self.patches = nn.Sequential(
            nn.Conv2d(channels, WIDTH // 2, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(WIDTH // 2, WIDTH, patch + 1, stride=patch, padding=reach),
        )
        self.places = nn.Parameter(0.02 * torch.randn(1, rows * columns, WIDTH))
        self.layers = nn.Sequential(*(_Layer() for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH)
        self.features = nn.Linear(WIDTH, FEATURES)
        self.classes = nn.Linear(FEATURES, class_count)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and penultimate features (B, F), taken before their nonlinearity."""
        tokens_BTD = self.patches(x_BCHW).flatten(2).transpose(1, 2) + self.places
        features_BF = self.features(self.norm(self.layers(tokens_BTD)).mean(dim=1))
        return self.classes(F.gelu(features_BF)), features_BF


class _Layer(nn.Module):
    """Attention, then two linear layers, each added to what it was given after a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_attention, self.norm_mixing = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.asked, self.answered = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mixing = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x_BTD: Tensor) -> Tensor:
        batch, tokens, _ = x_BTD.shape
        parts = self.asked(self.norm_attention(x_BTD)).view(batch, tokens, 3, HEADS, WIDTH // HEADS)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen_BTD = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(batch, tokens, WIDTH)
        x_BTD = x_BTD + self.answered(seen_BTD)
        mixed_BTD: Tensor = self.mixing(self.norm_mixing(x_BTD))
        return x_BTD + mixed_BTD


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
SECOND = Seat("judge-attention/1", AttentionNetwork, 2e-3, "second judge")
"""Beside it where the policy asks for two."""
WATCHER = Seat("judge-cnn/1 of early stops", JudgeNetwork, 3e-3, "judge of early stops")
"""Of the unlearning stage alone: what decides when to stop must not be what verifies."""
