"""What is hidden of an image: masks over a grid of cells, made where their random numbers lie.

A mask follows from a `MaskSpec`, the grid and a few uniform numbers. Those are drawn on the CPU, for a whole global batch in
training and from an image's own seed in verification; the mask is made of them on the device. All masks of one spec on one
grid hide equally many cells, so that nothing that is computed from them changes its shape.

Shape suffixes: B images, n uniform numbers of a mask, L = h w cells, in rows; H, W pixels.
Source of the kinds: Li et al. 2024, arXiv:2402.00351 (centre hole, outpainting, strips); Saharia et al. 2022 (Palette),
arXiv:2111.05826 (boxes and brush strokes); He et al. 2022 (MAE), arXiv:2111.06377 (random patches). Where we differ: a brush
stroke is as wide as it takes to hide its share of the cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from worker.contract import MaskSpec
from worker.engine.errors import BadInput
from worker.engine.streams import generator

Grid = tuple[int, int]
"""(h, w) cells."""

STROKE_POINTS = 4
"""Corners of the path of a brush."""


def grid_of(size: Sequence[int], cell: int) -> Grid:
    """The cells of an image of (H, W) pixels. Raises: BadInput when it is smaller than a cell, or not of whole cells."""
    height, width = size
    if min(height, width) < cell:
        raise BadInput(f"expected images of at least one cell of {cell}x{cell} pixels, found {height}x{width}")
    if height % cell or width % cell:
        raise BadInput(f"expected images of whole cells of {cell}x{cell} pixels, found {height}x{width}")
    return height // cell, width // cell


def hidden_count(spec: MaskSpec, grid: Grid) -> int:
    """How many cells every mask of this spec hides. Raises: BadInput when it would hide everything, or nothing."""
    h, w = grid
    match spec.kind:
        case "center" | "box":
            count = math.prod(_rectangle(spec.ratio, grid))
        case "outpaint":
            count = h * w - math.prod(_rectangle(1 - spec.ratio, grid))
        case "strip":
            count = _nearest(h * spec.ratio) * w
        case "brush" | "random_patch":
            count = _nearest(h * w * spec.ratio)
    if not 0 < count < h * w:
        what = "all" if count else "none"
        raise BadInput(f"expected a mask that hides some of {h}x{w} cells, {spec.kind} at ratio {spec.ratio:g} hides {what}")
    return count


def numbers(spec: MaskSpec, grid: Grid) -> int:
    """n: the uniform numbers that one mask is made of."""
    h, w = grid
    return {"center": 0, "outpaint": 0, "strip": 1, "box": 2, "brush": 2 * STROKE_POINTS, "random_patch": h * w}[spec.kind]


def drawn(spec: MaskSpec, grid: Grid, count: int, source: torch.Generator) -> Tensor:
    """(count, n) float32 in [0, 1), on the CPU."""
    return torch.rand(count, numbers(spec, grid), generator=source)


def drawn_of_seeds(spec: MaskSpec, grid: Grid, seeds: Sequence[int]) -> Tensor:
    """(B, n) float32 in [0, 1), on the CPU; row i follows from the spec and `seeds[i]`, whichever the others are."""
    if not seeds:
        return torch.empty(0, numbers(spec, grid))
    return torch.cat([drawn(spec, grid, 1, generator(spec.seed, "mask", spec.kind, seed)) for seed in seeds])


def hidden(spec: MaskSpec, grid: Grid, u_Bn: Tensor) -> Tensor:
    """bool (B, h, w) on the device of the numbers: True where a cell is hidden. Raises: BadInput; see `hidden_count`."""
    count, (h, w) = hidden_count(spec, grid), grid
    match spec.kind:
        case "center":
            mask_Bhw = _placed(_rectangle(spec.ratio, grid), grid, torch.full((len(u_Bn), 2), 0.5, device=u_Bn.device))
        case "outpaint":
            mask_Bhw = ~_placed(_rectangle(1 - spec.ratio, grid), grid, torch.full((len(u_Bn), 2), 0.5, device=u_Bn.device))
        case "box":
            mask_Bhw = _placed(_rectangle(spec.ratio, grid), grid, u_Bn)
        case "strip":
            mask_Bhw = _strips(spec.ratio, grid, u_Bn)
        case "brush":
            mask_Bhw = _lowest(_from_stroke(grid, u_Bn), count).view(-1, h, w)
        case "random_patch":
            mask_Bhw = _lowest(u_Bn, count).view(-1, h, w)
    return mask_Bhw


def masks(spec: MaskSpec, grid: Grid, seeds: Sequence[int]) -> Tensor:
    """bool (B, h, w) on the CPU: one mask a seed, as verification asks for them."""
    return hidden(spec, grid, drawn_of_seeds(spec, grid, seeds))


def visible(hidden_Bhw: Tensor, count: int) -> Tensor:
    """int64 (B, L - count): the cells that are not hidden, ascending.

    Args:
        count: how many are hidden of every image; given, because to count them would be to wait for the device.
    """
    order_BL = hidden_Bhw.flatten(1).to(torch.uint8).argsort(dim=1, stable=True)
    return order_BL[:, : order_BL.shape[1] - count]


def pixels(hidden_Bhw: Tensor, cell: int) -> Tensor:
    """bool (B, 1, H, W): every cell as the pixels that it covers."""
    return hidden_Bhw.repeat_interleave(cell, dim=1).repeat_interleave(cell, dim=2)[:, None]


def require_one_each(images_BCHW: Tensor, hidden_Bhw: Tensor, seeds: Sequence[int], y_B: Tensor | None = None) -> None:
    """Raises: BadInput where an image lacks its mask, its seed or, where there are labels, its label."""
    counts = {"masks": len(hidden_Bhw), "seeds": len(seeds)} | ({} if y_B is None else {"labels": len(y_B)})
    if set(counts.values()) != {len(images_BCHW)}:
        came = ", ".join(f"{count} {what}" for what, count in {"images": len(images_BCHW), **counts}.items())
        raise BadInput(f"expected one of each for every image, found {came}")


def require_alike(hidden_Bhw: Tensor, grid: Grid) -> int:
    """How many cells each mask hides. Raises: BadInput for masks of another grid, of unequal size, or of all or no cells."""
    if hidden_Bhw.dtype != torch.bool or tuple(hidden_Bhw.shape[1:]) != grid:
        raise BadInput(f"expected masks bool (B, {grid[0]}, {grid[1]}), found {hidden_Bhw.dtype} {tuple(hidden_Bhw.shape)}")
    counts = hidden_Bhw.flatten(1).sum(1).unique().tolist()
    if len(counts) != 1 or not 0 < counts[0] < math.prod(grid):
        raise BadInput(f"expected masks that hide equally many of {grid[0]}x{grid[1]} cells, some and not all; found {counts}")
    return int(counts[0])


# ------------------------------------------------------------------------------------------------------------- the kinds


def _nearest(value: float) -> int:
    """Halves upwards: Python's own rounding would make 2.5 and 1.5 the same."""
    return math.floor(value + 0.5)


def _rectangle(share: float, grid: Grid) -> tuple[int, int]:
    """Rows and columns of the rectangle that is closest to this share of the grid and shaped like it."""
    side = math.sqrt(share)
    return _nearest(grid[0] * side), _nearest(grid[1] * side)


def _placed(sides: tuple[int, int], grid: Grid, u_B2: Tensor) -> Tensor:
    """bool (B, h, w): a rectangle whose first row and column are u of the ways that there are to place it."""
    inside = []
    for u_B, side, size in zip(u_B2.unbind(1), sides, grid, strict=True):
        first_B1 = (u_B * (size - side + 1)).long().clamp(max=size - side)[:, None]
        at_1n = torch.arange(size, device=u_B2.device)[None]
        inside.append((at_1n >= first_B1) & (at_1n < first_B1 + side))
    return inside[0][:, :, None] & inside[1][:, None, :]


def _strips(ratio: float, grid: Grid, u_B1: Tensor) -> Tensor:
    """bool (B, h, w): a strip along the top, the bottom, the left or the right; the last two where they hide as much."""
    h, w = grid
    rows, columns = _nearest(h * ratio), _nearest(w * ratio)
    sides_4hw = torch.zeros(4, h, w, dtype=torch.bool, device=u_B1.device)
    sides_4hw[0, :rows], sides_4hw[1, h - rows :] = True, True
    sides_4hw[2, :, :columns], sides_4hw[3, :, w - columns :] = True, True
    ways = 4 if rows * w == columns * h else 2
    return sides_4hw[(u_B1[:, 0] * ways).long().clamp(max=ways - 1)]


def _from_stroke(grid: Grid, u_Bn: Tensor) -> Tensor:
    """(B, L) squared distance, in cells, of every cell's middle from a path through random points."""
    h, w = grid
    size_2 = torch.tensor([h, w], dtype=u_Bn.dtype, device=u_Bn.device)
    points_Bp2 = u_Bn.view(-1, STROKE_POINTS, 2) * size_2
    y_h, x_w = (torch.arange(n, device=u_Bn.device, dtype=u_Bn.dtype) + 0.5 for n in grid)
    cells_L2 = torch.cartesian_prod(y_h, x_w).view(-1, 2)
    nearest_BL = torch.full((len(u_Bn), h * w), math.inf, device=u_Bn.device)
    for a_B2, b_B2 in zip(points_Bp2.unbind(1), points_Bp2.unbind(1)[1:], strict=False):
        along_B12, from_a_BL2 = (b_B2 - a_B2)[:, None], cells_L2 - a_B2[:, None]
        length_B1 = along_B12.square().sum(-1).clamp_min(1e-12)
        share_BL1 = ((from_a_BL2 * along_B12).sum(-1) / length_B1).clamp(0, 1)[..., None]
        nearest_BL = torch.minimum(nearest_BL, (from_a_BL2 - share_BL1 * along_B12).square().sum(-1))
    return nearest_BL


def _lowest(score_BL: Tensor, count: int) -> Tensor:
    """bool (B, L): the `count` lowest of each row; of equal ones the first."""
    order_BL = score_BL.argsort(dim=1, stable=True)
    return torch.zeros_like(score_BL, dtype=torch.bool).scatter_(1, order_BL[:, :count], True)
