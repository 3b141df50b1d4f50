"""Images as tokens: the frozen tokenizer that a masked transformer works behind, and how that one fills in hidden tokens.

Every item is tokenised once and held as ids, two bytes a token for codebooks of up to 32,768 codes. Nothing here is trained and
nothing is written: a saved model gets the tokenizer's files as they came.

Shape suffixes: N items, B images, C channels, H, W pixels; h, w tokens, L = h w, row by row; M hidden tokens of an image;
V codes, D numbers of each.
Source: Esser et al. 2021 (VQGAN), arXiv:2012.09841, for the tokenizer; Chang et al. 2022 (MaskGIT), arXiv:2202.04200, section
3.2, for the decoding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from diffusers import VQModel
from torch import Tensor, nn
from torch.nn import functional as F

from worker.engine import corruption, weights
from worker.engine.errors import BadInput, BadModel, Diverged, is_out_of_memory
from worker.engine.halves import Answer, Encode
from worker.engine.pixels import PREPROCESSOR, Normalisation
from worker.engine.precision import channels_last
from worker.engine.streams import generator

FOLDER = Path("vqvae")

PIXELS = {"cuda": 1 << 19, "cpu": 1 << 16}
"""Pixels of a batch of the tokenizer: 8 images of 256x256 fill a GPU; a processor gains nothing beyond one."""

NOISES = 1024
"""Noise images that are tokenised, once; targets of noise are drawn from among them."""


@dataclass(frozen=True)
class Predictor:
    """A network over tokens: how it is built, which half of it is which, how it is asked, and what its training hides."""

    build: Callable[[], nn.Module]
    """Newly initialised by torch's generator, in float32."""
    encoder: tuple[str, ...]
    shared: tuple[str, ...]
    encode: Encode
    answer: Answer
    """(network, *question) -> (B, L, V) logits."""
    side: int
    """Tokens of a side of an image."""
    codes: int
    mask_id: int
    dropped: int
    """Tokens of an image that the encoder is not given in training. Of 0 it is given all, and is not asked which ones."""
    hidden: Callable[[Tensor], Tensor]
    """(B,) uniform numbers in [0, 1) -> (B,) int64, how many tokens are hidden of each image: some, not all."""
    temperature: float
    """Of the choice which tokens stay, at the first step of completing an image."""
    beside: tuple[Tensor, ...] = ()
    """What else every question has, one row for all images: a prompt."""

    @property
    def length(self) -> int:
        """L."""
        return self.side**2


# ---------------------------------------------------------------------------------------------------------- the tokenizer


@dataclass(frozen=True)
class Tokenizer:
    """A frozen `VQModel`, in float32 and eval mode."""

    vq: VQModel
    normalisation: Normalisation
    device: torch.device

    @classmethod
    def load(cls, directory: Path, file: Path, device: torch.device, *, normalised: bool) -> Self:
        """Read `vqvae/` of a model folder; nothing is ever fetched.

        Args:
            file: the weights, relative to `directory`.
            normalised: pixels as the folder's preprocessor file says, without one from -1 to 1; or from 0 to 1.

        Raises:
            BadModel: not a `VQModel`, or weights that `weights.load_into` refuses.
        """
        config = weights.read_json(directory / FOLDER / "config.json")
        if config.get("_class_name") != "VQModel":
            raise BadModel(f"expected a diffusers VQModel in {FOLDER}/, found {config.get('_class_name')!r}")
        try:
            vq = VQModel.from_config(config)
        except Exception as error:  # a stranger's values: what they break is not foreseeable
            if is_out_of_memory(error):
                raise
            raise BadModel(f"diffusers cannot build this tokenizer: {type(error).__name__}: {error}") from error
        channels = (vq.config.in_channels, vq.config.out_channels)
        if channels[0] != channels[1]:
            raise BadModel(f"expected a tokenizer of as many channels out as in, found {channels[1]} out and {channels[0]} in")
        weights.load_into(vq, directory / file)
        plain = Normalisation((0.0,) * channels[0], (1.0,) * channels[0])
        normalisation = Normalisation.read(directory / PREPROCESSOR, channels[0]) if normalised else plain
        return cls(channels_last(vq.to(device).eval().requires_grad_(False)), normalisation, device)  # type: ignore[arg-type]

    # -------------------------------------------------------------------------------------------------------------- shapes

    @property
    def codes(self) -> int:
        """V."""
        return int(self.vq.config.num_vq_embeddings)

    @property
    def channels(self) -> int:
        """C."""
        return int(self.vq.config.in_channels)

    @property
    def factor(self) -> int:
        """Pixels to a token, along one side."""
        return int(2 ** (len(self.vq.config.block_out_channels) - 1))

    @property
    def held(self) -> torch.dtype:
        """The narrowest signed integers that hold an id; torch indexes with signed ones."""
        return torch.int16 if self.codes <= 1 << 15 else torch.int32

    def grid(self, image_shape: Sequence[int]) -> corruption.Grid:
        """(h, w) of the tokens of (C, H, W) images.

        Raises: BadInput for another number of channels, or sides that are no multiple of `factor`.
        """
        channels, height, width = image_shape
        if channels != self.channels or height % self.factor or width % self.factor:
            raise BadInput(
                f"the tokenizer works on images of {self.channels} channels whose sides are multiples of {self.factor}, "
                f"found {tuple(image_shape)}"
            )
        return height // self.factor, width // self.factor

    # -------------------------------------------------------------------------------------------------------------- images

    @torch.no_grad()
    def tokenise(self, images_NCHW: Tensor) -> Tensor:
        """(N, L) ids of uint8 images, of dtype `held`, on the device. Raises: BadInput; see `grid`."""
        h, w = self.grid(images_NCHW.shape[1:])
        id_NL = torch.empty(len(images_NCHW), h * w, dtype=self.held, device=self.device)
        size = _batch_size(self.device, images_NCHW.shape[-2] * images_NCHW.shape[-1])
        for rows in (slice(i, i + size) for i in range(0, len(images_NCHW), size)):
            x_BCHW = images_NCHW[rows].to(self.device).float() * self._scale_C11 + self._shift_C11
            latent_BDhw = self.vq.encode(x_BCHW.contiguous(memory_format=torch.channels_last)).latents
            id_NL[rows] = self.vq.quantize(latent_BDhw)[2][2].view(-1, h * w).to(self.held)
        return id_NL

    @torch.no_grad()
    def decode(self, id_BL: Tensor, grid: corruption.Grid) -> Tensor:
        """uint8 (B, C, H, W) images of int64 ids, on the device. Raises: Diverged when a pixel is not finite."""
        size = _batch_size(self.device, grid[0] * grid[1] * self.factor**2)
        return torch.cat([self._decoded(part_BL, grid) for part_BL in id_BL.split(size)])

    def filled(self, images_BCHW: Tensor, hidden_Bhw: Tensor) -> Tensor:
        """uint8 images whose hidden cells are of the middle colour: the tokens beside a hole see into it, and must not."""
        fill_C11 = (255 * torch.tensor(self._middle[0])).round().to(torch.uint8).view(-1, 1, 1).to(images_BCHW.device)
        return torch.where(corruption.pixels(hidden_Bhw, self.factor), fill_C11, images_BCHW)

    def noises(self, grid: corruption.Grid) -> Tensor:
        """(NOISES, L) ids of clip(mean + std N(0, 1), 0, 1), of dtype `held`, on the CPU; the same every time.

        Source: Li et al. 2024, arXiv:2402.00351, its published code. There mean and std are the current batch's; here they
        are those of the model folder's normalisation, so that noise does not hang on what else is in a batch.
        """
        shape, source = (self.channels, grid[0] * self.factor, grid[1] * self.factor), generator(0, "noises")
        mean_C11, std_C11 = (torch.tensor(numbers).view(-1, 1, 1) for numbers in self._middle)
        parts = []
        for rows in torch.arange(NOISES).split(64):
            pixels_BCHW = (mean_C11 + std_C11 * torch.randn(len(rows), *shape, generator=source)).clamp(0, 1)
            parts.append(self.tokenise((255 * pixels_BCHW).round().to(torch.uint8)).cpu())
        return torch.cat(parts)

    def _decoded(self, id_BL: Tensor, grid: corruption.Grid) -> Tensor:
        code_BDhw = self.vq.quantize.get_codebook_entry(id_BL.flatten(), (len(id_BL), *grid, self.vq.quantize.vq_embed_dim))
        spatial = self.vq.config.norm_type == "spatial"
        x_BCHW = self.vq.decoder(self.vq.post_quant_conv(code_BDhw), code_BDhw if spatial else None)
        if not bool(torch.isfinite(x_BCHW).all()):
            raise Diverged("the tokenizer decoded an image with NaN or infinite pixels", step=0, loss=float("nan"))
        return ((x_BCHW - self._shift_C11) / self._scale_C11).round().clamp(0, 255).to(torch.uint8)

    @property
    def _middle(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of pixels from 0 to 1; of a tokenizer that takes them as they are, a half of each."""
        half = (0.5,) * self.channels
        return (half, half) if self.normalisation.plain else (self.normalisation.mean, self.normalisation.std)

    @cached_property
    def _constants(self) -> tuple[Tensor, Tensor]:
        return self.normalisation.constants(self.device)

    @property
    def _scale_C11(self) -> Tensor:
        return self._constants[0]

    @property
    def _shift_C11(self) -> Tensor:
        return self._constants[1]


def _batch_size(device: torch.device, pixels: int) -> int:
    """Images of so many pixels that the tokenizer works on at a time."""
    return max(1, PIXELS.get(device.type, PIXELS["cuda"]) // max(1, pixels))


# ---------------------------------------------------------------------------------------------------- filling in what is hidden


def schedule(count: int, steps: int) -> list[tuple[float, int]]:
    """After each step: which part of the way is done, and how many of `count` hidden tokens are left, by the cosine.

    At least one is uncovered at each step, so there are no more steps than tokens.
    """
    plan, before = [], count
    for step in range(1, steps + 1):
        left = 0 if step == steps else math.floor(count * math.cos(math.pi / 2 * step / steps))
        if left < before:
            plan.append((step / steps, left))
            before = left
    return plan


def filled_in(
    ask: Callable[[Tensor], Tensor],
    id_BL: Tensor,
    hidden_BL: Tensor,
    count: int,
    seeds: Sequence[int],
    *,
    steps: int,
    mask_id: int,
    temperature: float,
) -> Tensor:
    """(B, L) int64 ids, hidden ones replaced, over some steps: all are drawn, those the network is surest of stay.

        draw id ~ softmax(logits);  sure = log p(id) + temperature (1 - way) Gumbel;  the least sure are hidden again

    What row i draws follows from `seeds[i]` alone.

    Args:
        ask: (B, L) ids, `mask_id` where hidden -> (B, L, V) logits of codes.
        count: how many tokens are hidden of every image.

    Raises:
        Diverged: a logit is not finite.
    """
    place_BM = corruption.visible(~hidden_BL, hidden_BL.shape[1] - count)
    sources = [generator(seed, "tokens") for seed in seeds]
    shown_BL = id_BL.masked_fill(hidden_BL, mask_id)
    for way, left in schedule(count, steps):
        logits_BLV = ask(shown_BL).float()
        logits_BMV = logits_BLV.gather(1, place_BM[..., None].expand(-1, -1, logits_BLV.shape[-1]))
        if not bool(torch.isfinite(logits_BMV).all()):
            raise Diverged("the model answered with NaN or infinity", step=0, loss=float("nan"))
        now_BM = shown_BL.gather(1, place_BM)
        is_open_BM = now_BM == mask_id
        drawn_BM = (logits_BMV + _gumbel(logits_BMV.shape[1:], sources, logits_BMV.device)).argmax(-1)
        sure_BM = F.log_softmax(logits_BMV, dim=-1).gather(-1, drawn_BM[..., None])[..., 0]
        sure_BM = sure_BM + temperature * (1 - way) * _gumbel(sure_BM.shape[1:], sources, sure_BM.device)
        rank_BM = sure_BM.masked_fill(~is_open_BM, math.inf).argsort(dim=1, stable=True).argsort(dim=1)
        next_BM = torch.where(is_open_BM, drawn_BM.masked_fill(rank_BM < left, mask_id), now_BM)
        shown_BL = shown_BL.scatter(1, place_BM, next_BM)
    return shown_BL


def _gumbel(shape: Sequence[int], sources: Sequence[torch.Generator], device: torch.device) -> Tensor:
    """(B, …) float32: each row of its own generator, on the CPU, then sent."""
    u = torch.stack([torch.rand(tuple(shape), generator=source) for source in sources]).clamp_min(1e-20)
    return -(-u.log()).log().to(device)
