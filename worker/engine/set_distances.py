"""FID and KID of two independent sets of features, as torchmetrics computes them, in float64.

The library is imported where it is asked: it takes two seconds, and most launches of the engine ask for no such figure.
Features come from `metric_networks`, a fixed number of images at a time: of batches of other sizes come other features, so the
library is not given images.

Shapes: N real items, M drawn items, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worker.engine.statistics import Floats

SUBSETS = 100
SUBSET_SIZE = 1000
"""Of KID, as in the paper's code and the library; fewer items where a set has fewer."""


class _AsGiven(nn.Module):
    """In place of a network: what it is given are features already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features_ND: Tensor) -> Tensor:
        return features_ND


def fid(real_ND: Floats, drawn_MD: Floats) -> float:
    """Squared Frechet distance of two Gaussians with the sets' moments. Raises: ValueError for fewer than two items a set.

    Source: Heusel et al. 2017, arXiv:1706.08500.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    _require_two(real_ND, drawn_MD)
    metric = FrechetInceptionDistance(feature=_AsGiven(real_ND.shape[1])).set_dtype(torch.float64)
    metric.update(torch.from_numpy(real_ND), real=True)
    metric.update(torch.from_numpy(drawn_MD), real=False)
    return float(metric.compute())


def subset_size(real_ND: Floats, drawn_MD: Floats) -> int:
    """Items of each set that a subset has."""
    return min(SUBSET_SIZE, len(real_ND), len(drawn_MD))


def kid(real_ND: Floats, drawn_MD: Floats, seed: int) -> tuple[float, float]:
    """Mean and standard deviation over random subsets of the squared MMD with the kernel (x . y / D + 1)^3, each unbiased.

    Args:
        seed: of the subsets.

    Raises:
        ValueError: fewer than two items a set.

    Source: Binkowski et al. 2018, arXiv:1801.01401.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    _require_two(real_ND, drawn_MD)
    metric = KernelInceptionDistance(
        feature=_AsGiven(real_ND.shape[1]), subsets=SUBSETS, subset_size=subset_size(real_ND, drawn_MD)
    ).set_dtype(torch.float64)
    metric.update(torch.from_numpy(real_ND), real=True)
    metric.update(torch.from_numpy(drawn_MD), real=False)
    with torch.random.fork_rng(devices=[]):  # the library draws subsets by torch's global numbers
        torch.manual_seed(seed)
        mean, spread = metric.compute()
    return float(mean), float(spread)


def _require_two(real_ND: Floats, drawn_MD: Floats) -> None:
    if min(len(real_ND), len(drawn_MD)) < 2:
        raise ValueError(f"expected at least two items of a set, got {len(real_ND)} and {len(drawn_MD)}")
