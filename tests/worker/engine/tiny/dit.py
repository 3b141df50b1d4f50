"""A diffusion transformer of about 16,000 parameters on the 4x4 latents of a tiny autoencoder of 8x8 grey images."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

from tests.worker.engine.tiny import NAMES, Case

SIDE = 8


def tiny_vae(channels: int = 1, latent_channels: int = 2) -> AutoencoderKL:
    """Seeded; halves a side."""
    torch.manual_seed(5)
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=SIDE,
        scaling_factor=0.7,
    )


def tiny_dit(classes: int = len(NAMES), *, learn_sigma: bool = True, layers: int = 2) -> DiTTransformer2DModel:
    """Seeded; every copy of the embedder is block 0's, as converted weights have it."""
    torch.manual_seed(3)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=2,
        out_channels=4 if learn_sigma else 2,
        num_layers=layers,
        sample_size=SIDE // 2,
        patch_size=2,
        num_embeds_ada_norm=classes,
    )
    first = transformer.transformer_blocks[0].norm1.emb.state_dict()
    for block in transformer.transformer_blocks:
        block.norm1.emb.load_state_dict(first)
    return transformer


def write_model(directory: Path, transformer: DiTTransformer2DModel | None = None) -> None:
    """As `DiTPipeline` saves it."""
    scheduler = DDIMScheduler(clip_sample=False)
    DiTPipeline(transformer or tiny_dit(), tiny_vae(), scheduler, id2label=dict(enumerate(NAMES))).save_pretrained(directory)


CASE = Case(write_model, 1, SIDE)
