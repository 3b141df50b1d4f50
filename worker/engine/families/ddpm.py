"""Class-conditional DDPM: any diffusers `UNet2DModel` folder with `num_class_embeds`.

With K + 1 label rows the last one is the null label (label drop, guidance); with K there is none, and guidance must be 1.
A folder holds one set of weights and gets one set back: where training kept an average beside the raw weights, the one that
is served must be registered. An average that outlived unlearning would be the model that was to forget.

Shape suffixes: N items, B images, C channels, H, W pixels.
Source: Ho et al. 2020, arXiv:2006.11239.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch import Tensor, nn

from worker.contract import Sampling
from worker.engine import diffusion, weights
from worker.engine.denoising import Denoising
from worker.engine.errors import BadInput, BadModel
from worker.engine.family import Augment, Draw, Kind, Start
from worker.engine.layout import Layout
from worker.engine.pixels import mirrored
from worker.engine.precision import channels_last


class DDPM(Denoising):
    """A `UNet2DModel` that predicts the noise (or the velocity), with its own noise schedule."""

    name: ClassVar[str] = "ddpm"
    title: ClassVar[str] = "Class-conditional DDPM (diffusers UNet2DModel)"
    kind: ClassVar[Kind] = "generator"
    prompts: ClassVar[bool] = False
    ignores: ClassVar[frozenset[str]] = frozenset({"batch_norm"})
    table: ClassVar[str] = "class_embedding.weight"

    def __init__(self, unet: UNet2DModel, schedule: DDIMScheduler, *, class_count: int, device: torch.device) -> None:
        self.module: nn.Module = channels_last(unet.to(device).eval())
        self.class_count = class_count
        self.device = device
        null = class_count if unet.config.num_class_embeds == class_count + 1 else None
        self.denoiser = diffusion.Denoiser.of(ask, self.module, schedule, labels=class_count, null=null, device=device)
        size = unet.config.sample_size
        self._shape = (unet.config.in_channels, *(size if isinstance(size, (tuple, list)) else (size, size)))

    @classmethod
    def load(cls, directory: Path, *, labels: Sequence[str], device: torch.device) -> Self:
        """See `Family.load`. A folder without a scheduler gets the defaults of the DDPM paper (linear, 1000 steps)."""
        layout = Layout.of(directory)
        config = weights.read_json(directory / layout.config)
        _require_conditional(config, len(labels))
        schedule = diffusion.schedule_of(weights.read_json(directory / layout.scheduler) if layout.scheduler else {})
        try:
            unet = UNet2DModel.from_config(config)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise BadModel(f"diffusers cannot build this configuration: {error}") from error
        weights.load_into(unet, directory / layout.weights)
        return cls(unet, schedule, class_count=len(labels), device=device)

    def save(self, directory: Path, base: Path) -> None:
        """See `Family.save`."""
        layout = Layout.of(base)
        shutil.copytree(base, directory, ignore=shutil.ignore_patterns(layout.weights.name), symlinks=False)
        weights.save_like(self.module, directory / layout.weights, base / layout.weights)

    def fresh(self, seed: int) -> nn.Module:
        """See `Family.fresh`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            unet = UNet2DModel.from_config(self.module.config)
        return channels_last(unet.to(self.device).eval())

    # ------------------------------------------------------------------------------------------------------- training

    def hold(self, images_NCHW: Tensor) -> Tensor:
        """See `Family.hold`: the uint8 images."""
        if images_NCHW.shape[1:] != self._shape:
            raise BadInput(f"the model works on images {self._shape}, found {tuple(images_NCHW.shape[1:])}")
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
        """See `Family.draw` and `diffusion.draw`; a generator's images are mirrored at most, never shifted."""
        return diffusion.draw(self.denoiser.schedule, count, image_shape, generator, label_drop=label_drop, augment=augment)

    def prepare(self, held_B: Tensor, draw: Draw) -> Tensor:
        """uint8 to [-1, 1]."""
        x_BCHW = mirrored(held_B, draw).float().div(127.5).sub(1.0)
        return x_BCHW.contiguous(memory_format=torch.channels_last)

    def noise(self, count: int, image_shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """See `Generator.noise`: uniform on [-1, 1]."""
        return torch.rand(count, *image_shape, generator=generator).mul(2).sub(1)

    # ------------------------------------------------------------------------------------------------------- sampling

    def sample(self, y_B: Tensor, seeds: Sequence[int], *, sampling: Sampling, start: Start | None = None) -> Tensor:
        """See `Generator.sample`. The null label may be asked for: then the images are unconditional."""
        begun = {} if start is None else {"x_BCHW": start.images_BCHW.float() / 127.5 - 1, "depth": start.depth}
        return diffusion.to_pixels(self.denoiser.sample(y_B, seeds, self._shape, sampling=sampling, **begun))


def ask(module: nn.Module, noisy_BCHW: Tensor, t_B: Tensor, y_B: Tensor) -> Tensor:
    """See `diffusion.Ask`."""
    return module(noisy_BCHW.contiguous(memory_format=torch.channels_last), t_B, class_labels=y_B).sample.float()


def _require_conditional(config: dict[str, Any], class_count: int) -> None:
    kind = config.get("_class_name")
    if kind != "UNet2DModel":
        raise BadModel(f"expected a diffusers UNet2DModel, found {kind!r}")
    rows = config.get("num_class_embeds")
    if rows not in (class_count, class_count + 1):
        raise BadModel(
            f"expected num_class_embeds = {class_count} (no null label) or {class_count + 1} (the last is the null "
            f"label) for {class_count} classes, found {rows}"
        )
    if config.get("class_embed_type") is not None:
        raise BadModel(f"expected class_embed_type null (a table of labels), found {config['class_embed_type']!r}")
