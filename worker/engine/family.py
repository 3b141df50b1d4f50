"""The protocol of a model family: how weights are loaded, trained on, sampled from and saved.

Shape suffixes: B images of a batch (this rank's part of it), C channels, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from worker.contract import Sampling


@dataclass(frozen=True)
class Draw:
    """The random numbers that one loss evaluation consumes, one row an image.

    Drawn on the CPU for the whole global batch and then cut, so that any number of ranks sees the same numbers.
    """

    tensors: dict[str, Tensor]

    def part(self, rows: slice) -> Draw:
        """The numbers of one rank's rows."""
        return Draw({name: t[rows] for name, t in self.tensors.items()})

    def to(self, device: torch.device) -> Draw:
        """The same numbers on `device`."""
        return Draw({name: t.to(device, non_blocking=True) for name, t in self.tensors.items()})

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]


class Family(Protocol):
    """A kind of class-conditional image model."""

    name: ClassVar[str]
    """API name; the file is called the same."""
    title: ClassVar[str]
    module: nn.Module
    """The trainable network, in float32 and eval mode: dropout would make the result depend on the number of ranks."""
    class_count: int

    @classmethod
    def load(cls, directory: Path, *, class_count: int, device: torch.device) -> Self:
        """Read safetensors weights from a local folder; nothing is ever fetched.

        Raises:
            BadModel: a pickle, a missing or surplus tensor, a wrong shape, a number that is not finite, or a class
                table of another size; the message says what was expected and what came.
        """
        ...

    def prepare(self, images_BCHW: Tensor) -> Tensor:
        """uint8 [0, 255] images as the network's float32 input, on the module's device."""
        ...

    def draw(self, count: int, image_shape: Sequence[int], generator: torch.Generator, *, label_drop: float) -> Draw:
        """Random numbers for `count` images of shape (C, H, W), on the CPU.

        Args:
            label_drop: probability that an image is shown without its label; ignored by families without a null label.
        """
        ...

    def loss(self, x_BCHW: Tensor, y_B: Tensor, draw: Draw, *, module: nn.Module | None = None) -> Tensor:
        """(B,) the native training loss of each image, float32, ≥ 0, differentiable.

        Args:
            module: run this instead of `self.module`, for instance its distributed wrapper.
        """
        ...

    def contrast(
        self, x_BCHW: Tensor, y_B: Tensor, anchor_B: Tensor, draw: Draw, *, module: nn.Module | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B,) the loss as `loss` gives it, and (B,) how far the answer under `y_B` is from the one under `anchor_B`.

        The second is in the units of the first, zero when the network no longer tells the two labels apart on these
        images; no gradient flows through the anchor's answer.
        """
        ...

    def sample(self, y_B: Tensor, seeds: Sequence[int], *, sampling: Sampling) -> Tensor:
        """uint8 (B, C, H, W) images of the classes `y_B`, on the CPU.

        Image i depends on `seeds[i]`, `y_B[i]` and the policy, not on which other images share its batch or rank.

        Raises:
            BadInput: guidance asked of a model without a null label, or a class out of range.
            Diverged: a sample is not finite.
        """
        ...

    def save(self, directory: Path, base: Path) -> None:
        """Write the folder layout of `base` with the current weights in the base's dtype; other files are copied.

        Raises:
            BadModel: a weight is not finite in that dtype.
        """
        ...
