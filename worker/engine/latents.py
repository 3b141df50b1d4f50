"""Images as latents: the frozen autoencoder that latent diffusion families work behind.

Every item is encoded once and held as the posterior's mean and log-variance; training draws from that posterior anew at every
use, as training on freshly encoded images would. Nothing here is trained and nothing is written: a saved model gets the
autoencoder's files as they came.

Shape suffixes: N items or images, B images of a batch, C channels, H, W pixels; D latent channels, h, w latent cells.
Source: Rombach et al. 2022 (arXiv:2112.10752), section 3.1 and appendix D.1 for the scaling factor.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import AutoencoderKL, DDIMScheduler
from torch import Tensor

from worker.contract import Sampling
from worker.engine import diffusion, weights
from worker.engine.denoising import Denoising
from worker.engine.errors import BadInput, BadModel, Diverged
from worker.engine.family import Augment, Draw, Start
from worker.engine.precision import channels_last

FOLDER = Path("vae")

HELD = torch.float16
"""Of what is held. Its three more bits of mantissa than bfloat16's keep the rounding of a latent below 1/2000 of it, and the
wider range of bfloat16 buys nothing: means are tens at most, and log-variances are cut to [-30, 20]."""

PIXELS = 1 << 19
"""Pixels of a batch of the autoencoder: 8 images of 256x256, whose widest activations take 0.3 GB."""

_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_NAME = re.compile(r"(\.attentions\.\d+\.)(query|key|value|proj_attn)(\.)")


@dataclass(frozen=True)
class Latents:
    """A frozen `AutoencoderKL`, in float32 and eval mode."""

    vae: AutoencoderKL
    device: torch.device

    @classmethod
    def load(cls, directory: Path, device: torch.device) -> Self:
        """Read `vae/` of a pipeline's folder; nothing is ever fetched.

        Raises:
            BadModel: no such folder, not an `AutoencoderKL`, or weights that `weights.load_into` refuses.
        """
        folder = directory / FOLDER
        if not (folder / "config.json").is_file():
            raise BadModel(f"expected {FOLDER}/config.json in the model folder, found none")
        config = weights.read_json(folder / "config.json")
        if config.get("_class_name") != "AutoencoderKL":
            raise BadModel(f"expected a diffusers AutoencoderKL in {FOLDER}/, found {config.get('_class_name')!r}")
        file = weights.only_file(folder, below=Path())
        try:
            vae = AutoencoderKL.from_config(config)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise BadModel(f"diffusers cannot build this autoencoder: {error}") from error
        weights.load_into(vae, folder / file, rename=_modern)
        return cls(channels_last(vae.to(device).eval().requires_grad_(False)), device)

    # -------------------------------------------------------------------------------------------------------------- shapes

    @property
    def factor(self) -> int:
        """Pixels to a latent cell, along one side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def shape(self, image_shape: Sequence[int]) -> tuple[int, int, int]:
        """(D, h, w) of the latents of (C, H, W) images.

        Raises: BadInput for another number of channels, or sides that are no multiple of `factor`.
        """
        channels, height, width = image_shape
        if channels != self.vae.config.in_channels or height % self.factor or width % self.factor:
            raise BadInput(
                f"the autoencoder works on images of {self.vae.config.in_channels} channels whose sides are multiples of "
                f"{self.factor}, found {tuple(image_shape)}"
            )
        return (self.vae.config.latent_channels, height // self.factor, width // self.factor)

    def image_shape(self, latent_shape: Sequence[int]) -> tuple[int, int, int]:
        """(C, H, W) of the images behind (D, h, w) latents."""
        _, height, width = latent_shape
        return (self.vae.config.out_channels, height * self.factor, width * self.factor)

    # -------------------------------------------------------------------------------------------------------------- images

    @torch.no_grad()
    def encode(self, images_NCHW: Tensor) -> Tensor:
        """The posterior of every image: (N, 2D, h, w), mean before log-variance, `HELD`, on the device.

        Args:
            images_NCHW: uint8 [0, 255], on the CPU.

        Raises:
            BadInput: images that `shape` refuses.
            BadModel: a moment that is not finite.
        """
        latent_channels, height, width = self.shape(images_NCHW.shape[1:])
        held_NDHW = torch.empty(len(images_NCHW), 2 * latent_channels, height, width, dtype=HELD, device=self.device)
        for rows in _batches(images_NCHW, pixels=images_NCHW.shape[-2] * images_NCHW.shape[-1]):
            held_NDHW[rows] = self._moments(images_NCHW[rows].to(self.device).float().div(127.5).sub(1.0)).to(HELD)
        if not bool(torch.isfinite(held_NDHW).all()):
            raise BadModel(f"expected finite latents, found the autoencoder to give NaN, infinity or more than {HELD} holds")
        return held_NDHW

    @torch.no_grad()
    def mean(self, x_BCHW: Tensor) -> Tensor:
        """(B, D, h, w) float32: the means of the posteriors of images in [-1, 1], shifted and scaled as configured."""
        sizes = [x_BCHW[rows] for rows in _batches(x_BCHW, pixels=x_BCHW.shape[-2] * x_BCHW.shape[-1])]
        with torch.autocast(x_BCHW.device.type, enabled=False):
            mean_BDHW = torch.cat([self._moments(x.float()) for x in sizes]).chunk(2, dim=1)[0]
        return (mean_BDHW - self._shift) * self.vae.config.scaling_factor

    def _moments(self, x_BCHW: Tensor) -> Tensor:
        """(B, 2D, h, w) mean before log-variance."""
        posterior = self.vae.encode(x_BCHW.contiguous(memory_format=torch.channels_last)).latent_dist
        return torch.cat([posterior.mean, posterior.logvar], dim=1)

    def draw(
        self,
        schedule: DDIMScheduler,
        count: int,
        image_shape: Sequence[int],
        generator: torch.Generator,
        *,
        label_drop: float,
        augment: Augment,
    ) -> Draw:
        """The numbers of `diffusion.draw` for latents, and `posterior`, standard normal, for `prepare`; on the CPU.

        Raises:
            BadInput: an augmentation. The latents of a mirrored image are not the mirrored latents, and holding both would
                double the memory of every run.
        """
        if augment != "none":
            raise BadInput(
                f"expected augment 'none', found {augment!r}: images are held as latents, and the latents of a mirrored "
                "image are not mirrored latents; mirror the images of the dataset instead"
            )
        shape = self.shape(image_shape)
        drawn = diffusion.draw(schedule, count, shape, generator, label_drop=label_drop, augment=augment)
        return Draw({**drawn.tensors, "posterior": torch.randn(count, *shape, generator=generator)})

    def prepare(self, held_BDHW: Tensor, draw: Draw) -> Tensor:
        """(B, D, h, w) float32, about unit variance: draws from the held posteriors, shifted and scaled as configured."""
        mean_BDHW, logvar_BDHW = held_BDHW.float().chunk(2, dim=1)
        return self.scaled(mean_BDHW + (0.5 * logvar_BDHW).exp() * draw["posterior"])

    def scaled(self, z_BDHW: Tensor) -> Tensor:
        """Latents as the autoencoder has them to about unit variance, as networks do."""
        return (z_BDHW - self._shift) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, z_BDHW: Tensor) -> Tensor:
        """uint8 (B, C, H, W) images of scaled latents, on the CPU.

        Raises: Diverged when a pixel is not finite.
        """
        shape = self.image_shape(z_BDHW.shape[1:])
        images_BCHW = torch.empty(len(z_BDHW), *shape, dtype=torch.uint8)
        for rows in _batches(z_BDHW, pixels=shape[1] * shape[2]):
            cells_BDHW = z_BDHW[rows].to(self.device).float() / self.vae.config.scaling_factor + self._shift
            x_BCHW = self.vae.decode(cells_BDHW.contiguous(memory_format=torch.channels_last)).sample
            if not bool(torch.isfinite(x_BCHW).all()):
                raise Diverged("the autoencoder decoded an image with NaN or infinite pixels", step=0, loss=float("nan"))
            images_BCHW[rows] = diffusion.to_pixels(x_BCHW)
        return images_BCHW

    @property
    def _shift(self) -> float:
        return self.vae.config.shift_factor or 0.0


class LatentDenoising(Denoising):
    """A family whose `Denoiser` works on the latents of images."""

    latents: Latents
    _shape: tuple[int, int, int]
    """(D, h, w) that the network takes."""

    def hold(self, images_NCHW: Tensor) -> Tensor:
        """See `Family.hold`: the autoencoder's posterior of every image, encoded here and never again."""
        expected = self.latents.image_shape(self._shape)
        if tuple(images_NCHW.shape[1:]) != expected:
            raise BadInput(f"the model works on images {expected}, found {tuple(images_NCHW.shape[1:])}")
        return self.latents.encode(images_NCHW)

    def draw(
        self,
        count: int,
        image_shape: Sequence[int],
        generator: torch.Generator,
        *,
        label_drop: float,
        augment: Augment = "none",
    ) -> Draw:
        """See `Family.draw` and `Latents.draw`, which refuses to augment."""
        schedule = self.denoiser.schedule
        return self.latents.draw(schedule, count, image_shape, generator, label_drop=label_drop, augment=augment)

    def prepare(self, held_B: Tensor, draw: Draw) -> Tensor:
        """See `Latents.prepare`."""
        return self.latents.prepare(held_B, draw)

    def noise(self, count: int, image_shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """See `Generator.noise`: standard normal, the scale of latents."""
        return torch.randn(count, *self.latents.shape(image_shape), generator=generator)

    def sample(self, y_B: Tensor, seeds: Sequence[int], *, sampling: Sampling, start: Start | None = None) -> Tensor:
        """See `Generator.sample`. The null label (the empty prompt) may be asked for: then the images are unconditional.

        Given images start from the middle of their posterior.
        """
        begun: dict[str, Any] = {}
        if start is not None:
            mean_BDHW = self.latents.encode(start.images_BCHW).float().chunk(2, dim=1)[0]
            begun = {"x_BCHW": self.latents.scaled(mean_BDHW), "depth": start.depth}
        return self.latents.decode(self.denoiser.sample(y_B, seeds, self._shape, sampling=sampling, **begun))


def _batches(rows_N: Tensor, *, pixels: int) -> Iterator[slice]:
    """Slices of at most `PIXELS` pixels, or of one image."""
    size = max(1, PIXELS // pixels)
    return (slice(i, i + size) for i in range(0, len(rows_N), size))


def _modern(name: str) -> str:
    """A tensor's name as diffusers has it now: the public autoencoders' attention still has the names of 2022."""
    return _OLD_NAME.sub(lambda m: m[1] + _OLD_NAMES[m[2]] + m[3], name)
