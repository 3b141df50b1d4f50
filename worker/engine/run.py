"""What a method works with: batches, and one guarded update.

    parts of the objective -> backward (`gradients`) -> edit, mask, clip -> all ranks finite? -> step

Nothing here waits for the device: a gradient that is not finite sets a flag there, the fused optimizer skips that update and
all after it, and the loop reads the flag now and then. So the weights are those before the update that failed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from worker.contract import Spec
from worker.engine import sharding
from worker.engine.batch import Batch, Part
from worker.engine.data import Dataset
from worker.engine.distributed import Ranks
from worker.engine.errors import BadInput, Diverged
from worker.engine.events import Events
from worker.engine.family import Draw, Family, sent
from worker.engine.gradients import Gradients
from worker.engine.method import Params
from worker.engine.streams import Mixture, Stream


@dataclass
class Run:
    """The same on every rank but for the rows of a batch."""

    spec: Spec
    params: Params
    family: Family
    dataset: Dataset
    ranks: Ranks
    forget: Stream
    retain: Stream | Mixture
    module: nn.Module
    """The network to call in a loss: `family.module` (sharded or not), or its distributed wrapper."""
    held_N: Tensor
    """What the family keeps of every item, on the device."""
    labels_N: Tensor
    """int64, on the device; -1 for an image of a proxy dataset, which has no class here."""
    events: Events
    cache: Path
    """Folder of tables that later runs on the same weights and data may use."""
    gradients: Gradients = field(init=False)
    _spoiled: Tensor = field(init=False)
    _spoiled_at: Tensor = field(init=False)
    _spoiled_by: Tensor = field(init=False)

    def __post_init__(self) -> None:
        device = self.ranks.device
        self._spoiled = torch.zeros((), device=device)
        self._spoiled_at = torch.full((), -1, dtype=torch.int64, device=device)
        self._spoiled_by = torch.zeros((), device=device)
        self.gradients = Gradients(self.family, self.module, self.ranks, self.params, self.events)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters, in a fixed order."""
        return self.gradients.parameters

    @property
    def sharded(self) -> bool:
        """Does every rank hold a part of every weight?"""
        return self.gradients.sharded

    def preparing(self, completed: int, total: int) -> None:
        """Tell how far `prepare` is."""
        self.events.progress(completed, total, "saliency batch")

    # ----------------------------------------------------------------------------------------------------------- batches

    def concepts(self, because: str) -> Stream:
        """The forget stream's items whose label is a forgotten class, for methods that work on what a label means.

        Of items forgotten singly the label is to be kept.

        Raises:
            BadInput: the request is for single items; `because` says what the method does in place of that.
        """
        if self.spec.forget_samples:
            raise BadInput(f"expected classes to forget, found single images: {because}")
        stream = self.forget
        whole_N = torch.isin(stream.labels_N, torch.tensor(self.spec.all_forgotten))
        return replace(stream, indices_N=stream.indices_N[whole_N], labels_N=stream.labels_N[whole_N])

    def batch(self, stream: Stream | Mixture, iteration: int, size: int, *, label_drop: float = 0.0) -> Batch:
        """This rank's rows of the global batch that `stream` deals at `iteration`, varied as `params.augment` says.

        Raises: BadInput when there are fewer images than ranks.
        """
        if size < self.ranks.world:
            raise BadInput(f"expected a batch of at least {self.ranks.world} images, one a rank, found {size}")
        rows = self.ranks.rows(size)
        augment, generator = self.params.augment, stream.generator(iteration, "draw")
        draw = self.family.draw(size, self.dataset.image_shape, generator, label_drop=label_drop, augment=augment)
        return self._made(stream.pick(iteration, size)[rows], draw.part(rows), size)

    def plain(self, index_B: Tensor, generator: torch.Generator) -> Batch:
        """Exactly these items, whole on this rank, neither varied nor without their labels."""
        draw = self.family.draw(len(index_B), self.dataset.image_shape, generator, label_drop=0.0)
        return self._made(index_B, draw, len(index_B))

    def _made(self, index_B: Tensor, draw: Draw, total: int) -> Batch:
        index_B, draw = sent(index_B, self.ranks.device), draw.to(self.ranks.device)
        return Batch(self.family.prepare(self.held_N[index_B], draw), self.labels_N[index_B], draw, index_B, total)

    # ------------------------------------------------------------------------------------------------------------ updates

    def descend(
        self,
        parts: Sequence[Part],
        optimizer: torch.optim.Optimizer,
        *,
        step: int,
        clip: float | None = None,
        mask: list[Tensor] | None = None,
        edit: Callable[[list[Tensor]], None] | None = None,
    ) -> None:
        """One descent on the sum of the parts, or none at all: edit, mask, clip, ask every rank, step.

        Args:
            clip: largest gradient norm after masking.
            mask: bool tensors like the parameters; False keeps a gradient out.
            edit: changes the gradients in place, once they are the same on all ranks; a penalty's gradient is added so.

        Raises:
            Diverged: on every rank, when any rank's loss or gradient is not finite: at once on a CPU, at the next
                `check` on an accelerator. No weight has moved by it.
            OutOfMemory: see `Gradients.together`.
        """
        objective = self.gradients.together(parts)
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        if edit is not None:
            edit(gradients)
        gradients = sharding.local(gradients)
        if mask is not None:
            # Bool against float is a launch a tensor; a mask in the gradients' dtype, one launch, would take 4 bytes a weight.
            torch._foreach_mul_(gradients, sharding.local(mask))
        norm = self.norm(gradients)
        # NaN times a False mask is still NaN, so a masked-out NaN is seen here too.
        self._watch(objective, norm, step)
        if clip is not None:
            torch._foreach_mul_(gradients, (clip / (norm + 1e-6)).clamp(max=1.0))
        if self.sharded:
            self.check()  # not every optimizer is fused there, and beside the gathering of weights a wait costs little
        else:
            optimizer.found_inf = self._spoiled  # type: ignore[attr-defined]  # read by fused optimizers: skip this update
        optimizer.step()
        if self.ranks.device.type == "cpu":
            self.check()

    def norm(self, gradients: list[Tensor]) -> Tensor:
        """The Euclidean norm of all gradients, of which this rank may hold parts; the same on every rank."""
        norm = torch.nn.utils.get_total_norm(sharding.local(gradients))
        return self.ranks.sum_(norm.square()).sqrt() if self.sharded else norm

    def check(self) -> None:
        """Waits for the device. Raises: Diverged when an update since the last check was not finite."""
        if bool(self._spoiled):
            raise Diverged(
                f"the loss stopped being a finite number at iteration {int(self._spoiled_at)}; no weight was changed by it",
                step=int(self._spoiled_at),
                loss=float(self._spoiled_by),
            )

    def _watch(self, objective: Tensor, norm: Tensor, step: int) -> None:
        """Raise the flag if this update is not finite on any rank; once up it stays up."""
        bad = ~(torch.isfinite(objective) & torch.isfinite(norm))
        bad = self.ranks.max_(bad.float())
        first = (bad > 0) & (self._spoiled == 0)
        self._spoiled_at = torch.where(first, step, self._spoiled_at)
        self._spoiled_by = torch.where(first, objective.float(), self._spoiled_by)
        self._spoiled = torch.maximum(self._spoiled, bad)
