from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from worker.engine.image_quality import psnr, ssim

everywhere = torch.ones(2, 1, 32, 32, dtype=torch.bool)


def images(seed: int, channels: int = 3) -> torch.Tensor:
    smooth = gaussian_filter(np.random.default_rng(seed).uniform(0, 255, (2, channels, 32, 32)), (0, 0, 1, 1))
    return torch.from_numpy(smooth).round().to(torch.uint8)


def test_psnr_of_a_constant_error() -> None:
    a = torch.full((2, 3, 32, 32), 100, dtype=torch.uint8)
    assert psnr(a, a + 16, everywhere).tolist() == pytest.approx([20 * math.log10(255 / 16)] * 2)
    assert psnr(a, a, everywhere).tolist() == [100, 100]


def test_only_hidden_pixels_count() -> None:
    a, b = images(0), images(1)
    half = torch.zeros(2, 1, 32, 32, dtype=torch.bool)
    half[:, :, :16] = True
    changed = b.clone()
    changed[:, :, 22:] = 0  # further from the hole than half a window
    assert torch.equal(psnr(a, b, half), psnr(a, changed, half))
    assert torch.equal(ssim(a, b, half), ssim(a, changed, half))
    assert not torch.equal(ssim(a, b, everywhere), ssim(a, changed, everywhere))


def test_ssim_is_that_of_the_paper() -> None:
    """Against an independent computation inside the image: scipy's Gaussian of 11 pixels, population covariance."""
    a, b = images(2), images(3)
    x, y = a.double().numpy(), b.double().numpy()

    def blurred(z: np.ndarray) -> np.ndarray:
        return gaussian_filter(z, (0, 0, 1.5, 1.5), truncate=5 / 1.5)

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mx, my = blurred(x), blurred(y)
    vx, vy, cxy = blurred(x * x) - mx**2, blurred(y * y) - my**2, blurred(x * y) - mx * my
    expected = (2 * mx * my + c1) * (2 * cxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    inside = torch.zeros(2, 1, 32, 32, dtype=torch.bool)
    inside[:, :, 5:-5, 5:-5] = True
    assert ssim(a, b, inside).tolist() == pytest.approx(expected[:, :, 5:-5, 5:-5].mean(axis=(1, 2, 3)).tolist(), abs=1e-6)


def test_ssim_of_equal_images_is_1_and_of_any_size() -> None:
    a = images(4)
    assert ssim(a, a, everywhere).tolist() == pytest.approx([1, 1])
    small = a[:, :, :6, :6]
    assert ssim(small, small, everywhere[:, :, :6, :6]).tolist() == pytest.approx([1, 1])
    assert float(ssim(small, 255 - small, everywhere[:, :, :6, :6]).max()) < 0.5
