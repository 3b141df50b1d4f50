from __future__ import annotations

import pytest
import torch

from worker.engine.references import harmonic, nearest


def covered(rows: slice, columns: slice, *, count: int = 1, side: int = 8) -> torch.Tensor:
    mask = torch.zeros(count, 1, side, side, dtype=torch.bool)
    mask[:, :, rows, columns] = True
    return mask


def test_a_linear_ramp_is_harmonic_and_is_filled_exactly() -> None:
    x_1CHW = (20 * torch.arange(8)).to(torch.uint8).expand(1, 3, 8, 8).contiguous()
    filled = harmonic(x_1CHW, covered(slice(2, 6), slice(2, 6)))
    assert torch.equal(filled, x_1CHW)


def test_a_hidden_pixel_is_the_mean_of_its_neighbours() -> None:
    x = torch.zeros(1, 1, 3, 3, dtype=torch.uint8)
    x[0, 0, 0, 1], x[0, 0, 1, 0], x[0, 0, 1, 2], x[0, 0, 2, 1] = 10, 20, 30, 80
    mask = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    mask[0, 0, 1, 1] = True
    assert harmonic(x, mask)[0, 0, 1, 1] == 35
    corner = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    corner[0, 0, 0, 0] = True
    assert harmonic(x, corner)[0, 0, 0, 0] == 15  # two neighbours: the slope is zero where the image ends


@pytest.mark.parametrize("fill", ["harmonic", "nearest"])
def test_what_is_hidden_is_not_looked_at_and_what_is_visible_is_kept(fill: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=generator)
    mask = torch.rand(5, 1, 8, 8, generator=generator) < 0.5  # another mask for each
    others = torch.randint(0, 256, (1100, 3, 8, 8), dtype=torch.uint8, generator=generator)

    def made(images: torch.Tensor) -> torch.Tensor:
        return harmonic(images, mask) if fill == "harmonic" else nearest(images, mask, others)

    filled = made(x)
    assert torch.equal(torch.where(mask, 0, filled), torch.where(mask, 0, x))
    assert torch.equal(made(torch.where(mask, 0, x)), filled)
    assert not torch.equal(filled, x)


def test_the_nearest_image_is_that_of_the_visible_part_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    others = torch.randint(0, 256, (1100, 1, 8, 8), dtype=torch.uint8, generator=generator)  # more than a chunk
    mask = covered(slice(0, 4), slice(0, 8), count=2)
    x = others[[3, 1050]].clone()
    x[:, :, :4] = 255 - x[:, :, :4]  # nothing alike where it is hidden
    filled = nearest(x, mask, others)
    assert torch.equal(filled[:, :, :4], others[[3, 1050], :, :4])
