"""Gradients within the memory there is: of whole batches, of their pieces, by many ranks.

`together` is an update's, in which all ranks take part; `alone` is one rank's own, which moves no weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from worker.engine import sharding
from worker.engine.batch import Batch, Part
from worker.engine.distributed import Ranks
from worker.engine.errors import BadInput, OutOfMemory, is_out_of_memory
from worker.engine.events import Events
from worker.engine.family import Family
from worker.engine.method import Params
from worker.engine.precision import resolve


@dataclass
class Gradients:
    """How a network's gradients are taken on this rank among its peers.

    Raises: BadInput when each of several ranks would take BatchNorm statistics of its own.
    """

    family: Family
    module: nn.Module
    """The network to call: `family.module` (sharded or not), or its distributed wrapper."""
    ranks: Ranks
    params: Params
    events: Events
    micro: int | None = None
    """Rows of a micro-batch of an update once a whole batch did not fit, else None. The same on every rank."""
    _micro_alone: int | None = field(init=False, default=None)
    """The same for `alone`, of this rank's own."""
    _rehearsed: set[tuple[int, ...]] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self.precision = resolve(self.params.precision, self.ranks.device)
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

    def autocast(self) -> AbstractContextManager[None]:
        """The precision of forward passes."""
        return torch.autocast(self.ranks.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def clear(self) -> None:
        """Forget what earlier passes left in `.grad`, of every parameter, whichever an optimizer moves."""
        self.family.module.zero_grad(set_to_none=True)

    # ------------------------------------------------------------------------------------------------- this rank on its own

    def alone(self, batch: Batch, *, weight: float) -> list[Tensor]:
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

    # ------------------------------------------------------------------------------------------------------- all together

    def together(self, parts: Sequence[Part]) -> Tensor:
        """Leave the gradients of the objective, its mean over ranks, in `.grad`; returns the objective of this rank, detached.

        A batch that does not fit is halved until it does; the global batch stays what it was.

        Raises:
            OutOfMemory: not even one row fits, or one of several ranks ran out, or the batch may not be halved because
                statistics of BatchNorm are taken of it.
        """
        self.clear()
        while True:
            try:
                if self.ranks.world > 1:
                    self._rehearse(parts)
                return self._accumulate(parts)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.ranks.world > 1:  # the others wait in a collective for gradients that will not come
                    raise OutOfMemory(
                        f"one of {self.ranks.world} ranks ran out of memory in the middle of an update; expected what fitted "
                        "before to fit again"
                    ) from error
            self._halve(parts)

    def _rehearse(self, parts: Sequence[Part]) -> None:
        """Find, once for every shape of update, the micro-batch that fits on every one of several ranks.

        On their own weights, without the others: a rank that ran out inside a collective would leave them waiting. Only
        where memory can run out in a way that a process survives, that is, on accelerators.
        """
        shape = tuple(sorted(p.batch.total for p in parts))
        if self.ranks.device.type == "cpu" or shape in self._rehearsed:
            return
        self._rehearsed.add(shape)
        if self.sharded:
            self._foresee(parts)
            return
        while True:
            try:
                self._accumulate(parts, alone=True)
                short = False
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                short = True
            self.clear()
            if not self.ranks.any(short):
                break
            self._halve(parts)

    def _foresee(self, parts: Sequence[Part]) -> None:
        """The micro-batch of a sharded network, by arithmetic from passes of one and of two rows.

        No rank can rehearse alone there, and none may run out while the others wait: nothing is tried that might not fit.
        """
        before, self.micro, peaks = self.micro, None, []
        for rows in (slice(1), slice(2)):
            pieces = [replace(p, batch=p.batch.part(rows), weigh=None) for p in parts]
            with sharding.peak(self.ranks.device) as peak:
                self._accumulate(pieces)
            peaks.append(peak())
            self.clear()
        fitting = sharding.rows_that_fit(*peaks, limit=sharding.limit(self.ranks.device, self.parameters))
        rows_short = self.ranks.max_(torch.tensor(-fitting, device=self.ranks.device))
        self.micro, fitting, largest = before, -int(rows_short), max(self._most_rows(p.batch) for p in parts)
        if fitting < min(before or largest, largest):
            self.micro = fitting
            self.events.note({"micro_batch": self.micro})

    def _halve(self, parts: Sequence[Part]) -> None:
        largest = max(len(p.batch.y_B) for p in parts)
        if self.moves_statistics:  # of pieces they are others, and the try that failed has moved them already
            raise OutOfMemory(
                f"the device ran out of memory on a batch of {largest} images, and batch_norm 'train' needs the whole batch at "
                "once; expected a smaller batch_size, or batch_norm 'frozen'"
            )
        self.clear()
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
                    w_B = weights_B[rows] if weights_B is not None else part.weights(measure_B)
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
        return part.weights(torch.cat(measures))

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
