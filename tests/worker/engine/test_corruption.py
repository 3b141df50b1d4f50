"""Masks: equally many cells for every image of a spec, where their names say, from their own numbers alone."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from worker.contract import MaskSpec
from worker.engine import corruption
from worker.engine.errors import BadInput

KINDS = get_args(MaskSpec.model_fields["kind"].annotation)
DRAWN = ("strip", "box", "brush", "random_patch")
"""Kinds that differ from image to image."""
SEEDS = list(range(20))


def masks(kind: str, ratio: float = 0.25, grid: tuple[int, int] = (8, 8), seed: int = 0) -> torch.Tensor:
    return corruption.masks(MaskSpec(kind=kind, ratio=ratio, seed=seed), grid, SEEDS)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", [(8, 8), (6, 10), (14, 14)])
@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.75])
def test_every_mask_of_a_spec_hides_as_many_cells_as_it_says(kind: str, grid: tuple[int, int], ratio: float) -> None:
    made = masks(kind, ratio, grid)
    assert made.shape == (len(SEEDS), *grid)
    assert made.dtype == torch.bool
    count = corruption.hidden_count(MaskSpec(kind=kind, ratio=ratio), grid)  # type: ignore[arg-type]
    assert made.flatten(1).sum(1).unique().tolist() == [count]
    assert abs(count / (grid[0] * grid[1]) - ratio) < 0.09  # a row of six is 1/6, and half of one may be too much


def test_a_centre_hole_leaves_exactly_the_cells_outside() -> None:
    made = masks("center", 0.25)[3]  # a quarter of 8x8 cells: 4x4, from the third row and column on
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2:6, 2:6] = True
    assert torch.equal(made, expected)
    kept = corruption.visible(made[None], 16)[0]
    assert kept.tolist() == [i for i in range(64) if not (2 <= i // 8 < 6 and 2 <= i % 8 < 6)]


def test_outpainting_leaves_the_rectangle_that_a_centre_hole_hides() -> None:
    assert torch.equal(masks("outpaint", 0.75), ~masks("center", 0.25))


def test_a_strip_lies_along_one_of_the_sides() -> None:
    seen = {tuple(map(tuple, m.tolist())) for m in masks("strip", 0.25)}
    sides = [torch.zeros(8, 8, dtype=torch.bool) for _ in range(4)]
    sides[0][:2], sides[1][6:], sides[2][:, :2], sides[3][:, 6:] = True, True, True, True
    assert seen == {tuple(map(tuple, m.tolist())) for m in sides}


def test_a_strip_of_another_size_is_not_taken_from_the_shorter_side() -> None:
    made = masks("strip", 0.25, grid=(4, 10))  # one row of 10 cells; 2 or 3 columns would be 8 or 12
    assert all(bool(m[0].all()) or bool(m[3].all()) for m in made)


def test_a_box_is_whole_and_comes_to_every_place() -> None:
    made = masks("box", 0.25, grid=(5, 5))  # 5 sqrt(1/4) = 2.5: 3x3, in 9 places
    corners = {tuple(torch.nonzero(m)[0].tolist()) for m in made}
    for mask, corner in ((m, torch.nonzero(m)[0]) for m in made):
        assert mask[corner[0] : corner[0] + 3, corner[1] : corner[1] + 3].all()
    assert len(corners) > 5


def test_a_brush_stroke_hangs_together() -> None:
    for mask in masks("brush", 0.25, grid=(12, 12)):
        reached, before = torch.zeros_like(mask), -1
        reached.view(-1)[mask.flatten().int().argmax()] = True
        while before != int(reached.sum()):
            before = int(reached.sum())
            around = torch.nn.functional.max_pool2d(reached[None, None].float(), 3, 1, 1)[0, 0] > 0
            reached = around & mask
        assert torch.equal(reached, mask)


@pytest.mark.parametrize("kind", DRAWN)
def test_a_mask_follows_from_its_own_seeds(kind: str) -> None:
    made = masks(kind)
    assert torch.equal(made, masks(kind))
    spec = MaskSpec(kind=kind, ratio=0.25)  # type: ignore[arg-type]
    assert torch.equal(corruption.masks(spec, (8, 8), [7])[0], made[7])  # whichever the others are
    assert len({tuple(m.flatten().tolist()) for m in made}) > 1
    assert not torch.equal(made, masks(kind, seed=1))


def test_no_seed_gives_no_mask() -> None:
    assert corruption.masks(MaskSpec(kind="box", ratio=0.5), (4, 4), []).shape == (0, 4, 4)


@pytest.mark.parametrize(
    ("kind", "ratio", "what"),
    [("center", 0.01, "none"), ("center", 0.95, "all"), ("strip", 0.1, "none"), ("random_patch", 0.99, "all"),
     ("brush", 0.01, "none"), ("outpaint", 0.99, "all"), ("box", 0.9, "all")],
)  # fmt: skip
def test_a_mask_that_hides_everything_or_nothing_is_refused(kind: str, ratio: float, what: str) -> None:
    with pytest.raises(BadInput, match=f"hides {what}"):
        masks(kind, ratio, grid=(4, 4))


def test_images_that_are_not_whole_cells_are_refused() -> None:
    assert corruption.grid_of((32, 16), 4) == (8, 4)
    with pytest.raises(BadInput, match="at least one cell of 4x4 pixels, found 3x8"):
        corruption.grid_of((3, 8), 4)
    with pytest.raises(BadInput, match="whole cells"):
        corruption.grid_of((10, 8), 4)


def test_a_cell_is_the_pixels_that_it_covers() -> None:
    pixels = corruption.pixels(torch.tensor([[[True, False], [False, False]]]), 3)
    assert pixels.shape == (1, 1, 6, 6)
    assert pixels[0, 0, :3, :3].all()
    assert int(pixels.sum()) == 9


def test_masks_that_are_not_alike_are_refused() -> None:
    one, two = masks("box", 0.25)[:1], masks("box", 0.5)[:1]
    assert corruption.require_alike(one, (8, 8)) == 16
    for wrong in (torch.cat([one, two]), torch.zeros_like(one), torch.ones_like(one), one[:, :4], one.float()):
        with pytest.raises(BadInput, match="expected masks"):
            corruption.require_alike(wrong, (8, 8))
