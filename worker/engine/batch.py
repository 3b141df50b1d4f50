"""Rows of a global batch, and what an update does with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worker.engine.family import Draw


@dataclass(frozen=True)
class Batch:
    """This rank's rows of a global batch of `total` images."""

    x_BCHW: Tensor
    y_B: Tensor
    draw: Draw
    index_B: Tensor
    """int64 positions in the dataset, on the device."""
    total: int

    def part(self, rows: slice) -> Batch:
        """Some of the rows."""
        return Batch(self.x_BCHW[rows], self.y_B[rows], self.draw.part(rows), self.index_B[rows], self.total)


Rows = Callable[[Batch, nn.Module], tuple[Tensor, Tensor]]
"""(batch, module to call) -> (B,) what is descended, with gradient, and (B,) what the weights are made of, ≥ 0."""

Weigh = Callable[[Tensor], Tensor]
"""(B,) detached measure of this rank's rows -> (B,) weights that sum to 1 over all ranks."""


@dataclass(frozen=True)
class Part:
    """One stream's share of an objective: scale · Σ_i w_i descend_i over the global batch."""

    batch: Batch
    rows: Rows
    weigh: Weigh | None = None
    """None: the mean."""
    scale: float = 1.0

    def weights(self, measure_B: Tensor) -> Tensor:
        """(B,) weights of this rank's rows; without a rule of its own, those of a mean over the global batch."""
        if self.weigh is None:
            return torch.full_like(measure_B, 1 / self.batch.total)
        return self.weigh(measure_B.detach())
