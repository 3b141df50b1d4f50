"""A UNet of about 17,000 parameters that fills holes in 8x8 grey images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel

from tests.worker.engine.tiny import Case

SIDE = 8


def tiny_unet(channels: int = 1, **changes: Any) -> UNet2DModel:
    """Seeded; dropout is on, as it may be in a folder."""
    torch.manual_seed(3)
    settings = {
        "sample_size": SIDE,
        "in_channels": 2 * channels,
        "out_channels": channels,
        "layers_per_block": 1,
        "block_out_channels": (8, 8),
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
        "add_attention": False,
        "dropout": 0.3,
    }
    return UNet2DModel(**(settings | changes))


def write_model(directory: Path, unet: UNet2DModel | None = None) -> None:
    """A plain diffusers folder."""
    (unet or tiny_unet()).save_pretrained(directory)
    DDPMScheduler().save_pretrained(directory)


CASE = Case(write_model, 1, SIDE)
