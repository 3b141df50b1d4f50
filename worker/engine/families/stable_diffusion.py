"""Stable Diffusion 1.x and 2.x: a diffusers `StableDiffusionPipeline` folder, in which a class is a prompt.

Only the UNet is trained. The text encoder answers once, at load, for every class's prompt and for the empty one, which is the
null label; then it is let go. The autoencoder stays, frozen (`worker.engine.latents`). A safety checker is carried along
untouched and never loaded: it filters answers, it does not make them.

Shape suffixes: N items, B images, C channels, H, W pixels; L tokens of a prompt, D their width, K classes.
Source: Rombach et al. 2022, arXiv:2112.10752. Where we differ from published unlearning code: prompts and images are encoded
once, not at every step.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from worker.engine import diffusion, pipeline
from worker.engine.family import Kind
from worker.engine.latents import LatentDenoising
from worker.engine.pipeline import Pipeline
from worker.engine.precision import channels_last


class StableDiffusion(LatentDenoising):
    """A `UNet2DConditionModel` on latents, asked with the embeddings of one prompt a class."""

    name: ClassVar[str] = "stable_diffusion"
    title: ClassVar[str] = "Stable Diffusion 1.x, 2.x (diffusers StableDiffusionPipeline)"
    kind: ClassVar[Kind] = "generator"
    prompts: ClassVar[bool] = True
    ignores: ClassVar[frozenset[str]] = frozenset({"batch_norm", "augment"})

    def __init__(self, parts: Pipeline) -> None:
        self.prompt_KLD, self.latents = parts.prompt_KLD, parts.latents
        self.device = self.prompt_KLD.device
        self.module: nn.Module = channels_last(parts.unet.to(self.device).eval())
        self.class_count = k = len(self.prompt_KLD) - 1
        self.denoiser = diffusion.Denoiser.of(self.ask, self.module, parts.schedule, labels=k, null=k, device=self.device)
        self._shape = (parts.unet.config.in_channels, *diffusion.sides(parts.unet.config))

    @classmethod
    def load(cls, directory: Path, *, labels: Sequence[str], device: torch.device) -> Self:
        """See `Family.load`; also refused: a prompt that reads like another one, or like the empty one."""
        return cls(Pipeline.load(directory, kind="StableDiffusionPipeline", labels=labels, device=device))

    def save(self, directory: Path, base: Path) -> None:
        """See `Family.save`: every file of the base as it is, but for the UNet's weights."""
        pipeline.save(self.module, directory, base)

    def fresh(self, seed: int) -> nn.Module:
        """See `Family.fresh`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            unet = UNet2DConditionModel.from_config(self.module.config)
        return channels_last(unet.to(self.device).eval())

    def ask(self, module: nn.Module, noisy_BCHW: Tensor, t_B: Tensor, y_B: Tensor) -> Tensor:
        """See `diffusion.Ask`."""
        noisy_BCHW = noisy_BCHW.contiguous(memory_format=torch.channels_last)
        return module(noisy_BCHW, t_B, encoder_hidden_states=self.prompt_KLD[y_B]).sample.float()

    def conditioning(self, y_B: Tensor) -> Tensor:
        """See `Generator.conditioning`: (B, L, D), the prompts' embeddings."""
        return self.prompt_KLD[y_B.to(self.device)].clone()

    def with_labels(self, rows_MX: Tensor) -> Self:
        """See `Generator.with_labels`."""
        other = copy.copy(self)
        other.prompt_KLD = torch.cat([self.prompt_KLD, rows_MX.to(self.device)])
        return other._asking(other.ask, len(rows_MX))
