"""Saliency by gradient: which weights the images to forget pull at most.

Letters: g summed gradient of the forget loss, m mask, P trainable weights.
Source: Fan et al. 2024 (SalUn), arXiv:2310.12508, its weight saliency map, as a share of all weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from worker.engine.errors import BadInput, Diverged
from worker.engine.run import Run
from worker.engine.streams import Stream


def mean_gradient(run: Run, stream: Stream, *, batch_size: int, samples: int) -> list[Tensor]:
    """The gradient of the native loss's mean over at most `samples` items of a stream, at the weights as they are.

    Whole batches are dealt out to the ranks; every rank gets the same answer, shaped like `run.parameters`.

    Raises:
        Diverged: it is not finite; on every rank.
        OutOfMemory: not even one row fits.
    """
    chosen = stream.stratified(min(samples, len(stream.indices_N)))
    order_N = chosen.indices_N[torch.randperm(len(chosen.indices_N), generator=chosen.generator("order"))]
    batches = torch.split(order_N, batch_size)
    total = [torch.zeros_like(p) for p in run.parameters]
    for i, index_B in enumerate(batches):
        if i % run.ranks.world == run.ranks.rank:
            batch = run.plain(index_B, chosen.generator("saliency", i))
            torch._foreach_add_(total, run.gradients.alone(batch, weight=1 / len(order_N)))
        run.preparing(i + 1, len(batches))
    for gradient in total:
        run.ranks.sum_(gradient)
    if not bool(torch.isfinite(torch.nn.utils.get_total_norm(total))):
        raise Diverged("the gradient of the forget loss is not finite; no weight was changed", step=0, loss=float("nan"))
    return total


def top(gradients: Sequence[Tensor], ratio: float) -> list[Tensor]:
    """Bool masks, shaped like the gradients: True for the `ratio` of all weights with the largest |g|.

    Weights that tie with the last one are in; weights without any gradient are not, so fewer may be chosen.

    Raises:
        BadInput: no weight has a gradient.
    """
    size_P = torch.cat([g.abs().flatten() for g in gradients])
    keep = max(1, round(ratio * len(size_P)))
    threshold = size_P.kthvalue(len(size_P) - keep + 1).values  # selection, not sorting: linear in P
    masks = [(g.abs() >= threshold) & (g != 0) for g in gradients]
    if not any(bool(m.any()) for m in masks):
        raise BadInput("expected the images to forget to pull at some weight, found a gradient of exactly zero")
    return masks
