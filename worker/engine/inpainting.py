"""Diffusion models that fill a hole: a UNet in halves, its losses in the hole, and the loop that denoises it.

The encoder is all that comes before the first up-sampling block, and its taps are all that it hands on: every map that a skip
connection carries, and the middle's. The embedding of time is read by both halves.

    x_t, what is visible, t  ->  conv_in, down_blocks, mid_block  ->  taps  ->  up_blocks, conv_norm_out, conv_out  ->  noise

- Where noise stands in for the hole alone, x_t is pure noise there, at whichever timestep the network is told: near the end of
  the schedule that is what x_t is anyhow, and the target asks little; at its beginning it asks for all.
- The loss is a mean over what is hidden. Palette's is a mean over the image of a difference that is zero where it is visible,
  which is smaller by the share that is hidden.
- Training hides a box of a quarter of the image, half as wide and half as high. Palette hides the union of a box, of about this
  size, and of brush strokes, which covers a share of its own in every image; here every mask hides equally much.

Shape suffixes: B images, C channels, H, W pixels or latent cells, L tokens of a prompt, D their width.
Source: Saharia et al. 2022 (Palette), arXiv:2111.05826; Li et al. 2024, arXiv:2402.00351, for halves, taps and noise in the
hole: its published code takes the same maps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from worker.contract import MaskSpec, Sampling
from worker.engine import corruption, diffusion
from worker.engine.errors import BadModel, Diverged, is_out_of_memory
from worker.engine.family import Draw, Question, Scope
from worker.engine.halves import Halves
from worker.engine.precision import channels_last

UNet = UNet2DModel | UNet2DConditionModel
U = TypeVar("U", UNet2DModel, UNet2DConditionModel)

NATIVE = MaskSpec(kind="box", ratio=0.25)

ENCODER = ("conv_in", "down_blocks", "mid_block")
SHARED = ("time_embedding",)


class Inpainting:
    """Base of a family of this kind. What is left to it: what its network is asked, and how an image becomes x and back."""

    module: Halves
    schedule: DDIMScheduler
    device: torch.device
    cell: int
    native: MaskSpec
    grid: corruption.Grid

    def _set_up(self, unet: UNet, schedule: DDIMScheduler, grid: corruption.Grid, device: torch.device) -> None:
        """Raises: BadInput for a grid of which the native mask hides all or nothing."""
        self.module, self.schedule, self.device = in_halves(unet, device), schedule, device
        self.native, self.grid = NATIVE, grid
        self._hidden_cells = corruption.hidden_count(self.native, grid)
        self._abar_T = schedule.alphas_cumprod.to(device)

    def fresh(self, seed: int) -> nn.Module:
        """See `Family.fresh`."""
        network = self.module.network
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            unet = type(network).from_config(network.config)
        return in_halves(unet, self.device)

    # ------------------------------------------------------------------------------------------------- left to the family

    def clean(self, x_BCHW: Tensor) -> Tensor:
        """What is made noisy of rows of `prepare`."""
        return x_BCHW

    def about(self, x_BCHW: Tensor, shown_B: Tensor, draw: Draw, noise_in: Scope | None) -> Question:
        """What the network is asked.

        Args:
            shown_B: int64 labels whose prompts are shown, for families with prompts.
        """
        raise NotImplementedError

    def shown(self, y_B: Tensor, draw: Draw) -> Tensor:
        """Labels whose prompts are shown."""
        return y_B

    def unprompted(self, y_B: Tensor) -> Tensor:
        """As many labels whose prompt says nothing."""
        return y_B

    def filled(
        self, images_BCHW: Tensor, hidden_Bhw: Tensor, seeds: Sequence[int], y_B: Tensor | None, sampling: Sampling
    ) -> Tensor:
        """uint8 (B, C, H, W) on the CPU, as the model draws them; what is visible may differ from the images given.

        Args:
            images_BCHW, hidden_Bhw, y_B: on the device, in number one batch.
        """
        raise NotImplementedError

    def require_shape(self, images_NCHW: Tensor) -> None:
        """Raises: BadInput for images of another shape than the network's."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------------------- asking

    def question(self, x_BCHW: Tensor, y_B: Tensor, draw: Draw, *, noise_in: Scope | None = None) -> Question:
        """See `ImageToImage.question`. Noise comes without the prompt of what it stands for."""
        shown_B = self.shown(y_B, draw)
        return self.about(x_BCHW, shown_B if noise_in is None else self.unprompted(shown_B), draw, noise_in)

    def encode(self, question: Question, *, module: nn.Module | None = None) -> list[Tensor]:
        """See `ImageToImage.encode`."""
        taps: list[Tensor] = (module or self.module)(*question)
        return taps

    def loss(self, x_BCHW: Tensor, y_B: Tensor, draw: Draw, *, module: nn.Module | None = None) -> Tensor:
        """See `Family.loss`: mean squared error of the predicted noise, or velocity, where the image is hidden."""
        _, target_BCHW = self.noised(self.clean(x_BCHW), draw)
        return self._in_the_hole(self._answer(self.question(x_BCHW, y_B, draw), module) - target_BCHW, draw)

    def loss_to_noise(self, x_BCHW: Tensor, y_B: Tensor, draw: Draw, *, module: nn.Module | None = None) -> Tensor:
        """(B,) the loss where pure noise is in the hole, at any timestep, and is what the network should find there.

        Asked for the velocity it should answer the one that goes with x_t = eps: of x_0 = eps a / (1 + s), where
        a^2 = abar_t and s^2 = 1 - a^2, it is eps a / (1 + s).

        Source: Li et al. 2024, arXiv:2402.00351, its published code for diffusion models, baseline NOISY LABEL.
        """
        target_BCHW = draw["eps"]
        if self.schedule.config.prediction_type == "v_prediction":
            abar_B111 = self._abar_T[draw["t"]].view(-1, 1, 1, 1)
            target_BCHW = target_BCHW * abar_B111.sqrt() / (1 + (1 - abar_B111).sqrt())
        question = self.about(x_BCHW, self.shown(y_B, draw), draw, "hole")
        return self._in_the_hole(self._answer(question, module) - target_BCHW, draw)

    def distance(
        self, x_BCHW: Tensor, y_B: Tensor, draw: Draw, *, teacher: nn.Module, temperature: float = 1.0,
        instead: tuple[Tensor, Tensor] | None = None, module: nn.Module | None = None,
    ) -> Tensor:  # fmt: skip
        """See `ImageToImage.distance`; a temperature means nothing here."""
        question = self.question(x_BCHW, y_B, draw)
        with torch.no_grad():
            taught_BCHW = self._answer(question if instead is None else self.question(*instead, draw), teacher)
        return self._in_the_hole(self._answer(question, module) - taught_BCHW, draw)

    def noised(self, x_BCHW: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """See `diffusion.noised`."""
        return diffusion.noised(x_BCHW, draw, self.schedule, self._abar_T)

    def hidden(self, draw: Draw) -> Tensor:
        """bool (B, h, w), from the draw's numbers."""
        return corruption.hidden(self.native, self.grid, draw["mask"])

    def _answer(self, question: Question, module: nn.Module | None) -> Tensor:
        """(B, C, H, W) float32."""
        answer_BCHW: Tensor = (module or self.module)(*question, whole=True)
        return answer_BCHW.float()

    def _in_the_hole(self, apart_BCHW: Tensor, draw: Draw) -> Tensor:
        """(B,) mean square of what is hidden."""
        square_BHW = apart_BCHW.square().mean(dim=1)
        return square_BHW.masked_fill(~self.hidden(draw), 0.0).flatten(1).sum(dim=1) / self._hidden_cells

    # --------------------------------------------------------------------------------------------------------- completing

    @torch.no_grad()
    def complete(
        self,
        images_BCHW: Tensor,
        hidden_Bhw: Tensor,
        seeds: Sequence[int],
        *,
        sampling: Sampling,
        y_B: Tensor | None = None,
    ) -> Tensor:
        """See `ImageToImage.complete`; also refused: more steps than the schedule has."""
        self.require_shape(images_BCHW)
        count = len(images_BCHW)
        corruption.require_one_each(images_BCHW, hidden_Bhw, seeds, y_B)
        diffusion.require_steps(self.schedule, sampling)
        if not count:
            return images_BCHW
        corruption.require_alike(hidden_Bhw, self.grid)
        parts = []
        for first in range(0, count, sampling.batch_size):
            rows = slice(first, first + sampling.batch_size)
            labels = None if y_B is None else y_B[rows].to(self.device)
            drawn = self.filled(
                images_BCHW[rows].to(self.device), hidden_Bhw[rows].to(self.device), seeds[rows], labels, sampling
            )
            parts.append(torch.where(corruption.pixels(hidden_Bhw[rows], self.cell), drawn, images_BCHW[rows]))
        return torch.cat(parts)

    def denoise(
        self,
        start_BCHW: Tensor,
        predict: Callable[[Tensor, Tensor], Tensor],
        sampling: Sampling,
        *,
        paste: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> Tensor:
        """x_0 on the device.

        Args:
            predict: (x_t (B, C, H, W), t (B,)) -> noise or velocity.
            paste: puts back what is known, at the start and after every step.

        Raises:
            Diverged: it is not finite.
        """
        x_BCHW = paste(start_BCHW)
        scheduler = diffusion.sampler_of(self.schedule, sampling)
        for t in scheduler.timesteps:
            t_B = torch.full((len(x_BCHW),), int(t), device=self.device)
            x_BCHW = paste(diffusion.stepped(scheduler, predict(x_BCHW, t_B), t, x_BCHW, sampling))
        if not bool(torch.isfinite(x_BCHW).all()):
            raise Diverged("the model completed an image with NaN or infinity", step=0, loss=float("nan"))
        return x_BCHW


def seeded(seeds: Sequence[int], shape: Sequence[int], device: torch.device) -> Tensor:
    """(B, *shape) standard normal; row i follows from `seeds[i]` alone."""
    rows = [torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows).to(device)


# ------------------------------------------------------------------------------------------------------------ the network


def in_halves(unet: UNet, device: torch.device) -> Halves:
    """Raises: BadModel; see `Halves`."""
    there = {name.split(".")[0] for name in unet.state_dict()}
    return Halves(
        channels_last(unet.eval()),
        encoder=[part for part in ENCODER if part in there],
        shared=[part for part in SHARED if part in there],
        encode=encode,
        answer=answer,
        device=device,
    ).eval()


def encode(network: UNet, input_BCHW: Tensor, t_B: Tensor, prompt_BLD: Tensor | None = None) -> list[Tensor]:
    """See `halves.Encode`: the first half of diffusers' forward pass."""
    prompted: dict[str, Any] = {} if prompt_BLD is None else {"encoder_hidden_states": prompt_BLD}

    def more(block: nn.Module) -> dict[str, Any]:
        return prompted if getattr(block, "has_cross_attention", False) else {}

    x_BCHW = input_BCHW.contiguous(memory_format=torch.channels_last)
    if network.config.center_input_sample:
        x_BCHW = 2 * x_BCHW - 1.0
    time_BE = network.time_embedding(network.time_proj(t_B).to(x_BCHW.dtype))
    if getattr(network, "time_embed_act", None) is not None:
        time_BE = network.time_embed_act(time_BE)
    x_BCHW = network.conv_in(x_BCHW)
    taps = [x_BCHW]
    for block in network.down_blocks:
        x_BCHW, states = block(hidden_states=x_BCHW, temb=time_BE, **more(block))
        taps.extend(states)
    if network.mid_block is not None:
        taps.append(network.mid_block(x_BCHW, time_BE, **more(network.mid_block)))
    return taps


def answer(network: UNet, input_BCHW: Tensor, t_B: Tensor, prompt_BLD: Tensor | None = None) -> Tensor:
    """See `halves.Answer`: the prediction."""
    prompted = {} if prompt_BLD is None else {"encoder_hidden_states": prompt_BLD}
    predicted_BCHW: Tensor = network(input_BCHW.contiguous(memory_format=torch.channels_last), t_B, **prompted).sample
    return predicted_BCHW


def built(kind: type[U], config: Mapping[str, Any]) -> U:
    """A network of a stranger's configuration. Raises: BadModel."""
    try:
        network: U = kind.from_config(config)
    except Exception as error:  # what a stranger's values break is not foreseeable
        if is_out_of_memory(error):
            raise
        raise BadModel(f"diffusers cannot build this configuration: {type(error).__name__}: {error}") from error
    return network
