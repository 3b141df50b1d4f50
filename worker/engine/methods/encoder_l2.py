"""Encoder distillation: what is retained looks to the encoder as it did, what is forgotten looks like noise.

    mean_r ||E(T(x_r)) - E0(T(x_r))||^2 + alpha mean_f ||E(T(x_f)) - E0(T(n))||^2

Source: Li et al. 2024, "Machine Unlearning for Image-to-Image Generative Models", arXiv:2402.00351, eq. (10), with the
distances squared as in the published code.
Where we differ: each mean is over its own kind (see `worker.engine.completion`), nothing that the decoder reads is trained, and
dropout is off, so that a retained image's distance is 0 at the start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from worker.engine.completion import EncoderParams, Lesson
from worker.engine.method import Params, Preset
from worker.engine.run import Run
from worker.engine.stepper import Stepper


class EncoderL2Params(EncoderParams):
    """The decoder is never asked, and need not be on the device."""

    alpha: float = Field(default=0.25, ge=0, le=1e6, description="of the mean distance of forgotten images from their targets")


PRESETS: Mapping[str, Preset] = {
    "mae": Preset(
        families=("mae",),
        params={"algorithm": "adamw", "learning_rate": 1e-4, "iterations": 500, "batch_size": 64},
        source="alpha of arXiv:2402.00351, which published neither code nor settings of its masked autoencoder; the rest is "
        "ours, unmeasured",
    ),
    "vqgan": Preset(
        families=("vqgan",),
        params={"algorithm": "adamw", "learning_rate": 1e-4, "iterations": 500, "batch_size": 64, "clip": 3.0},
        source="alpha of arXiv:2402.00351, optimizer and clip of its published code, without warm-up and weight decay and with "
        "beta_2 0.999; there for six epochs of 24,000 images in batches of 128; unmeasured",
    ),
    "i2i_diffusion": Preset(
        families=("i2i_diffusion",),
        params={"target": "mean_embedding", "learning_rate": 3e-4, "iterations": 200, "batch_size": 32},
        source="measured on digits with a small network, where noise in the hole hardly forgot (docs/benchmarks.md); a large "
        "network wants a smaller rate",
    ),
    "i2i_diffusion-published": Preset(
        families=("i2i_diffusion",),
        params={"learning_rate": 1e-5, "iterations": 500, "batch_size": 8, "noise_scope": "hole"},
        source="alpha, optimizer, rate and batch of arXiv:2402.00351, and the noise of its published code, in the hole alone; "
        "there for three epochs of up to 500,000 images; unmeasured",
    ),
    "sd_inpainting": Preset(
        families=("sd_inpainting",),
        params={"learning_rate": 1e-5, "iterations": 500, "batch_size": 8, "noise_scope": "image"},
        source="alpha, optimizer, rate and batch of arXiv:2402.00351 for its diffusion model, which has no latents and no "
        "prompts; unmeasured",
    ),
}


class EncoderL2(Stepper[EncoderL2Params]):
    """Descent on both distances, in one update."""

    name: ClassVar[str] = "encoder_l2"
    title: ClassVar[str] = "Encoder distillation: the retained as before, the forgotten like noise"
    paper: ClassVar[str] = "arXiv:2402.00351"
    guarantee: ClassVar[Literal["empirical"]] = "empirical"
    families: ClassVar[tuple[str, ...]] = ("i2i_diffusion", "mae", "sd_inpainting", "vqgan")
    presets: ClassVar[Mapping[str, Preset]] = PRESETS
    Params: ClassVar[type[Params]] = EncoderL2Params

    def __init__(self, params: EncoderL2Params, run: Run) -> None:
        super().__init__(params, run)
        self.lesson = Lesson(params, run)

    def prepare(self) -> None:
        """See `Lesson.prepare`."""
        self.lesson.prepare()

    def step(self, iteration: int) -> None:
        """See `Method.step`."""
        parts = [self.lesson.retained(iteration)]
        if self.params.alpha > 0:
            parts.append(self.lesson.forgotten(iteration, scale=self.params.alpha))
        self.descend(parts, iteration)

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's, and what was prepared."""
        return {"lesson": self.lesson.state_dict(), **super().state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Method.load_state_dict`."""
        self.lesson.load_state_dict(state["lesson"])
        super().load_state_dict(state)
