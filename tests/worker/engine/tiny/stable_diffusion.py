"""A pipeline of about 60,000 parameters on 16x16 colour images, whose tokenizer knows single characters."""

from __future__ import annotations

import json
import string
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from tests.worker.engine.tiny import Case

SIDE = 16
LENGTH = 12
CHARACTERS = string.ascii_lowercase + string.digits
START, END = "<|startoftext|>", "<|endoftext|>"
TOKENS = (*CHARACTERS, *(c + "</w>" for c in CHARACTERS), START, END)


def tiny_unet(**changes: object) -> UNet2DConditionModel:
    """Seeded."""
    torch.manual_seed(3)
    settings = {
        "sample_size": SIDE // 2,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": 16,
    }
    return UNet2DConditionModel(**(settings | changes))


def tiny_vae() -> AutoencoderKL:
    """Seeded; two pixels to a latent cell."""
    torch.manual_seed(4)
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIDE,
    )


def tiny_text_encoder() -> CLIPTextModel:
    """Seeded, with weights large enough that prompts differ: freshly initialised ones are nearly the same."""
    torch.manual_seed(5)
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(TOKENS),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=LENGTH,
            bos_token_id=TOKENS.index(START),
            eos_token_id=TOKENS.index(END),
        )
    )
    with torch.no_grad():
        encoder.get_input_embeddings().weight.normal_()
    return encoder


def write_tokenizer(folder: Path) -> None:
    """The files of a published tokenizer, with a vocabulary of single characters and no merges."""
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(TOKENS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_model(directory: Path, unet: UNet2DConditionModel | None = None) -> None:
    """The folder layout of the public Stable Diffusion 1.x, without a safety checker."""
    (unet or tiny_unet()).save_pretrained(directory / "unet")
    tiny_vae().save_pretrained(directory / "vae")
    tiny_text_encoder().save_pretrained(directory / "text_encoder")
    write_tokenizer(directory / "tokenizer")
    PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    ).save_pretrained(directory / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (directory / "model_index.json").write_text(json.dumps(index))


CASE = Case(write_model, 3, SIDE)
