"""What is hidden of an image, seen without the rest: all that a judge of completed images looks at.

A judge that saw the visible part could name the class from there, and every completion would seem to know it.

Shape suffixes: B images, C channels, H, W pixels, h, w cells; h', w' the sides of what is seen.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.contract import MaskSpec
from worker.engine import corruption

LARGEST = 64
"""Pixels of a side: a judge is small, so larger regions are averaged down by a whole factor."""

RECTANGLES = frozenset({"center", "box"})
"""Kinds that hide one rectangle, of one size in every image: it is cut out, wherever it lies."""

ImageShape = tuple[int, int, int]
"""(C, H, W)."""


@dataclass(frozen=True)
class Region:
    """The part of an image that one corruption hides."""

    corruption: MaskSpec
    cell: int
    """Pixels of a side of a cell."""

    @property
    def name(self) -> str:
        """For records and people."""
        return f"{described(self.corruption)} in cells of {self.cell}"

    @property
    def ingredients(self) -> dict[str, Any]:
        """What decides what is seen, as JSON."""
        return {"corruption": self.corruption.model_dump(mode="json"), "cell": self.cell, "largest": LARGEST}

    def drawn(self, count: int, image_shape: ImageShape, source: torch.Generator) -> Tensor:
        """bool (count, h, w) on the CPU: masks at random. Raises: BadInput; see `corruption.hidden_count`."""
        grid = corruption.grid_of(image_shape[1:], self.cell)
        return corruption.hidden(self.corruption, grid, corruption.drawn(self.corruption, grid, count, source))

    def of_ids(self, ids: Sequence[str], image_shape: ImageShape) -> Tensor:
        """bool (B, h, w) on the CPU: the same mask for the same id every time, and none of those that verification draws."""
        grid = corruption.grid_of(image_shape[1:], self.cell)
        seeds = [int.from_bytes(hashlib.sha256(f"judge/{name}".encode()).digest()[:7], "big") for name in ids]
        return corruption.masks(self.corruption, grid, seeds)

    def seen_shape(self, image_shape: ImageShape) -> tuple[int, int, int]:
        """(C + 1, h', w') of what `seen` gives. Raises: BadInput; see `corruption.hidden_count`."""
        channels, *sides = image_shape
        if self.corruption.kind in RECTANGLES:
            sides = list(_extent(corruption.pixels(self.drawn(1, image_shape, torch.Generator()), self.cell)))
        factor = _factor(sides)
        return channels + 1, math.ceil(sides[0] / factor), math.ceil(sides[1] / factor)

    def seen(self, x_BCHW: Tensor, hidden_Bhw: Tensor) -> Tensor:
        """(B, C + 1, h', w'): the hidden part, zero elsewhere, and a channel that is 1 where it is hidden.

        Args:
            x_BCHW: float, on the device of the masks.
        """
        covered_B1HW = corruption.pixels(hidden_Bhw, self.cell)
        part_BCHW = torch.cat([torch.where(covered_B1HW, x_BCHW, 0), covered_B1HW.to(x_BCHW.dtype)], dim=1)
        if self.corruption.kind in RECTANGLES:
            part_BCHW = _cut_out(part_BCHW, covered_B1HW)
        factor = _factor(part_BCHW.shape[-2:])
        return F.avg_pool2d(part_BCHW, factor, ceil_mode=True) if factor > 1 else part_BCHW


def described(spec: MaskSpec) -> str:
    """A corruption for people: its kind, its ratio, and its seed where it has one."""
    return f"{spec.kind} {spec.ratio:g}" + (f" (seed {spec.seed})" if spec.seed else "")


def _factor(sides: Sequence[int]) -> int:
    return math.ceil(max(sides) / LARGEST)


def _extent(covered_B1HW: Tensor) -> tuple[int, int]:
    """Rows and columns that the first mask covers something of."""
    return int(covered_B1HW[0, 0].any(dim=1).sum()), int(covered_B1HW[0, 0].any(dim=0).sum())


def _cut_out(x_BCHW: Tensor, covered_B1HW: Tensor) -> Tensor:
    """(B, C, rows, columns): each image's rectangle; all are of one size."""
    rows, columns = _extent(covered_B1HW)
    top_B, left_B = (covered_B1HW[:, 0].any(dim=dim).to(torch.uint8).argmax(dim=1) for dim in (2, 1))
    y_BR1 = (top_B[:, None] + torch.arange(rows, device=x_BCHW.device))[:, :, None]
    x_B1S = (left_B[:, None] + torch.arange(columns, device=x_BCHW.device))[:, None, :]
    item_B11 = torch.arange(len(x_BCHW), device=x_BCHW.device)[:, None, None]
    return x_BCHW.permute(0, 2, 3, 1)[item_B11, y_BR1, x_B1S].permute(0, 3, 1, 2)
