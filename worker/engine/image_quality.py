"""How near completed pixels come to the true ones: PSNR and SSIM of the hidden part. Reported, never gated on.

Shape suffixes: N images, B some of them, C channels, H, W pixels, R = B C planes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

PEAK = 255.0
MOST = 100.0
"""dB: of equal images, whose PSNR would be infinite."""
WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03
AT_A_TIME = 64


def psnr(images_NCHW: Tensor, truth_NCHW: Tensor, covered_N1HW: Tensor) -> Tensor:
    """(N,) float64 dB, 10 log10(255^2 / mean squared error) over the hidden pixels, at most 100.

    Args:
        images_NCHW, truth_NCHW: uint8.
        covered_N1HW: bool, True where a pixel is hidden.
    """
    error_NCHW = (images_NCHW.double() - truth_NCHW.double()).square()
    mean_N = _mean_where(error_NCHW, covered_N1HW)
    return (10 * (PEAK**2 / mean_N.clamp_min(1e-12)).log10()).clamp(max=MOST)


def ssim(images_NCHW: Tensor, truth_NCHW: Tensor, covered_N1HW: Tensor) -> Tensor:
    """(N,) float64 in [-1, 1]: the structural similarity at the hidden pixels, on average over them and over channels.

    A Gaussian window of 11x11 pixels and standard deviation 1.5, K1 = .01, K2 = .03, as in the paper. A window near a border of
    the hole sees visible pixels, too, which are equal. Where we differ: a window that reaches over the border of the image is
    cut off there, and its weights sum to 1 again, so that every pixel and images of any size have a value.

    Source: Wang, Bovik, Sheikh & Simoncelli 2004, "Image quality assessment: from error visibility to structural similarity",
    IEEE Trans. Image Processing 13(4), eq. (13).
    """
    parts = zip(*(t.split(AT_A_TIME) for t in (images_NCHW, truth_NCHW, covered_N1HW)), strict=True)
    return torch.cat([_mean_where(_ssim_map(a.double(), b.double()), covered) for a, b, covered in parts])


def _ssim_map(a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
    c1, c2 = (K1 * PEAK) ** 2, (K2 * PEAK) ** 2
    mean_a, mean_b = _blurred(a_BCHW), _blurred(b_BCHW)
    var_a, var_b = _blurred(a_BCHW.square()) - mean_a.square(), _blurred(b_BCHW.square()) - mean_b.square()
    covariance = _blurred(a_BCHW * b_BCHW) - mean_a * mean_b
    light = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    return light * (2 * covariance + c2) / (var_a + var_b + c2)


def _blurred(x_BCHW: Tensor) -> Tensor:
    """Means under the window, of the pixels that it finds."""
    planes_R1HW = x_BCHW.flatten(0, 1)[:, None]
    window_11 = _window(x_BCHW.device)
    blurred_R1HW = F.conv2d(planes_R1HW, window_11, padding=WINDOW // 2)
    weight_11HW = F.conv2d(torch.ones_like(planes_R1HW[:1]), window_11, padding=WINDOW // 2)
    return (blurred_R1HW / weight_11HW).view_as(x_BCHW)


def _window(device: torch.device) -> Tensor:
    at = torch.arange(WINDOW, dtype=torch.float64, device=device) - WINDOW // 2
    line = torch.exp(-at.square() / (2 * SIGMA**2))
    plane = torch.outer(line, line)
    return (plane / plane.sum())[None, None]


def _mean_where(values_NCHW: Tensor, covered_N1HW: Tensor) -> Tensor:
    weight_NCHW = covered_N1HW.expand_as(values_NCHW).double()
    return (values_NCHW * weight_NCHW).sum(dim=(1, 2, 3)) / weight_NCHW.sum(dim=(1, 2, 3))
