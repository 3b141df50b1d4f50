"""The parts of tiny Stable Diffusion, with a UNet that takes a mask and the latents of what is visible as well."""

from __future__ import annotations

import json
from pathlib import Path

from diffusers import UNet2DConditionModel

from tests.worker.engine.tiny import Case
from tests.worker.engine.tiny import stable_diffusion as text_to_image
from tests.worker.engine.tiny.stable_diffusion import SIDE


def tiny_unet(**changes: object) -> UNet2DConditionModel:
    """Seeded."""
    return text_to_image.tiny_unet(**({"in_channels": 9, "dropout": 0.3} | changes))


def write_model(directory: Path, unet: UNet2DConditionModel | None = None) -> None:
    """The folder layout of the public Stable Diffusion inpainting, without a safety checker."""
    text_to_image.write_model(directory, unet or tiny_unet())
    file = directory / "model_index.json"
    index = json.loads(file.read_text()) | {"_class_name": "StableDiffusionInpaintPipeline", "image_encoder": [None, None]}
    file.write_text(json.dumps(index))


CASE = Case(write_model, 3, SIDE)
