"""A UNet of about 17,000 parameters on 8x8 grey images."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DModel

from tests.worker.engine.tiny import NAMES, Case

SIDE = 8


def tiny_unet(rows: int = len(NAMES) + 1, channels: int = 1) -> UNet2DModel:
    """Seeded."""
    torch.manual_seed(3)
    return UNet2DModel(
        sample_size=SIDE,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        add_attention=False,
        num_class_embeds=rows,
    )


def write_model(directory: Path, unet: UNet2DModel | None = None) -> None:
    """A plain diffusers folder."""
    (unet or tiny_unet()).save_pretrained(directory)
    DDPMScheduler().save_pretrained(directory)


CASE = Case(write_model, 1, SIDE)
