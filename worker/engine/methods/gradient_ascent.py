"""Gradient ascent: climb the forget loss and nothing else. The plainest baseline; it repairs nothing that it breaks.

Source: Thudi et al. 2022, "Unrolling SGD", arXiv:2109.13398, whose single-gradient unlearning this repeats over batches.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field

from worker.engine.method import Params, Run


class AscentParams(Params):
    """More steps or a larger rate forget more, and damage more."""

    iterations: int = Field(default=20, ge=1, le=1_000_000, description="ascent steps")
    batch_size: int = Field(default=64, ge=1, le=65_536, description="images of a global batch")
    learning_rate: float = Field(default=0.1, gt=0, le=100, description="of plain SGD")
    clip: float = Field(default=1.0, gt=0, le=1e6, description="largest gradient norm")


class GradientAscent:
    """SGD on the negated mean loss of the forget set."""

    name: ClassVar[str] = "gradient_ascent"
    title: ClassVar[str] = "Gradient ascent (baseline)"
    paper: ClassVar[str] = "arXiv:2109.13398"
    guarantee: ClassVar[Literal["empirical"]] = "empirical"
    families: ClassVar[tuple[str, ...]] = ("ddpm",)
    Params: ClassVar[type[Params]] = AscentParams

    def __init__(self, params: AscentParams, run: Run) -> None:
        self.params, self.run = params, run
        self.optimizer = torch.optim.SGD(run.parameters, lr=params.learning_rate)

    @classmethod
    def begin(cls, params: AscentParams, run: Run) -> Self:
        """See `Method.begin`."""
        return cls(params, run)

    def prepare(self) -> None:
        """Nothing to prepare."""

    def step(self, iteration: int) -> None:
        """See `Method.step`."""
        batch = self.run.batch(self.run.forget, iteration, self.params.batch_size, label_drop=0.0)
        objective = -self.run.losses(batch).sum() * (self.run.ranks.world / batch.total)
        self.run.update(objective, self.optimizer, step=iteration, clip=self.params.clip)

    def state_dict(self) -> dict[str, Any]:
        """Plain SGD remembers nothing but its settings."""
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Method.load_state_dict`."""
        self.optimizer.load_state_dict(state["optimizer"])
