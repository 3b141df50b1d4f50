"""Palette-style conditional diffusion: a diffusers `UNet2DModel` folder that fills holes in images it is shown around them.

The network takes 2C channels: first the condition, which is the image with noise in the hole, then y_t, which is noisy in the
hole and the image elsewhere. It answers C channels, of which those in the hole count.

    condition = visible x, noise elsewhere        y_t = visible x, sqrt(abar_t) x + sqrt(1 - abar_t) eps elsewhere

- The noise in the condition's hole is drawn anew for every image, beside eps, as in Palette. Zeros there, as some networks are
  trained with, would be another network's input.
- The network is told t, as diffusers' are, where Palette's is told abar_t.
- A cell of a mask is a pixel. The network is asked without classes, and guidance has no meaning for it.
- Where noise stands in for the image, it is N(0, 1) in every channel, the scale of pixels in [-1, 1].
- Known pixels are put back after every step of the sampler, and at the end.

Shape suffixes: N items, B images, C channels, H, W pixels, h = H, w = W cells.
Source: Saharia et al. 2022 (Palette), arXiv:2111.05826.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch import Tensor, nn

from worker.contract import Sampling
from worker.engine import corruption, diffusion, inpainting, weights
from worker.engine.errors import BadInput, BadModel
from worker.engine.family import EARLY_STOP, Augment, Draw, Kind, Question, Scope
from worker.engine.layout import Layout
from worker.engine.pixels import mirrored


class I2IDiffusion(inpainting.Inpainting):
    """A `UNet2DModel` of 2C channels in and C out, with its own noise schedule."""

    name: ClassVar[str] = "i2i_diffusion"
    title: ClassVar[str] = "Palette-style inpainting (diffusers UNet2DModel, image and condition in)"
    kind: ClassVar[Kind] = "i2i"
    prompts: ClassVar[bool] = False
    ignores: ClassVar[frozenset[str]] = frozenset(
        {*EARLY_STOP, "batch_norm", "label_drop", "forget_label_drop", "target_masks"}
    )
    cell = 1

    def __init__(self, unet: UNet2DModel, schedule: DDIMScheduler, *, class_count: int, device: torch.device) -> None:
        self.class_count = class_count
        self.companions: Mapping[str, nn.Module] = {}
        self._shape = (unet.config.out_channels, *diffusion.sides(unet.config))
        self._set_up(unet, schedule, self._shape[1:], device)

    @classmethod
    def load(cls, directory: Path, *, labels: Sequence[str], device: torch.device) -> Self:
        """See `Family.load`. A folder without a scheduler gets the defaults of the DDPM paper (linear, 1000 steps).

        Also refused: a network that is told a class, or whose sides do not survive its down-sampling.
        """
        layout = Layout.of(directory)
        config = weights.read_json(directory / layout.config)
        _require_conditional(config)
        schedule = diffusion.schedule_of(weights.read_json(directory / layout.scheduler) if layout.scheduler else {})
        unet = inpainting.built(UNet2DModel, config)
        _require_halvable(unet.config)
        weights.load_into(unet, directory / layout.weights)
        return cls(unet, schedule, class_count=len(labels), device=device)

    def save(self, directory: Path, base: Path) -> None:
        """See `Family.save`."""
        layout = Layout.of(base)
        shutil.copytree(base, directory, ignore=shutil.ignore_patterns(layout.weights.name), symlinks=False)
        weights.save_like(self.module, directory / layout.weights, base / layout.weights)

    # ------------------------------------------------------------------------------------------------------- training

    def hold(self, images_NCHW: Tensor) -> Tensor:
        """See `Family.hold`: the uint8 images."""
        self.require_shape(images_NCHW)
        return images_NCHW.to(self.device)

    def draw(
        self,
        count: int,
        image_shape: Sequence[int],
        generator: torch.Generator,
        *,
        label_drop: float,
        augment: Augment = "none",
    ) -> Draw:
        """See `Family.draw` and `diffusion.draw`; what masks are made of, and `fill`, the noise in the condition's hole."""
        schedule = self.schedule
        drawn = diffusion.draw(schedule, count, image_shape, generator, label_drop=label_drop, augment=augment)
        mask = corruption.drawn(self.native, self.grid, count, generator)
        return Draw({**drawn.tensors, "mask": mask, "fill": torch.randn(count, *image_shape, generator=generator)})

    def prepare(self, held_B: Tensor, draw: Draw) -> Tensor:
        """uint8 to [-1, 1], mirrored where the draw says so."""
        return to_range(mirrored(held_B, draw))

    def noise(self, count: int, image_shape: Sequence[int], generator: torch.Generator, *, scope: Scope) -> Tensor | None:
        """See `ImageToImage.noise`: N(0, 1) for whole images; in the hole it is eps, which every draw has."""
        return torch.randn(count, *image_shape, generator=generator) if scope == "image" else None

    def about(self, x_BCHW: Tensor, shown_B: Tensor, draw: Draw, noise_in: Scope | None) -> Question:
        """See `Inpainting.about`: the input (B, 2C, H, W), and t."""
        if noise_in == "image":
            x_BCHW = draw["noise"]
        inside_BCHW = draw["eps"] if noise_in == "hole" else self.noised(x_BCHW, draw)[0]
        hidden_B1HW = self.hidden(draw)[:, None]
        condition_BCHW = torch.where(hidden_B1HW, draw["fill"], x_BCHW)
        return torch.cat([condition_BCHW, torch.where(hidden_B1HW, inside_BCHW, x_BCHW)], dim=1), draw["t"]

    # ----------------------------------------------------------------------------------------------------- completing

    def filled(
        self, images_BCHW: Tensor, hidden_Bhw: Tensor, seeds: Sequence[int], y_B: Tensor | None, sampling: Sampling
    ) -> Tensor:
        """See `Inpainting.filled`."""
        known_BCHW, hidden_B1HW = to_range(images_BCHW), hidden_Bhw[:, None]
        start_BCHW, fill_BCHW = inpainting.seeded(seeds, (2, *self._shape), self.device).unbind(1)
        condition_BCHW = torch.where(hidden_B1HW, fill_BCHW, known_BCHW)

        def predict(y_BCHW: Tensor, t_B: Tensor) -> Tensor:
            return self._answer((torch.cat([condition_BCHW, y_BCHW], dim=1), t_B), None)

        def paste(y_BCHW: Tensor) -> Tensor:
            return torch.where(hidden_B1HW, y_BCHW, known_BCHW)

        return diffusion.to_pixels(self.denoise(start_BCHW, predict, sampling, paste=paste))

    def require_shape(self, images_NCHW: Tensor) -> None:
        """See `Inpainting.require_shape`."""
        if tuple(images_NCHW.shape[1:]) != self._shape:
            raise BadInput(f"the model works on images {self._shape}, found {tuple(images_NCHW.shape[1:])}")


def to_range(images_BCHW: Tensor) -> Tensor:
    """uint8 to [-1, 1], float32."""
    return images_BCHW.float().div(127.5).sub(1.0)


def _require_conditional(config: Mapping[str, Any]) -> None:
    kind = config.get("_class_name")
    if kind != "UNet2DModel":
        raise BadModel(f"expected a diffusers UNet2DModel, found {kind!r}")
    came, out = config.get("in_channels"), config.get("out_channels")
    if not isinstance(out, int) or came != 2 * out:
        raise BadModel(f"expected in_channels twice out_channels, a condition and an image, found {came} and {out}")
    told = [key for key in ("num_class_embeds", "class_embed_type") if config.get(key) is not None]
    if told:
        raise BadModel(f"expected a network that is not told a class, found {told[0]} = {config[told[0]]!r}")
    diffusion.require_timesteps(config)


def _require_halvable(config: Mapping[str, Any]) -> None:
    """The decoder puts maps of one size together; diffusers' blocks with skips of the input take three channels of it."""
    skipping = [str(kind) for kind in config["down_block_types"] if "Skip" in str(kind)]
    if skipping:
        raise BadModel(f"expected blocks that do not look at the input again, found {skipping[0]}")
    times = len(config["down_block_types"]) - 1
    height, width = diffusion.sides(config)
    if height % 2**times or width % 2**times:
        raise BadModel(f"expected sides that are multiples of {2**times}, as the network halves them, found {height}x{width}")
