"""aMUSEd's network over tokens, as diffusers has it: a U-shaped transformer that is asked with a prompt, here the empty one.

    ids, the mask's where hidden -> embed -> down_block -> transformer_layers -> taps
    taps -> up_block -> mlm_layer -> logits over the codebook

The encoder is given every token, hidden ones as the mask. What the prompt and the image's size become (`encoder_proj`,
`cond_embed`) both halves read, so it is frozen.

Shape suffixes: B images, L tokens of an image, row by row; T tokens of a prompt, D width, P width of the pooled prompt; V
codes; h, w tokens as the network samples them down.
Source: Patil et al. 2024, "aMUSEd: An Open MUSE Reproduction", arXiv:2401.01808; diffusers' pipeline for how it is asked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UVit2DModel
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from worker.engine import weights
from worker.engine.errors import BadModel, is_out_of_memory
from worker.engine.prompts import TEXT, TOKENIZER, token_ids

SCHEDULER = Path("scheduler")

ENCODER = ("embed", "down_block", "project_to_hidden_norm", "project_to_hidden", "transformer_layers")
SHARED = ("cond_embed", "encoder_proj", "encoder_proj_layer_norm")

TEMPERATURE = 2.0
"""Of diffusers' pipeline."""

AESTHETIC_SCORE = 6
"""Of the pipeline: what it says of every image that it draws."""


# -------------------------------------------------------------------------------------------------------------- the network


def config_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """Raises: BadModel when it is not a `UVit2DModel`'s."""
    if document.get("_class_name") != "UVit2DModel":
        raise BadModel(f"expected a diffusers UVit2DModel in transformer/, found {document.get('_class_name')!r}")
    return dict(document)


def require_grid(config: Mapping[str, Any]) -> int:
    """Tokens of a side. Raises: BadModel when the network would not answer as many tokens as it is asked about."""
    side, down, up = config["sample_size"], bool(config["downsample"]), bool(config["upsample"])
    if not isinstance(side, int) or isinstance(side, bool) or side < 2:
        raise BadModel(f"expected sample_size, the tokens of a side, to be one number of at least 2, found {side!r}")
    if down != up or (down and side % 2):
        raise BadModel(
            "expected a transformer that answers as many tokens as it is asked about, found downsample "
            f"{down}, upsample {up} on {side} tokens of a side"
        )
    return side


def built(config: Mapping[str, Any]) -> UVit2DModel:
    """Newly initialised, in float32. Raises: BadModel."""
    try:
        return UVit2DModel.from_config(config).float()
    except Exception as error:  # a stranger's values: what they break is not foreseeable
        if is_out_of_memory(error):
            raise
        raise BadModel(f"diffusers cannot build this transformer: {type(error).__name__}: {error}") from error


def encode(network: UVit2DModel, shown_BL: Tensor, prompt_BTD: Tensor, pooled_BP: Tensor, size_B5: Tensor) -> list[Tensor]:
    """See `halves.Encode`: what the last transformer layer says, (B, L, D); of a network that samples down, (B, L / 4, D).

    `UVit2DModel` has no way to be asked for it, so its modules are, in the order in which its `forward` asks them.

    Args:
        shown_BL: int64 ids.
        prompt_BTD, pooled_BP, size_B5: as `beside` gives them.
    """
    prompt_BTD = network.encoder_proj_layer_norm(network.encoder_proj(prompt_BTD))
    pooled_BP = network.cond_embed(_with_size(network, pooled_BP, size_B5)).to(prompt_BTD.dtype)
    x_BDhw = network.embed(_square(shown_BL))
    x_BDhw = network.down_block(
        x_BDhw, pooled_text_emb=pooled_BP, encoder_hidden_states=prompt_BTD, cross_attention_kwargs=None
    )
    x_BLD = network.project_to_hidden(network.project_to_hidden_norm(x_BDhw.flatten(2).transpose(1, 2)))
    for layer in network.transformer_layers:
        x_BLD = layer(x_BLD, encoder_hidden_states=prompt_BTD, added_cond_kwargs={"pooled_text_emb": pooled_BP})
    return [x_BLD]


def answer(network: UVit2DModel, shown_BL: Tensor, prompt_BTD: Tensor, pooled_BP: Tensor, size_B5: Tensor) -> Tensor:
    """See `halves.Answer`: (B, L, V) logits of every token."""
    logits_BVhw: Tensor = network(_square(shown_BL), prompt_BTD, pooled_BP, size_B5)
    return logits_BVhw.flatten(2).transpose(1, 2)


def hidden(length: int, u_B: Tensor) -> Tensor:
    """(B,) int64 how many of `length` tokens training hides, some and not all: the cosine of uniform numbers in [0, 1)."""
    return (torch.cos(u_B * (math.pi / 2)) * length).ceil().long().clamp(1, length - 1)


def mask_id(directory: Path, config: Mapping[str, Any]) -> int:
    """The id of a hidden token: what the scheduler's file says, without one the last word. Raises: BadModel."""
    words, codes = config["vocab_size"], config["codebook_size"]
    file = directory / SCHEDULER / "scheduler_config.json"
    found = weights.read_json(file).get("mask_token_id") if file.is_file() else words - 1
    if not isinstance(found, int) or isinstance(found, bool) or not codes <= found < words:
        raise BadModel(f"expected a mask_token_id from {codes}, the first that is no code, to {words - 1}, found {found!r}")
    return found


def _with_size(network: UVit2DModel, pooled_BP: Tensor, size_B5: Tensor) -> Tensor:
    """(B, P + 5 widths): the pooled prompt, and the five numbers as waves."""
    width = network.config.micro_cond_encode_dim
    wave_ND = get_timestep_embedding(size_B5.flatten(), width, flip_sin_to_cos=True, downscale_freq_shift=0)
    return torch.cat([pooled_BP, wave_ND.reshape(len(size_B5), -1).to(pooled_BP.dtype)], dim=1)


def _square(shown_BL: Tensor) -> Tensor:
    side = math.isqrt(shown_BL.shape[1])
    return shown_BL.view(-1, side, side)


# --------------------------------------------------------------------------------------------------------------- the prompt


def beside(directory: Path, file: Path, config: Mapping[str, Any], *, pixels: int, device: torch.device) -> tuple[Tensor, ...]:
    """What a question has beside the tokens, one row on the device: the empty prompt (1, T, D), pooled (1, P), and (1, 5) the
    image's width and height, where it was cropped, and how good it is.

    The text encoder is asked here, once, and let go of.

    Args:
        file: the text encoder's weights, relative to `directory`.
        pixels: of a side of an image.

    Raises:
        BadModel: not a CLIP text encoder with a projection, no tokenizer that fits it, or one of another width than the network
            takes.
    """
    said = weights.read_json(directory / TEXT / "config.json")
    if said.get("model_type") != "clip_text_model":
        raise BadModel(f"expected model_type 'clip_text_model' in {TEXT}/config.json, found {said.get('model_type')!r}")
    try:
        encoder = CLIPTextModelWithProjection(CLIPTextConfig.from_dict(weights.network_values(said))).eval()
    except Exception as error:  # as above
        if is_out_of_memory(error):
            raise
        raise BadModel(f"transformers cannot build this text encoder: {type(error).__name__}: {error}") from error
    weights.load_into(encoder, directory / file)
    id_1T, _ = token_ids(directory / TOKENIZER, [""], encoder.config)
    with torch.no_grad():
        asked = encoder.to(device)(id_1T.to(device), output_hidden_states=True)
    prompt_1TD, pooled_1P = asked.hidden_states[-2].float(), asked.text_embeds.float()
    waves = 5 * int(config["micro_cond_encode_dim"])
    came = (prompt_1TD.shape[-1], pooled_1P.shape[-1], waves)
    wanted = (config["encoder_hidden_size"], config["cond_embed_dim"], config["micro_cond_embed_dim"])
    if came != wanted:
        raise BadModel(
            f"expected a text encoder of width {wanted[0]}, projecting to {wanted[1]}, and {wanted[2]} numbers of an image's "
            f"size, as the transformer takes, found {came[0]}, {came[1]} and {came[2]}"
        )
    size_15 = torch.tensor([[pixels, pixels, 0, 0, AESTHETIC_SCORE]], dtype=torch.float32, device=device)
    return prompt_1TD, pooled_1P, size_15
