"""Bytes of an image as a network wants them, and back: the normalisation that a model folder names, and mirroring.

Shape suffixes: B images, C channels, H, W pixels.
"""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from worker.engine import weights
from worker.engine.errors import BadModel
from worker.engine.family import Draw

PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class Normalisation:
    """(pixel / 255 - mean) / std, one mean and one std a channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        """Raises: BadModel when a pixel of [0, 1] would not be a float32 after it."""
        if min(self.std) <= 0:
            raise BadModel(f"expected standard deviations above 0, found {min(self.std)}")
        largest = max((abs(m) + 1) / s for m, s in zip(self.mean, self.std, strict=True))
        if largest > torch.finfo(torch.float32).max:
            raise BadModel(f"expected a mean and standard deviation that leave pixels finite, found pixels of {largest:.3g}")

    @property
    def plain(self) -> bool:
        """Does it leave pixels from 0 to 1 as they are?"""
        return set(self.mean) == {0.0} and set(self.std) == {1.0}

    @classmethod
    def read(cls, file: Path, channels: int) -> Self:
        """What a transformers preprocessor's file says; without a file .5 and .5. Raises: BadModel."""
        given = weights.read_json(file) if file.is_file() else {}
        rescale, normalize = (given.get(key, True) for key in ("do_rescale", "do_normalize"))
        if not isinstance(rescale, bool) or not isinstance(normalize, bool):
            raise BadModel(
                f"expected do_rescale and do_normalize true or false in {file.name}, found {rescale!r} and {normalize!r}"
            )
        factor = given.get("rescale_factor", 1 / 255)
        if not rescale or not _is_number(factor) or abs(factor - 1 / 255) > 1e-6:
            came = repr(factor) if rescale else "none"
            raise BadModel(f"expected pixels divided by 255, rescale_factor {1 / 255:.6f}, found {came} in {file.name}")
        if not normalize:
            return cls((0.0,) * channels, (1.0,) * channels)
        return cls(*(_one_a_channel(key, given.get(key, 0.5), channels, file.name) for key in ("image_mean", "image_std")))

    def constants(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(C, 1, 1) scale and shift on the device: x = pixel * scale + shift."""
        mean_C, std_C = torch.tensor(self.mean), torch.tensor(self.std)
        return (1 / (255 * std_C)).view(-1, 1, 1).to(device), (-mean_C / std_C).view(-1, 1, 1).to(device)


def mirrored(x_BCHW: Tensor, drawn: Draw) -> Tensor:
    """Images whose `flip` is set, left to right."""
    if "flip" not in drawn.tensors:
        return x_BCHW
    return torch.where(drawn["flip"].view(-1, 1, 1, 1), x_BCHW.flip(-1), x_BCHW)


def _is_number(value: object) -> bool:
    """Finite as float64; JSON's whole numbers may be larger than that."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _one_a_channel(key: str, value: Any, channels: int, where: str) -> tuple[float, ...]:
    values: Sequence[Any] = value if isinstance(value, list) else [value] * channels
    if len(values) != channels or not all(map(_is_number, values)):
        raise BadModel(f"expected {key} of {channels} finite numbers, one a channel, in {where}, found {reprlib.repr(value)}")
    return tuple(map(float, values))
