"""What a method works with: batches, precision, and one guarded update.

    parts of the objective -> backward, in micro-batches if need be -> edit, mask, clip -> all ranks finite? -> step

Nothing here waits for the device: a gradient that is not finite sets a flag there, the fused optimizer skips that update and
all after it, and the loop reads the flag now and then. So the weights are those before the update that failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from worker.contract import Spec
from worker.engine import sharding
from worker.engine.data import Dataset
from worker.engine.distributed import Ranks
from worker.engine.errors import BadInput, Diverged, OutOfMemory, is_out_of_memory
from worker.engine.events import Events
from worker.engine.family import Draw, Family, sent
from worker.engine.method import Params
from worker.engine.precision import resolve
from worker.engine.streams import Stream


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


@dataclass
class Run:
    """The same on every rank but for the rows of a batch."""

    spec: Spec
    params: Params
    family: Family
    dataset: Dataset
    ranks: Ranks
    forget: Stream
    retain: Stream
    module: nn.Module
    """The network to call in a loss: `family.module` (sharded or not), or its distributed wrapper."""
    held_N: Tensor
    """What the family keeps of every item, on the device."""
    labels_N: Tensor
    """int64, on the device."""
    events: Events
    cache: Path
    """Folder of tables that later runs on the same weights and data may use."""
    micro: int | None = None
    """Rows of a micro-batch of an update once a whole batch did not fit, else None. The same on every rank."""
    _spoiled: Tensor = field(init=False)
    _spoiled_at: Tensor = field(init=False)
    _spoiled_by: Tensor = field(init=False)
    _rehearsed: set[tuple[int, ...]] = field(init=False, default_factory=set)
    _micro_alone: int | None = field(init=False, default=None)
    """The same for `gradient`, of this rank alone."""

    def __post_init__(self) -> None:
        device = self.ranks.device
        self._spoiled = torch.zeros((), device=device)
        self._spoiled_at = torch.full((), -1, dtype=torch.int64, device=device)
        self._spoiled_by = torch.zeros((), device=device)
        self.precision = resolve(self.params.precision, device)
        self.sharded = sharding.is_sharded(self.family.module)
        if self.moves_statistics and self.ranks.world > 1:
            raise BadInput(
                f"batch_norm 'train' would give each of the {self.ranks.world} ranks statistics of its own; "
                "expected 'frozen', or one rank"
            )

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters, in a fixed order."""
        return [p for p in self.family.module.parameters() if p.requires_grad]

    @property
    def batch_norms(self) -> list[nn.Module]:
        """The layers that keep running statistics."""
        return [m for m in self.family.module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    @property
    def moves_statistics(self) -> bool:
        """Does an update move running statistics? Then an image's loss depends on the others of its batch."""
        return self.params.batch_norm == "train" and bool(self.batch_norms)

    def preparing(self, completed: int, total: int) -> None:
        """Tell how far `prepare` is."""
        self.events.progress(completed, total, "saliency batch")

    def autocast(self) -> AbstractContextManager[None]:
        """The precision of forward passes."""
        return torch.autocast(self.ranks.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    # ----------------------------------------------------------------------------------------------------------- batches

    def batch(self, stream: Stream, iteration: int, size: int, *, label_drop: float = 0.0) -> Batch:
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

    # ---------------------------------------------------------------------------------------- gradients that move no weight

    def gradient(self, batch: Batch, *, weight: float) -> list[Tensor]:
        """Of weight · Σ_i loss_i over this rank's rows, shaped like `parameters`; the other ranks are not asked.

        A batch that does not fit is halved until it does: the gradients of its pieces add up to the whole one's.

        Raises:
            OutOfMemory: not even one row fits.
        """
        while True:
            try:
                return self._added_up(batch, weight)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Not in the clause: until its end the error holds the frames, and they the activations.
            count = len(batch.y_B)
            self._micro_alone = self._half(min(self._micro_alone or count, count))
            self.events.note({"saliency_micro_batch": self._micro_alone})

    def _added_up(self, batch: Batch, weight: float) -> list[Tensor]:
        total: list[Tensor] = []
        for rows in _pieces(len(batch.y_B), self._micro_alone):
            piece = batch.part(rows)
            with self.autocast():
                share = self.family.loss(piece.x_BCHW, piece.y_B, piece.draw).sum() * weight
            found = torch.autograd.grad(share, self.parameters, allow_unused=True)
            gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, found, strict=True)]
            if total:
                torch._foreach_add_(total, gradients)
            else:
                total = gradients
        return total

    def _half(self, rows: int) -> int:
        """Rows to try after so many did not fit. Raises: OutOfMemory when it was one."""
        if self.ranks.device.type == "cuda":
            torch.cuda.empty_cache()
        if rows <= 1:
            raise OutOfMemory("the device ran out of memory on a single image; expected at least one to fit")
        return (rows + 1) // 2

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
            OutOfMemory: not even one row fits, or one of several ranks ran out, or the batch may not be halved because
                statistics of BatchNorm are taken of it.
        """
        optimizer.zero_grad(set_to_none=True)
        objective = self._backward(parts, optimizer)
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

    def _backward(self, parts: Sequence[Part], optimizer: torch.optim.Optimizer) -> Tensor:
        """Gradients of the objective's mean over ranks; the objective of this rank, detached.

        A batch that does not fit is halved until it does; the global batch stays what it was.
        """
        while True:
            try:
                if self.ranks.world > 1:
                    self._rehearse(parts, optimizer)
                return self._accumulate(parts)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.ranks.world > 1:  # the others wait in a collective for gradients that will not come
                    raise OutOfMemory(
                        f"one of {self.ranks.world} ranks ran out of memory in the middle of an update; expected what fitted "
                        "before to fit again"
                    ) from error
            self._halve(parts, optimizer)

    def _rehearse(self, parts: Sequence[Part], optimizer: torch.optim.Optimizer) -> None:
        """Find, once for every shape of update, the micro-batch that fits on every one of several ranks.

        On their own weights, without the others: a rank that ran out inside a collective would leave them waiting. Only
        where memory can run out in a way that a process survives, that is, on accelerators.
        """
        shape = tuple(sorted(p.batch.total for p in parts))
        if self.ranks.device.type == "cpu" or shape in self._rehearsed:
            return
        self._rehearsed.add(shape)
        if self.sharded:
            self._foresee(parts, optimizer)
            return
        while True:
            try:
                self._accumulate(parts, alone=True)
                short = False
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                short = True
            optimizer.zero_grad(set_to_none=True)
            if not self.ranks.any(short):
                break
            self._halve(parts, optimizer)

    def _foresee(self, parts: Sequence[Part], optimizer: torch.optim.Optimizer) -> None:
        """The micro-batch of a sharded network, by arithmetic from passes of one and of two rows.

        No rank can rehearse alone there, and none may run out while the others wait: nothing is tried that might not fit.
        """
        before, self.micro, peaks = self.micro, None, []
        for rows in (slice(1), slice(2)):
            pieces = [replace(p, batch=p.batch.part(rows), weigh=None) for p in parts]
            with sharding.peak(self.ranks.device) as peak:
                self._accumulate(pieces)
            peaks.append(peak())
            optimizer.zero_grad(set_to_none=True)
        fitting = sharding.rows_that_fit(*peaks, limit=sharding.limit(self.ranks.device, self.parameters))
        rows_short = self.ranks.max_(torch.tensor(-fitting, device=self.ranks.device))
        self.micro, fitting, largest = before, -int(rows_short), max(self._most_rows(p.batch) for p in parts)
        if fitting < min(before or largest, largest):
            self.micro = fitting
            self.events.note({"micro_batch": self.micro})

    def _halve(self, parts: Sequence[Part], optimizer: torch.optim.Optimizer) -> None:
        largest = max(len(p.batch.y_B) for p in parts)
        if self.moves_statistics:  # of pieces they are others, and the try that failed has moved them already
            raise OutOfMemory(
                f"the device ran out of memory on a batch of {largest} images, and batch_norm 'train' needs the whole batch at "
                "once; expected a smaller batch_size, or batch_norm 'frozen'"
            )
        optimizer.zero_grad(set_to_none=True)
        self.micro = self._half(min(self.micro or largest, largest))
        self.events.note({"micro_batch": self.micro})

    def _accumulate(self, parts: Sequence[Part], *, alone: bool = False) -> Tensor:
        """Backward passes of all parts. Several ranks' gradients meet in the wrapper, or here where batches are cut."""
        by_hand = self.ranks.world > 1 and not self.sharded and (alone or self.micro is not None)
        module = self.family.module if by_hand else self.module
        objective = torch.zeros((), device=self.ranks.device)
        with self._batch_norm_as_asked():
            for part in parts:
                if alone:
                    part = replace(part, weigh=None)  # a normaliser would wait for the others
                weights_B = self._weights_beforehand(part)
                for rows in self._cut(part.batch):
                    piece = part.batch.part(rows)
                    with self.autocast():
                        descend_B, measure_B = part.rows(piece, module)
                    w_B = weights_B[rows] if weights_B is not None else _weights(part, measure_B)
                    share = (w_B * descend_B).sum() * (part.scale * self.ranks.world)
                    share.backward()
                    objective += share.detach()
        if by_hand and not alone:
            self.ranks.mean_([p.grad for p in self.parameters if p.grad is not None])
        return objective

    def _most_rows(self, batch: Batch) -> int:
        """Rows of the rank that has most; any other has one less at most."""
        return -(-batch.total // self.ranks.world)

    def _cut(self, batch: Batch) -> list[slice]:
        """Micro-batches. Of a sharded network equally many on every rank, for each is a collective."""
        count = len(batch.y_B)
        if not self.sharded or self.micro is None:
            return _pieces(count, self.micro)
        pieces = -(-self._most_rows(batch) // self.micro)
        if pieces > batch.total // self.ranks.world:
            raise OutOfMemory(f"{pieces} micro-batches are more than a rank's rows; expected a batch that the ranks divide")
        return [slice(i * count // pieces, (i + 1) * count // pieces) for i in range(pieces)]

    def _weights_beforehand(self, part: Part) -> Tensor | None:
        """Weights of all rows where the batch is cut: a normaliser over a micro-batch would be another one's."""
        cuts = self._cut(part.batch)
        if part.weigh is None or len(cuts) == 1:
            return None
        with torch.no_grad(), self.autocast():
            measures = [part.rows(part.batch.part(rows), self.family.module)[1] for rows in cuts]
        return _weights(part, torch.cat(measures))

    @contextmanager
    def _batch_norm_as_asked(self) -> Iterator[None]:
        """Statistics move in updates alone: never while Fisher information is taken or a teacher answers."""
        if self.params.batch_norm == "frozen":
            yield
            return
        layers = self.batch_norms
        for layer in layers:
            layer.train()
        try:
            yield
        finally:
            for layer in layers:
                layer.eval()


def _pieces(count: int, most: int | None) -> list[slice]:
    """Slices that together are `count` rows, of at most `most` each; None: one."""
    size = min(most or count, count)
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]


def _weights(part: Part, measure_B: Tensor) -> Tensor:
    if part.weigh is None:
        return torch.full_like(measure_B, 1 / part.batch.total)
    return part.weigh(measure_B.detach())
