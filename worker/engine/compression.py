"""What people do to a published checkpoint to make it smaller: narrower numbers, or fewer of them. Does the class come back?

Weights are rounded and held in float32 again, so what is measured is what rounding does to the model, the same on every
machine, and not how some processor computes in narrow numbers.

Shape suffixes: R rows (output channels) of a weight, X all other axes.
Source: round to nearest with one scale a row is the plainest of quantisers (Jacob et al. 2018, arXiv:1712.05877); pruning by
magnitude over the whole network: Han et al. 2015, arXiv:1506.02626.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

Compression = Literal["none", "bf16", "fp16", "int8", "int4", "prune10", "prune30", "prune50"]
COMPRESSIONS: tuple[Compression, ...] = get_args(Compression)


@torch.no_grad()
def compress(module: nn.Module, how: Compression) -> None:
    """Round or zero the weights of a network, in place. Biases and what normalises are never quantised or pruned."""
    if how == "none":
        return
    if share := _SHARES.get(how):
        _prune(module, share)
        return
    for parameter in module.parameters():
        if how in _CASTS:
            parameter.copy_(parameter.to(_CASTS[how]))
        elif parameter.ndim >= 2:
            parameter.copy_(_nearest(parameter, _BITS[how]))
    for buffer in module.buffers():
        if how in _CASTS and buffer.is_floating_point():  # who saves in 16 bits saves BatchNorm's statistics in 16 bits
            buffer.copy_(buffer.to(_CASTS[how]))


_CASTS: Mapping[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
_BITS: Mapping[str, int] = {"int8": 8, "int4": 4}
_SHARES: Mapping[str, float] = {"prune10": 0.1, "prune30": 0.3, "prune50": 0.5}


def _nearest(weight: Tensor, bits: int) -> Tensor:
    """Symmetric, one scale an output channel: the row's largest magnitude is the largest number that the bits hold."""
    weight_RX, top = weight.flatten(1), 2 ** (bits - 1) - 1
    scale_R1 = (weight_RX.abs().amax(dim=1, keepdim=True) / top).clamp(min=torch.finfo(weight.dtype).tiny)
    return (weight_RX / scale_R1).round().clamp(-top, top).mul(scale_R1).view_as(weight)


def _prune(module: nn.Module, share: float) -> None:
    """Set the smallest weights of all matrices and kernels together to zero."""
    weights = [p for p in module.parameters() if p.ndim >= 2]
    magnitude_N = torch.cat([w.abs().flatten() for w in weights])
    count = int(share * len(magnitude_N))
    if count == 0:
        return
    threshold = magnitude_N.kthvalue(count).values
    for weight in weights:
        weight.masked_fill_(weight.abs() <= threshold, 0.0)
