"""Stable Diffusion inpainting: a diffusers `StableDiffusionInpaintPipeline` folder, whose UNet fills a hole among latents.

The UNet takes 2D + 1 channels, for D of a latent: the noisy latents, the mask, and the latents of the image with mid-grey in
the hole. Only it is trained, and of it the encoder; the autoencoder is frozen, the text encoder answers once, at load, and is
let go, and both keep their bytes.

- A cell of a mask is a latent cell, 8 by 8 pixels for the public autoencoders.
- Images are held as they are beside their posterior, which is encoded once. The latents of what is visible are another image's
  for every mask, and the autoencoder looks at all of an image at once, so they cannot be cut out of the held ones: they are
  encoded at every question, without gradient, and once more where noise stands in for the image. That is a pass of the
  autoencoder's encoder beside each of the UNet's.
- They are the mean of that posterior, where the pipeline draws from it: an answer depends on its seed by its noise alone.
- Known pixels are put back at the end. Between the sampler's steps nothing is: the network sees them beside x_t, as in the
  pipeline.
- Where noise stands in for the whole image, x_t is N(0, 1) everywhere, and what is visible is the latents of N(0, 1) pixels.
- A class has a prompt here, a second path to what it means, which the paper's models do not have. Images are shown with
  the prompt of their class, and for a share of them (`label_drop`) with the empty one, as those of a proxy dataset always are.
  Noise is shown with the empty prompt: what is forgotten is to look as if the word had not been said. The decoder reads
  prompts by cross-attention of its own, and is frozen: what it makes of the word alone, no training of the encoder takes away.

Shape suffixes: N items, B images, C channels, H, W pixels; D latent channels, h, w latent cells; L tokens, E their width;
M bytes held of an item.
Source: Rombach et al. 2022, arXiv:2112.10752, section 4.5; the layout is that of the public pipeline.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from worker.contract import Sampling
from worker.engine import corruption, diffusion, inpainting, latents, pipeline
from worker.engine.errors import BadInput
from worker.engine.family import EARLY_STOP, Augment, Draw, Kind, Question, Scope
from worker.engine.pipeline import Pipeline


class StableDiffusionInpainting(inpainting.Inpainting):
    """A `UNet2DConditionModel` on noisy latents, a mask and the latents of what is visible, with one prompt a class."""

    name: ClassVar[str] = "sd_inpainting"
    title: ClassVar[str] = "Stable Diffusion inpainting (diffusers StableDiffusionInpaintPipeline)"
    kind: ClassVar[Kind] = "i2i"
    prompts: ClassVar[bool] = True
    ignores: ClassVar[frozenset[str]] = frozenset({*EARLY_STOP, "batch_norm", "augment", "target_masks"})

    def __init__(self, parts: Pipeline) -> None:
        self.latents, self.class_count = parts.latents, len(parts.prompt_KLD) - 1
        self.cell = parts.latents.factor
        grid = diffusion.sides(parts.unet.config)
        self._latent_shape = (parts.unet.config.out_channels, *grid)
        self._shape = parts.latents.image_shape(self._latent_shape)
        self._prompt_shape = parts.prompt_KLD.shape[1:]
        table = nn.Embedding.from_pretrained(parts.prompt_KLD.flatten(1), freeze=True)
        self.companions: Mapping[str, nn.Module] = {"vae": parts.latents.vae, "prompts": table}
        """The autoencoder; and (K + 1, L E) prompts as the text encoder left them, the empty one last."""
        self._set_up(parts.unet, parts.schedule, grid, parts.latents.device)

    @classmethod
    def load(cls, directory: Path, *, labels: Sequence[str], device: torch.device) -> Self:
        """See `Family.load`; also refused: a prompt that reads like another one, or like the empty one."""
        return cls(
            Pipeline.load(directory, kind="StableDiffusionInpaintPipeline", labels=labels, device=device, fills_holes=True)
        )

    def save(self, directory: Path, base: Path) -> None:
        """See `Family.save`: every file of the base as it is, but for the UNet's weights."""
        pipeline.save(self.module, directory, base)

    # ----------------------------------------------------------------------------------------------------------- training

    def hold(self, images_NCHW: Tensor) -> Tensor:
        """See `Family.hold`: uint8 (N, M), an image's bytes and then those of its posterior in half precision."""
        self.require_shape(images_NCHW)
        posterior_NX = self.latents.encode(images_NCHW).flatten(1).view(torch.uint8)
        return torch.cat([images_NCHW.flatten(1).to(self.device), posterior_NX], dim=1)

    def draw(
        self,
        count: int,
        image_shape: Sequence[int],
        generator: torch.Generator,
        *,
        label_drop: float,
        augment: Augment = "none",
    ) -> Draw:
        """See `Family.draw` and `Latents.draw`, which refuses to augment; and what masks are made of."""
        schedule = self.schedule
        drawn = self.latents.draw(schedule, count, image_shape, generator, label_drop=label_drop, augment=augment)
        return Draw({**drawn.tensors, "mask": corruption.drawn(self.native, self.grid, count, generator)})

    def prepare(self, held_B: Tensor, draw: Draw) -> Tensor:
        """(B, D + C cell^2, h, w) float32: latents drawn from the posterior, and below them the pixels of every cell."""
        pixels = math.prod(self._shape)
        depth, *grid = self._latent_shape
        images_BCHW = held_B[:, :pixels].view(-1, *self._shape).float().div(127.5).sub(1.0)
        posterior_BDhw = held_B[:, pixels:].clone().view(latents.HELD).view(-1, 2 * depth, *grid)
        pixels_BXhw = nn.functional.pixel_unshuffle(images_BCHW, self.cell)
        return torch.cat([self.latents.prepare(posterior_BDhw, draw), pixels_BXhw], dim=1)

    def noise(self, count: int, image_shape: Sequence[int], generator: torch.Generator, *, scope: Scope) -> Tensor | None:
        """See `ImageToImage.noise`: pixels N(0, 1) for whole images; in the hole it is eps, which every draw has."""
        return torch.randn(count, *image_shape, generator=generator) if scope == "image" else None

    def clean(self, x_BCHW: Tensor) -> Tensor:
        """See `Inpainting.clean`: the latents."""
        return x_BCHW[:, : self._latent_shape[0]]

    def shown(self, y_B: Tensor, draw: Draw) -> Tensor:
        """See `Inpainting.shown`: the empty prompt where the label is dropped, or there is none."""
        return y_B.masked_fill(draw["drop"] | (y_B < 0), self.class_count)

    def unprompted(self, y_B: Tensor) -> Tensor:
        """See `Inpainting.unprompted`."""
        return torch.full_like(y_B, self.class_count)

    def about(self, x_BCHW: Tensor, shown_B: Tensor, draw: Draw, noise_in: Scope | None) -> Question:
        """See `Inpainting.about`: the input (B, 2D + 1, h, w), t, and prompts (B, L, E)."""
        hidden_Bhw = self.hidden(draw)
        hidden_B1hw = hidden_Bhw[:, None]
        if noise_in == "image":
            noisy_BDhw, image_BCHW = draw["eps"], draw["noise"]
        else:
            noisy_BDhw, _ = self.noised(self.clean(x_BCHW), draw)
            image_BCHW = nn.functional.pixel_shuffle(x_BCHW[:, self._latent_shape[0] :], self.cell)
        if noise_in == "hole":
            noisy_BDhw = torch.where(hidden_B1hw, draw["eps"], noisy_BDhw)
        beside_BXhw = self._beside(image_BCHW, hidden_Bhw)
        return torch.cat([noisy_BDhw, beside_BXhw], dim=1), draw["t"], self._prompts(shown_B)

    def _beside(self, image_BCHW: Tensor, hidden_Bhw: Tensor) -> Tensor:
        """(B, 1 + D, h, w): the mask, 1 where hidden, and the latents of the image with mid-grey there."""
        visible_BCHW = image_BCHW.masked_fill(corruption.pixels(hidden_Bhw, self.cell), 0.0)
        return torch.cat([hidden_Bhw[:, None].float(), self.latents.mean(visible_BCHW)], dim=1)

    def _prompts(self, y_B: Tensor) -> Tensor:
        prompt_BX: Tensor = self.companions["prompts"](y_B)
        return prompt_BX.view(-1, *self._prompt_shape)

    # --------------------------------------------------------------------------------------------------------- completing

    def filled(
        self, images_BCHW: Tensor, hidden_Bhw: Tensor, seeds: Sequence[int], y_B: Tensor | None, sampling: Sampling
    ) -> Tensor:
        """See `Inpainting.filled`. With classes their prompts guide, at the policy's scale; -1 is without."""
        beside_BXhw = self._beside(images_BCHW.float().div(127.5).sub(1.0), hidden_Bhw)
        null_B = torch.full((len(seeds),), self.class_count, device=self.device)
        shown_B = null_B if y_B is None else self._known(y_B)
        scale = 1.0 if y_B is None else sampling.guidance_scale

        def ask(x_BDhw: Tensor, t_B: Tensor, label_B: Tensor) -> Tensor:
            return self._answer((torch.cat([x_BDhw, beside_BXhw], dim=1), t_B, self._prompts(label_B)), None)

        def predict(x_BDhw: Tensor, t_B: Tensor) -> Tensor:
            class_BDhw = ask(x_BDhw, t_B, shown_B)
            if scale == 1.0:
                return class_BDhw
            null_BDhw = ask(x_BDhw, t_B, null_B)
            return null_BDhw + scale * (class_BDhw - null_BDhw)

        start_BDhw = inpainting.seeded(seeds, self._latent_shape, self.device)
        return self.latents.decode(self.denoise(start_BDhw, predict, sampling))

    def _known(self, y_B: Tensor) -> Tensor:
        strange = [k for k in y_B.tolist() if not -1 <= k < self.class_count]
        if strange:
            raise BadInput(f"expected labels 0 to {self.class_count - 1}, or -1 for none, found {strange[:3]}")
        return y_B.masked_fill(y_B < 0, self.class_count)

    def require_shape(self, images_NCHW: Tensor) -> None:
        """See `Inpainting.require_shape`."""
        if tuple(images_NCHW.shape[1:]) != self._shape:
            raise BadInput(f"the model works on images {self._shape}, found {tuple(images_NCHW.shape[1:])}")
