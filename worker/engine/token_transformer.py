"""A transformer over the tokens of images, after MAGE: an encoder of some tokens, a decoder of all of them.

    ids -> [words + positions] of the kept ones -> blocks -> norm -> taps
    taps, back in their places, a mask vector in all others -> decoder blocks -> head -> logits over the codebook

A hidden token is one whose id nobody is shown. In training the encoder is not given the same number of tokens of every image,
all of them hidden; those that are hidden beyond that number come to it as the id of the mask. So questions have one shape
whichever share is hidden. Where an image is completed the encoder is given every position.

Where we differ from the published network: there is no dropout; a vector of its own stands for hidden tokens in the decoder,
not the encoder's first token; queries, keys and values have no bias; and the head has a matrix of its own, unless `tied_head`
says that it is the table of words, as published. Both halves read that table, and a decoder that is to stay as it is keeps it
from being trained.

Shape suffixes: B images, L tokens of an image, row by row, K of them given to the encoder, T = 1 + K or 1 + L, D width,
V codes.
Source: Li et al. 2023, "MAGE: MAsked Generative Encoder to Unify Representation Learning and Image Synthesis",
arXiv:2211.09117, section 3 and appendix; its shares of hidden tokens are the defaults.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from worker.engine.errors import BadModel, in_words

KIND = "token_transformer"

ENCODER = ("embed", "blocks", "norm")
TIED = ("embed.words",)
"""What both halves read where the head is the table of words."""

EPS = 1e-6


class TransformerConfig(BaseModel):
    """`config.json` of the network: shapes, and which share of an image's tokens training hides."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    model_type: Literal["token_transformer"] = "token_transformer"
    codebook_size: int = Field(ge=2, le=1 << 20)
    """V."""
    sample_size: int = Field(ge=2, le=1024)
    """Tokens of a side; L is its square."""
    hidden_size: int = Field(default=768, ge=1, le=1 << 16)
    num_hidden_layers: int = Field(default=12, ge=1, le=1024)
    num_attention_heads: int = Field(default=12, ge=1, le=1024)
    intermediate_size: int = Field(default=3072, ge=1, le=1 << 18)
    decoder_hidden_size: int = Field(default=768, ge=1, le=1 << 16)
    decoder_num_hidden_layers: int = Field(default=8, ge=1, le=1024)
    decoder_num_attention_heads: int = Field(default=16, ge=1, le=1024)
    decoder_intermediate_size: int = Field(default=3072, ge=1, le=1 << 18)
    tied_head: bool = False
    mask_ratio_min: float = Field(default=0.5, gt=0, lt=1)
    """Also the share that the encoder is never given."""
    mask_ratio_max: float = Field(default=1.0, gt=0, le=1)
    mask_ratio_mean: float = Field(default=0.55, gt=0, lt=1)
    """Of the normal distribution that is cut off at both."""
    mask_ratio_std: float = Field(default=0.25, gt=0, le=1)

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Self:
        """Raises: BadModel."""
        if document.get("model_type") != KIND:
            raise BadModel(f"expected model_type {KIND!r} in transformer/config.json, found {document.get('model_type')!r}")
        try:
            return cls.model_validate(dict(document))
        except ValidationError as error:
            raise BadModel(f"transformer/config.json: {in_words(error)}") from error

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        for width, heads in (
            (self.hidden_size, self.num_attention_heads),
            (self.decoder_hidden_size, self.decoder_num_attention_heads),
        ):
            if width % heads:
                raise ValueError(f"expected a width that {heads} heads divide, got {width}")
        if not self.mask_ratio_min <= self.mask_ratio_mean <= self.mask_ratio_max:
            raise ValueError(
                f"expected mask_ratio_mean from mask_ratio_min to mask_ratio_max, got {self.mask_ratio_mean:g} and "
                f"{self.mask_ratio_min:g} to {self.mask_ratio_max:g}"
            )
        if not 0 < self.dropped < self.length - 1:
            raise ValueError(
                f"expected a mask_ratio_min that leaves the encoder some of {self.length} tokens and not all, got "
                f"{self.mask_ratio_min:g}"
            )
        if self.mask_ratio_max <= self.mask_ratio_min:
            raise ValueError(
                f"expected mask_ratio_max above mask_ratio_min, as the mask is to be learned, got {self.mask_ratio_max:g}"
            )
        return self

    @property
    def length(self) -> int:
        """L."""
        return self.sample_size**2

    @property
    def dropped(self) -> int:
        """Tokens of an image that the encoder is not given in training: L - K."""
        return int(self.length * self.mask_ratio_min)

    @property
    def mask_id(self) -> int:
        """The word that stands for a hidden token in the encoder: the one after all codes."""
        return self.codebook_size

    def hidden(self, u_B: Tensor) -> Tensor:
        """(B,) int64 how many of L tokens are hidden, of (B,) uniform numbers in [0, 1): at least `dropped`, at most L - 1."""
        low, high = ((edge - self.mask_ratio_mean) / self.mask_ratio_std for edge in (self.mask_ratio_min, self.mask_ratio_max))
        below, above = (0.5 * (1 + math.erf(edge / math.sqrt(2))) for edge in (low, high))
        normal_B = torch.special.ndtri(below + u_B.double() * (above - below))
        ratio_B = (self.mask_ratio_mean + self.mask_ratio_std * normal_B).clamp(self.mask_ratio_min, self.mask_ratio_max)
        return (ratio_B * self.length).ceil().long().clamp(self.dropped, self.length - 1)


class TokenTransformer(nn.Module):
    """The network; `encode` and `answer` ask it."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = c = config
        self.embed = Embedding(c.codebook_size + 1, c.length, c.hidden_size)
        self.blocks = _blocks(c.num_hidden_layers, c.hidden_size, c.num_attention_heads, c.intermediate_size)
        self.norm = nn.LayerNorm(c.hidden_size, eps=EPS)
        self.decoder_embed = nn.Linear(c.hidden_size, c.decoder_hidden_size)
        self.decoder_mask = nn.Parameter(torch.zeros(c.decoder_hidden_size))
        self.decoder_positions = nn.Parameter(torch.zeros(1 + c.length, c.decoder_hidden_size))
        self.decoder_blocks = _blocks(
            c.decoder_num_hidden_layers, c.decoder_hidden_size, c.decoder_num_attention_heads, c.decoder_intermediate_size
        )
        self.decoder_norm = nn.LayerNorm(c.decoder_hidden_size, eps=EPS)
        self.head = Head(c.decoder_hidden_size, c.hidden_size, c.codebook_size, tied=c.tied_head)
        self.apply(_begin)
        for table in (self.embed.first, self.decoder_mask, self.decoder_positions):
            nn.init.trunc_normal_(table, std=0.02)


class Embedding(nn.Module):
    """Words and positions as vectors, and a first vector that is no token's."""

    def __init__(self, words: int, length: int, width: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(width))
        self.words = nn.Embedding(words, width)
        self.positions = nn.Embedding(length, width)
        self.norm = nn.LayerNorm(width, eps=EPS)

    def forward(self, shown_BL: Tensor, kept_BK: Tensor) -> Tensor:
        """(B, 1 + K, D)."""
        token_BKD = self.words(shown_BL.gather(1, kept_BK)) + self.positions(kept_BK)
        first_B1D = self.first.expand(len(token_BKD), 1, -1)
        vector_BTD: Tensor = self.norm(torch.cat([first_B1D, token_BKD], dim=1))
        return vector_BTD


class Block(nn.Module):
    """Attention and a layer of neurons, each normalised before and added to what came in."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width, eps=EPS)
        # Keys without a bias: a softmax would see nothing of it but rounding, which Adam makes as large as any gradient.
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.neuron_norm = nn.LayerNorm(width, eps=EPS)
        self.widen = nn.Linear(width, inner)
        self.narrow = nn.Linear(inner, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Same shape."""
        batch, length, width = x_BTD.shape
        parts_3BHTd = self.qkv(self.attention_norm(x_BTD)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen_BHTd = F.scaled_dot_product_attention(*parts_3BHTd.unbind(0))
        x_BTD = x_BTD + self.out(seen_BHTd.transpose(1, 2).reshape(batch, length, width))
        grown_BTD: Tensor = x_BTD + self.narrow(F.gelu(self.widen(self.neuron_norm(x_BTD))))
        return grown_BTD


class Head(nn.Module):
    """Logits over the codebook: by a matrix of its own, or by the encoder's table of words."""

    def __init__(self, width: int, words_width: int, codes: int, *, tied: bool) -> None:
        super().__init__()
        self.dense = nn.Linear(width, words_width)
        self.norm = nn.LayerNorm(words_width, eps=EPS)
        self.words = None if tied else nn.Linear(words_width, codes, bias=False)
        self.bias = nn.Parameter(torch.zeros(codes))

    def forward(self, x_BTD: Tensor, table: nn.Embedding) -> Tensor:
        """(B, T, V)."""
        x_BTD = self.norm(F.gelu(self.dense(x_BTD)))
        matrix_VD = table.weight[: len(self.bias)] if self.words is None else self.words.weight
        return F.linear(x_BTD, matrix_VD, self.bias)


def encode(network: TokenTransformer, shown_BL: Tensor, kept_BK: Tensor) -> list[Tensor]:
    """See `halves.Encode`: (B, 1 + K, D), normalised, of the kept tokens in the order in which they are named.

    Args:
        shown_BL: int64 ids, the mask's where a token is hidden.
        kept_BK: int64 positions that the encoder is given.
    """
    x_BTD = network.embed(shown_BL, kept_BK)
    for block in network.blocks:
        x_BTD = block(x_BTD)
    return [network.norm(x_BTD)]


def answer(network: TokenTransformer, shown_BL: Tensor, kept_BK: Tensor) -> Tensor:
    """See `halves.Answer`: (B, L, V) logits of every token."""
    (tap_BTD,) = encode(network, shown_BL, kept_BK)
    x_BTD = network.decoder_embed(tap_BTD)
    first_B1D, given_BKD = x_BTD[:, :1], x_BTD[:, 1:]
    mask_BLD = network.decoder_mask.to(x_BTD.dtype).expand(*shown_BL.shape, -1)
    token_BLD = mask_BLD.scatter(1, kept_BK[..., None].expand_as(given_BKD), given_BKD)
    token_BLD = torch.where((shown_BL == network.config.mask_id)[..., None], mask_BLD, token_BLD)
    x_BTD = torch.cat([first_B1D, token_BLD], dim=1) + network.decoder_positions
    for block in network.decoder_blocks:
        x_BTD = block(x_BTD)
    logits_BLV: Tensor = network.head(network.decoder_norm(x_BTD[:, 1:]), network.embed.words)
    return logits_BLV


def _blocks(count: int, width: int, heads: int, inner: int) -> nn.ModuleList:
    return nn.ModuleList(Block(width, heads, inner) for _ in range(count))


def _begin(module: nn.Module) -> None:
    """New weights as vision transformers have them: normal, of standard deviation 0.02, cut off."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
