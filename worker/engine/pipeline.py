"""The folder of a Stable Diffusion pipeline: its parts, and what of them must fit together.

A safety checker is carried along untouched and never loaded: it filters answers, it does not make them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from worker.engine import diffusion, latents, weights
from worker.engine.errors import BadModel
from worker.engine.latents import Latents
from worker.engine.prompts import TEXT, encoded

UNET, SCHEDULER = Path("unet"), Path("scheduler")
PARTS = (UNET, latents.FOLDER, TEXT)
CARRIED = (Path("safety_checker"),)
"""Weights that are copied and never read."""

OTHER_INPUTS = (
    "class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim", "encoder_hid_dim_type",
    "time_cond_proj_dim",
)  # fmt: skip
"""Keys of a UNet's configuration that ask for more than x_t, t and a prompt."""

AS_THE_PIPELINE = {"clip_sample": False, "thresholding": False, "steps_offset": 1}
"""What the pipeline makes of any schedule. Public folders leave `clip_sample` out, and diffusers' default would cut latents."""


@dataclass(frozen=True)
class Pipeline:
    """What of a folder is worked with."""

    unet: UNet2DConditionModel
    prompt_KLD: Tensor
    """(K + 1, L, D) float32 on the device: a row a class, and last the empty prompt's."""
    latents: Latents
    schedule: DDIMScheduler

    @classmethod
    def load(
        cls, directory: Path, *, kind: str, labels: Sequence[str], device: torch.device, fills_holes: bool = False
    ) -> Self:
        """Read the folder; nothing is ever fetched. The UNet stays on the CPU.

        Args:
            kind: the pipeline's class, as `model_index.json` names it.
            labels: a prompt a class.
            fills_holes: does the UNet take, beside x_t, a mask and the latents of what is visible?

        Raises:
            BadModel: a part is missing, is of another kind, or does not fit the others.
            BadInput: a prompt that reads like another one, or like the empty one.
        """
        _require_pipeline(directory, kind)
        files = weights.files_of_parts(directory, PARTS, carried=CARRIED)
        config = weights.read_json(directory / UNET / "config.json")
        prompt_KLD = encoded(directory, files[TEXT], [*labels, ""], device)
        vae = Latents.load(directory, device)
        channels = vae.vae.config.latent_channels
        _require_fitting(config, width=prompt_KLD.shape[-1], inputs=2 * channels + 1 if fills_holes else channels, out=channels)
        schedule = diffusion.schedule_of(weights.read_json(directory / SCHEDULER / "scheduler_config.json") | AS_THE_PIPELINE)
        try:
            unet = UNet2DConditionModel.from_config(config)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise BadModel(f"diffusers cannot build this configuration: {error}") from error
        weights.load_into(unet, directory / files[UNET])
        return cls(unet, prompt_KLD, vae, schedule)


def save(unet: nn.Module, directory: Path, base: Path) -> None:
    """Every file of the base as it is, but for the UNet's weights. Raises: BadModel; see `weights.save_like`."""
    file = weights.files_of_parts(base, PARTS, carried=CARRIED)[UNET]
    folder = str(base / UNET)  # by folder: the autoencoder's weights usually have the same file name
    shutil.copytree(base, directory, ignore=lambda at, _: [file.name] if at == folder else [], symlinks=False)
    weights.save_like(unet, directory / file, base / file)


def _require_pipeline(directory: Path, expected: str) -> None:
    for file in (Path("model_index.json"), UNET / "config.json", TEXT / "config.json", SCHEDULER / "scheduler_config.json"):
        if not (directory / file).is_file():
            raise BadModel(f"expected {file.as_posix()} in the model folder, found none")
    kind = weights.read_json(directory / "model_index.json").get("_class_name")
    if kind != expected:
        why = "; its two text encoders are not supported" if "XL" in str(kind) else ""
        raise BadModel(f"expected a {expected}, found {kind!r}{why}")


def _require_fitting(config: Mapping[str, Any], *, width: int, inputs: int, out: int) -> None:
    """The UNet takes t and a prompt of the text encoder's width, and its latents are the autoencoder's."""
    if config.get("_class_name") != "UNet2DConditionModel":
        raise BadModel(f"expected a diffusers UNet2DConditionModel, found {config.get('_class_name')!r}")
    others = [key for key in OTHER_INPUTS if config.get(key) is not None]
    if others:
        raise BadModel(f"expected a UNet that is asked with a prompt alone, found {others[0]} = {config[others[0]]!r}")
    diffusion.require_timesteps(config)
    if config.get("cross_attention_dim") != width:
        raise BadModel(f"expected cross_attention_dim = {width}, the text encoder's, found {config.get('cross_attention_dim')}")
    came = (config.get("in_channels"), config.get("out_channels"))
    if came != (inputs, out):
        raise BadModel(
            f"expected {inputs} channels in and {out} out, by the autoencoder's latents, found {came[0]} and {came[1]}"
        )
