"""Tokenizers and masked transformers over their tokens, by default of about 15,000 parameters on 16 tokens of 8x8 grey images.

The functions take any size, so that larger models can be built, trained and written with them, too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import UVit2DModel, VQModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from tests.worker.engine.tiny import Case
from tests.worker.engine.tiny.stable_diffusion import END, LENGTH, START, TOKENS, write_tokenizer
from worker.engine.token_transformer import TokenTransformer, TransformerConfig

SIDE = 8
CODES = 16
WIDTH = 16


def vq_model(**changes: Any) -> VQModel:
    """Seeded; two pixels to a token for every entry of `block_out_channels` but the last."""
    torch.manual_seed(4)
    channels = changes.get("block_out_channels", (8, 8))
    values = {
        "in_channels": 1,
        "out_channels": changes.get("in_channels", 1),
        "block_out_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * len(channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(channels),
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "num_vq_embeddings": CODES,
        "mid_block_add_attention": False,
        "sample_size": SIDE,
    }
    return VQModel(**(values | changes)).eval()


@torch.no_grad()
def take_codes_from(vq: VQModel, x_BCHW: Tensor) -> None:
    """Make the codebook of latents of these inputs, evenly spaced among them, so that all codes are in use at the start."""
    latent_ND = vq.encode(x_BCHW).latents.permute(0, 2, 3, 1).flatten(0, 2)
    codes = vq.quantize.embedding.weight
    codes.copy_(latent_ND[torch.linspace(0, len(latent_ND) - 1, len(codes)).long()])


def tiny_vq(**changes: Any) -> VQModel:
    """With a codebook of latents of random images."""
    vq = vq_model(**changes)
    noise = torch.rand(64, vq.config.in_channels, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    take_codes_from(vq, 2 * noise - 1)
    return vq


def transformer(**changes: Any) -> TokenTransformer:
    """Seeded, newly initialised."""
    values = {
        "codebook_size": CODES,
        "sample_size": SIDE // 2,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "decoder_hidden_size": WIDTH,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 32,
    }
    torch.manual_seed(3)
    return TokenTransformer(TransformerConfig(**(values | changes))).eval()


def tiny_transformer(**changes: Any) -> TokenTransformer:
    """With weights large enough that images differ: freshly initialised ones make them all but the same."""
    network = transformer(**changes)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)
    return network


def write_model(directory: Path, network: TokenTransformer | None = None, vq: VQModel | None = None) -> None:
    """A folder of the family's own layout."""
    network = network or tiny_transformer()
    (vq or tiny_vq()).save_pretrained(directory / "vqvae")
    folder = directory / "transformer"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(network.config.model_dump(), indent=2))
    tensors = {name: t.detach().clone().contiguous() for name, t in network.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


# ------------------------------------------------------------------------------------------------------------------ aMUSEd


def tiny_uvit(**changes: Any) -> UVit2DModel:
    """Seeded, with larger weights, as above. Dropout is on, as it may be in a folder."""
    values = {
        "hidden_size": WIDTH,
        "hidden_dropout": 0.3,
        "cond_embed_dim": 12,
        "micro_cond_encode_dim": 4,
        "micro_cond_embed_dim": 20,
        "encoder_hidden_size": 16,
        "vocab_size": CODES + 2,
        "codebook_size": CODES,
        "in_channels": 8,
        "block_out_channels": 8,
        "num_res_blocks": 1,
        "block_num_heads": 2,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "sample_size": SIDE // 2,
    }
    torch.manual_seed(3)
    return UVit2DModel(**(values | changes)).eval()


def tiny_text_encoder(**changes: Any) -> CLIPTextModelWithProjection:
    """Seeded."""
    values = {
        "vocab_size": len(TOKENS),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": LENGTH,
        "projection_dim": 12,
        "bos_token_id": TOKENS.index(START),
        "eos_token_id": TOKENS.index(END),
    }
    torch.manual_seed(5)
    encoder = CLIPTextModelWithProjection(CLIPTextConfig(**(values | changes))).eval()
    with torch.no_grad():
        encoder.get_input_embeddings().weight.normal_()
    return encoder


def write_amused(directory: Path, network: UVit2DModel | None = None, text: CLIPTextModelWithProjection | None = None) -> None:
    """The folder layout of the public aMUSEd models."""
    tiny_vq(lookup_from_codebook=True).save_pretrained(directory / "vqvae")
    (network or tiny_uvit()).save_pretrained(directory / "transformer")
    (text or tiny_text_encoder()).save_pretrained(directory / "text_encoder")
    write_tokenizer(directory / "tokenizer")
    scheduler = {"_class_name": "AmusedScheduler", "mask_token_id": CODES + 1, "masking_schedule": "cosine"}
    (directory / "scheduler").mkdir()
    (directory / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = {
        "_class_name": "AmusedPipeline",
        "scheduler": ["diffusers", "AmusedScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "transformer": ["diffusers", "UVit2DModel"],
        "vqvae": ["diffusers", "VQModel"],
    }
    (directory / "model_index.json").write_text(json.dumps(index))


CASE = Case(write_model, 1, SIDE)
