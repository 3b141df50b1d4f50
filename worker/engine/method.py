"""The protocol of an unlearning method: what it is told, what it may ask of a run, and what it must remember.

A method owns its losses, masks and optimizers. The run owns the rest: batches, ranks, the finite check, checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from worker.contract import Spec
from worker.engine.data import Dataset
from worker.engine.distributed import Ranks
from worker.engine.errors import BadInput, Diverged
from worker.engine.family import Draw, Family
from worker.engine.streams import Stream

Gradients = list[Tensor]


class Params(BaseModel):
    """Base of a method's parameters: unknown names are refused, and ranges become the API's JSON schema."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    iterations: int = Field(default=50, ge=1, le=1_000_000, description="updates of the loop")


@dataclass(frozen=True)
class Batch:
    """This rank's part of a global batch of `total` images."""

    x_BCHW: Tensor
    y_B: Tensor
    draw: Draw
    total: int


@dataclass(frozen=True)
class Run:
    """What a method works with. The same on every rank but for the rows of a batch."""

    spec: Spec
    family: Family
    dataset: Dataset
    ranks: Ranks
    forget: Stream
    retain: Stream
    module: nn.Module
    """The network to call in a loss: `family.module`, or its distributed wrapper."""
    preparing: Callable[[int, int], None]
    """Tell how far `prepare` is: (completed, total)."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters, in a fixed order."""
        return [p for p in self.family.module.parameters() if p.requires_grad]

    def batch(self, stream: Stream, iteration: int, size: int, *, label_drop: float, whole: bool = False) -> Batch:
        """This rank's rows (or the `whole`) of the global batch that `stream` deals at `iteration`.

        Raises: BadInput when there are fewer images than ranks.
        """
        if size < self.ranks.world and not whole:
            raise BadInput(f"expected a batch of at least {self.ranks.world} images, one a rank, found {size}")
        rows = slice(0, size) if whole else self.ranks.rows(size)
        pick_B = stream.pick(iteration, size)[rows]
        draw = self.family.draw(size, self.dataset.image_shape, stream.generator(iteration, "draw"), label_drop=label_drop)
        return Batch(
            x_BCHW=self.family.prepare(self.dataset.images_NCHW[pick_B]),
            y_B=self.dataset.labels_N[pick_B].to(self.ranks.device),
            draw=draw.part(rows).to(self.ranks.device),
            total=size,
        )

    def losses(self, batch: Batch, module: nn.Module | None = None) -> Tensor:
        """(B,) native loss of each of this rank's rows."""
        return self.family.loss(batch.x_BCHW, batch.y_B, batch.draw, module=module or self.module)

    def update(
        self,
        objective: Tensor,
        optimizer: torch.optim.Optimizer,
        *,
        step: int,
        clip: float,
        mask: list[Tensor] | None = None,
    ) -> None:
        """One descent on `objective`, or none at all: mask, then clip, then ask every rank, then step.

        Args:
            objective: this rank's share of the global objective, scaled so that the mean over ranks is the objective.
            clip: largest gradient norm after masking.
            mask: bool tensors like the parameters; False keeps a gradient out.

        Raises:
            Diverged: on every rank, before any weight moved, when any rank's loss or gradient is not finite.
        """
        optimizer.zero_grad(set_to_none=True)
        objective.backward()
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        if mask is not None:
            torch._foreach_mul_(gradients, mask)
        norm = torch.nn.utils.get_total_norm(gradients)
        # NaN times a False mask is still NaN, so a masked-out NaN is seen here too.
        if self.ranks.any(~(torch.isfinite(objective.detach()) & torch.isfinite(norm))):
            raise Diverged(
                f"the loss stopped being a finite number at iteration {step}; no weight was changed by it",
                step=step,
                loss=float(objective.detach()),
            )
        torch._foreach_mul_(gradients, (clip / (norm + 1e-6)).clamp(max=1.0))
        optimizer.step()


class Method(Protocol):
    """An unlearning method. Files in `methods/` each hold one."""

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    guarantee: ClassVar[Literal["empirical", "certified"]]
    families: ClassVar[tuple[str, ...]]
    """Names of the families it can work on."""
    Params: ClassVar[type[Params]]

    @classmethod
    def begin(cls, params: Any, run: Run) -> Self:
        """Set up optimizers; cheap, and done on resume too."""
        ...

    def prepare(self) -> None:
        """The work before the first iteration, such as a saliency mask; not done on resume."""
        ...

    def step(self, iteration: int) -> None:
        """One iteration. Randomness comes from `(seed, stream, iteration)` alone. Raises: Diverged."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that `step` depends on besides the weights: nested dicts and lists of tensors and JSON values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state that `state_dict` gave, tensors now on the CPU."""
        ...
