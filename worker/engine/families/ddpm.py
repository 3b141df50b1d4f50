"""Class-conditional DDPM: any diffusers `UNet2DModel` folder with `num_class_embeds`.

With K + 1 label rows the last one is the null label (label drop, guidance); with K there is none, and guidance must be 1.

Shape suffixes: B images, C channels, H, W pixels. Letters: x clean image in [-1, 1], t timestep, eps the noise,
abar the cumulative product of 1 - beta.
Source: Ho et al. 2020 (arXiv:2006.11239) for the loss; Song et al. 2020 (arXiv:2010.02502) for the sampler with eta = 0;
Ho & Salimans 2022 (arXiv:2207.12598) for guidance.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch import Tensor, nn

from worker.contract import Sampling
from worker.engine import weights
from worker.engine.errors import BadInput, BadModel, Diverged
from worker.engine.family import Draw

PREDICTIONS = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class Layout:
    """Where the parts of a model folder are, relative to it: a plain folder, or one that a pipeline saved."""

    config: Path
    weights: Path
    scheduler: Path | None

    @classmethod
    def of(cls, directory: Path) -> Layout:
        """Raises: BadModel when the folder has no config, or anything but one safetensors file of weights."""
        unet = Path("unet") if (directory / "unet" / "config.json").is_file() else Path()
        if not (directory / unet / "config.json").is_file():
            raise BadModel("expected config.json or unet/config.json in the model folder, found neither")
        candidates = (Path("scheduler_config.json"), Path("scheduler/scheduler_config.json"))
        scheduler = next((p for p in candidates if (directory / p).is_file()), None)
        return cls(unet / "config.json", weights.only_file(directory, below=unet), scheduler)


class DDPM:
    """A `UNet2DModel` that predicts the noise (or the velocity), with its own noise schedule."""

    name: ClassVar[str] = "ddpm"
    title: ClassVar[str] = "Class-conditional DDPM (diffusers UNet2DModel)"

    def __init__(self, unet: UNet2DModel, scheduler: DDIMScheduler, *, class_count: int, device: torch.device) -> None:
        self.module: nn.Module = unet.to(device).eval()
        self.class_count = class_count
        self.device = device
        self.null_label = class_count if unet.config.num_class_embeds == class_count + 1 else None
        self._scheduler = scheduler
        self._abar_T = scheduler.alphas_cumprod.to(device)
        size = unet.config.sample_size
        self._sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
        self._channels = unet.config.in_channels

    @classmethod
    def load(cls, directory: Path, *, class_count: int, device: torch.device) -> Self:
        """See `Family.load`. A folder without a scheduler gets the defaults of the DDPM paper (linear, 1000 steps)."""
        layout = Layout.of(directory)
        config = weights.read_json(directory / layout.config)
        _require_conditional(config, class_count)
        try:
            unet = UNet2DModel.from_config(config)
            scheduler = DDIMScheduler.from_config(
                weights.read_json(directory / layout.scheduler) if layout.scheduler else DDIMScheduler().config
            )
        except (TypeError, ValueError, NotImplementedError) as error:
            raise BadModel(f"diffusers cannot build this configuration: {error}") from error
        if scheduler.config.prediction_type not in PREDICTIONS:
            raise BadModel(f"expected prediction_type in {PREDICTIONS}, found {scheduler.config.prediction_type!r}")
        weights.load_into(unet, directory / layout.weights)
        return cls(unet, scheduler, class_count=class_count, device=device)

    def save(self, directory: Path, base: Path) -> None:
        """See `Family.save`."""
        layout = Layout.of(base)
        shutil.copytree(base, directory, ignore=shutil.ignore_patterns(layout.weights.name), symlinks=False)
        weights.save_like(self.module, directory / layout.weights, base / layout.weights)

    # ------------------------------------------------------------------------------------------------------- training

    def prepare(self, images_BCHW: Tensor) -> Tensor:
        """uint8 to [-1, 1]."""
        if images_BCHW.shape[1:] != (self._channels, *self._sides):
            raise BadInput(f"the model works on images {(self._channels, *self._sides)}, found {tuple(images_BCHW.shape[1:])}")
        return images_BCHW.to(self.device).float().div(127.5).sub(1.0)

    def draw(self, count: int, image_shape: Sequence[int], generator: torch.Generator, *, label_drop: float) -> Draw:
        """Timesteps `t`, noise `eps` and label-drop flags `drop`; see `Family.draw`."""
        return Draw(
            {
                "t": torch.randint(len(self._abar_T), (count,), generator=generator),
                "eps": torch.randn(count, *image_shape, generator=generator),
                "drop": torch.rand(count, generator=generator) < label_drop,
            }
        )

    def loss(self, x_BCHW: Tensor, y_B: Tensor, draw: Draw, *, module: nn.Module | None = None) -> Tensor:
        """(B,) mean over pixels of the squared error of the predicted noise (Ho et al. 2020, eq. 14) or velocity."""
        noisy_BCHW, target_BCHW = self._noisy_and_target(x_BCHW, draw)
        predicted_BCHW = self._predict(module or self.module, noisy_BCHW, draw["t"], self._shown(y_B, draw))
        return _distance(predicted_BCHW, target_BCHW)

    def contrast(
        self, x_BCHW: Tensor, y_B: Tensor, anchor_B: Tensor, draw: Draw, *, module: nn.Module | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Family.contrast`; both in mean squared error over pixels, from one forward pass with a gradient."""
        noisy_BCHW, target_BCHW = self._noisy_and_target(x_BCHW, draw)
        with torch.no_grad():
            anchored_BCHW = self._predict(self.module, noisy_BCHW, draw["t"], self._shown(anchor_B, draw))
        predicted_BCHW = self._predict(module or self.module, noisy_BCHW, draw["t"], self._shown(y_B, draw))
        return _distance(predicted_BCHW, target_BCHW), _distance(predicted_BCHW, anchored_BCHW)

    def _shown(self, y_B: Tensor, draw: Draw) -> Tensor:
        """The labels after label drop."""
        return y_B if self.null_label is None else y_B.masked_fill(draw["drop"], self.null_label)

    def _noisy_and_target(self, x_BCHW: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """x_t = sqrt(abar_t) x + sqrt(1 - abar_t) eps, and what the network should answer to it."""
        eps_BCHW, abar_B111 = draw["eps"], self._abar_T[draw["t"]].view(-1, 1, 1, 1)
        a_B111, s_B111 = abar_B111.sqrt(), (1 - abar_B111).sqrt()
        noisy_BCHW = a_B111 * x_BCHW + s_B111 * eps_BCHW
        if self._scheduler.config.prediction_type == "v_prediction":
            return noisy_BCHW, a_B111 * eps_BCHW - s_B111 * x_BCHW
        return noisy_BCHW, eps_BCHW

    @staticmethod
    def _predict(module: nn.Module, noisy_BCHW: Tensor, t_B: Tensor, y_B: Tensor) -> Tensor:
        return module(noisy_BCHW, t_B, class_labels=y_B).sample.float()

    # ------------------------------------------------------------------------------------------------------- sampling

    @torch.inference_mode()
    def sample(self, y_B: Tensor, seeds: Sequence[int], *, sampling: Sampling) -> Tensor:
        """See `Family.sample`. The null label may be asked for: then the images are unconditional."""
        if len(seeds) != len(y_B):
            raise BadInput(f"expected one seed an image, found {len(seeds)} for {len(y_B)}")
        rows = self.class_count if self.null_label is None else self.class_count + 1
        if len(y_B) and not 0 <= int(y_B.min()) <= int(y_B.max()) < rows:
            raise BadInput(f"expected labels 0 to {rows - 1}, found {int(y_B.min())} to {int(y_B.max())}")
        if sampling.guidance_scale != 1.0 and self.null_label is None:
            raise BadInput(f"guidance {sampling.guidance_scale} needs a null label and this model has none; use 1")
        if sampling.steps > len(self._abar_T):
            raise BadInput(f"expected at most {len(self._abar_T)} sampler steps, found {sampling.steps}")
        parts = [
            self._sample_batch(y_B[i : i + sampling.batch_size], seeds[i : i + sampling.batch_size], sampling)
            for i in range(0, len(y_B), sampling.batch_size)
        ]
        return torch.cat(parts) if parts else torch.empty(0, self._channels, *self._sides, dtype=torch.uint8)

    def _sample_batch(self, y_B: Tensor, seeds: Sequence[int], sampling: Sampling) -> Tensor:
        scheduler = DDIMScheduler.from_config(self._scheduler.config)  # its own: set_timesteps changes the object
        scheduler.set_timesteps(sampling.steps)
        y_B = y_B.to(self.device)
        x_BCHW = torch.stack([self._noise(seed) for seed in seeds]).to(self.device)
        for t in scheduler.timesteps:
            predicted_BCHW = self._guided(x_BCHW, int(t), y_B, sampling.guidance_scale)
            # Where x_0 is clipped, the direction must be recomputed from it: left inconsistent, digits lose strokes.
            step = scheduler.step(predicted_BCHW, t, x_BCHW, eta=0.0, use_clipped_model_output=True)
            x_BCHW = step.prev_sample
        if not bool(torch.isfinite(x_BCHW).all()):
            raise Diverged("the model drew an image with NaN or infinite pixels", step=0, loss=float("nan"))
        return x_BCHW.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).cpu()

    def _noise(self, seed: int) -> Tensor:
        return torch.randn(self._channels, *self._sides, generator=torch.Generator().manual_seed(seed))

    def _guided(self, x_BCHW: Tensor, t: int, y_B: Tensor, scale: float) -> Tensor:
        """e_null + s (e_class - e_null), from one forward pass of 2B images."""
        if scale == 1.0:
            return self.module(x_BCHW, t, class_labels=y_B).sample
        labels_2B = torch.cat([y_B, torch.full_like(y_B, self.null_label)])
        class_BCHW, null_BCHW = self.module(torch.cat([x_BCHW, x_BCHW]), t, class_labels=labels_2B).sample.chunk(2)
        return null_BCHW + scale * (class_BCHW - null_BCHW)


def _distance(a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
    return (a_BCHW - b_BCHW).square().flatten(1).mean(1)


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
