"""Completions by what has never seen a class, to hold a model against that should not know it either.

A model that was retrained without a class still completes its images plausibly: it continues what it sees, with what it knows
of other classes. Two references do the same without a model. The harmonic fill continues the visible colours as smoothly as
can be, and has seen no image at all. The nearest image's fill copies what lies there in that image of other classes which looks
most like the visible part. A retrained model may do better than both. So they are a cautious stand-in for it: a model that does
no better than they do shows no knowledge of the class, and one that does better may yet have none.

Shape suffixes: N images, M candidates, C channels, H, W pixels, P = C H W.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import laplacian
from scipy.sparse.linalg import splu
from torch import Tensor

CHUNK = 512
"""Candidates that are compared at a time: a float32 copy of all of them may be larger than this machine."""


def harmonic(images_NCHW: Tensor, covered_N1HW: Tensor) -> Tensor:
    """uint8 (N, C, H, W): hidden pixels are the solution of Laplace's equation, every one the mean of its neighbours.

    At the border of the image the slope is zero. No hidden pixel is looked at.

    Args:
        images_NCHW: uint8.
        covered_N1HW: bool, True where a pixel is hidden; some and not all of each image.
    """
    alike: dict[bytes, list[int]] = {}
    for i, mask_HW in enumerate(covered_N1HW[:, 0].numpy()):
        alike.setdefault(mask_HW.tobytes(), []).append(i)
    filled_NCHW = images_NCHW.clone()
    for rows in alike.values():
        hidden_HW = covered_N1HW[rows[0], 0]
        known_RV = images_NCHW[rows][:, :, ~hidden_HW].flatten(0, 1).double().numpy()
        solved_RU = torch.from_numpy(_solved(hidden_HW.numpy(), known_RV)).round().clamp(0, 255).to(torch.uint8)
        part_RCHW = filled_NCHW[rows]
        part_RCHW[:, :, hidden_HW] = solved_RU.view(len(rows), images_NCHW.shape[1], -1)
        filled_NCHW[rows] = part_RCHW
    return filled_NCHW


def _solved(hidden_HW: NDArray[np.bool_], known_RV: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R, U) values of the U hidden pixels, for R sets of values of the V visible ones."""
    inside = hidden_HW.ravel()
    rows = _laplacian(*hidden_HW.shape)[inside]
    solved: NDArray[np.float64] = splu(rows[:, inside].tocsc()).solve(-rows[:, ~inside] @ known_RV.T).T
    return np.ascontiguousarray(solved)


@lru_cache(maxsize=4)
def _laplacian(height: int, width: int) -> Any:
    """(HW, HW) sparse: the graph of pixels and their four neighbours."""
    number_HW = np.arange(height * width).reshape(height, width)
    across, down = (number_HW[:, :-1], number_HW[:, 1:]), (number_HW[:-1], number_HW[1:])
    one, other = (np.concatenate([a.ravel(), b.ravel()]) for a, b in zip(across, down, strict=True))
    graph = coo_matrix((np.ones(len(one)), (one, other)), shape=(height * width,) * 2)
    return laplacian((graph + graph.T).tocsr()).tocsr()


def nearest(images_NCHW: Tensor, covered_N1HW: Tensor, candidates_MCHW: Tensor) -> Tensor:
    """uint8 (N, C, H, W): hidden pixels are those of the candidate that is nearest where the image can be seen.

    By the squared distance of visible pixels; of equal ones the first. No hidden pixel of the images is looked at.
    """
    visible_NP = (~covered_N1HW).expand_as(images_NCHW).flatten(1).float()
    image_NP = _scaled(images_NCHW) * visible_NP
    best_N = torch.full((len(images_NCHW),), torch.inf)
    which_N = torch.zeros(len(images_NCHW), dtype=torch.int64)
    for first in range(0, len(candidates_MCHW), CHUNK):
        there_MP = _scaled(candidates_MCHW[first : first + CHUNK])
        # |v (x - c)|^2 without v x^2, which is the same for every candidate.
        apart_NM = visible_NP @ there_MP.square().T - 2 * image_NP @ there_MP.T
        least_N, at_N = apart_NM.min(dim=1)
        which_N = torch.where(least_N < best_N, at_N + first, which_N)
        best_N = torch.minimum(best_N, least_N)
    return torch.where(covered_N1HW, candidates_MCHW[which_N], images_NCHW)


def _scaled(images_NCHW: Tensor) -> Tensor:
    """(N, P) in [-1, 1]."""
    return images_NCHW.flatten(1).float() / 127.5 - 1
