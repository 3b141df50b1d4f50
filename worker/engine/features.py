"""What a model knows of an image before it answers: what a classifier's last layer is given, or an encoder's taps, pooled.

Shape suffixes: N images, B of them at a time, C channels, H, W pixels, T tokens, D features.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from worker.engine.errors import BadInput, Diverged
from worker.engine.family import Classifier, Draw, Family, ImageToImage
from worker.engine.streams import generator

BATCH = 64
UNPROMPTED = -1
EARLY = 10
"""Timesteps are a tenth of what is drawn in training: late ones leave little of an image to know anything of.
Source: Baranchuk et al. 2022, arXiv:2112.03126, section 4, of where features of a diffusion are taken."""


def features_of(model: Family, images_NCHW: Tensor, seed: int) -> Tensor:
    """(N, D) float32, on the CPU.

    An encoder is asked as it is trained, without a prompt: what is hidden of image i follows from `seed`, so that every model
    sees the same part. Taps are averaged over their tokens or pixels and laid side by side.

    Args:
        images_NCHW: uint8.

    Raises:
        BadModel, Diverged: see `Classifier.features`.
        BadInput: a generator, which is asked about no image.
    """
    if model.kind == "classifier":
        return cast(Classifier, model).features(images_NCHW)
    if model.kind != "i2i":
        raise BadInput(f"expected a model that is asked about images, found a {model.kind}")
    parts = [_pooled(cast(ImageToImage, model), part, seed, i) for i, part in enumerate(images_NCHW.split(BATCH))]
    features_ND = torch.cat(parts)
    if not bool(torch.isfinite(features_ND).all()):
        raise Diverged("the encoder answered an image with NaN or infinity", step=0, loss=float("nan"))
    return features_ND


@torch.inference_mode()
def _pooled(model: ImageToImage, images_BCHW: Tensor, seed: int, part: int) -> Tensor:
    held_B = model.hold(images_BCHW)
    draw = model.draw(len(images_BCHW), images_BCHW.shape[1:], generator(seed, "features", part), label_drop=0.0)
    if "t" in draw.tensors:
        draw = Draw({**draw.tensors, "t": draw["t"] // EARLY})
    draw = draw.to(held_B.device)
    y_B = torch.full((len(images_BCHW),), UNPROMPTED, device=held_B.device)
    taps = model.encode(model.question(model.prepare(held_B, draw), y_B, draw))
    pooled = [tap.mean(dim=1) if tap.ndim == 3 else tap.mean(dim=(2, 3)) for tap in taps]
    return torch.cat([tap.float() for tap in pooled], dim=1).cpu()
