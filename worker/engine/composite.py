"""Two terms in one update: what is retained and what is forgotten, each a mean over its own kind.

    L = mean_r l_r + alpha mean_f l_f

Image-to-image unlearning and the baselines it is compared with differ in what l is, and in what is trained. As in
`worker.engine.completion`, a batch with more of one kind does not rescale alpha; the published code divides both sums by the
size of the mixed batch.

Source: Li et al. 2024, "Machine Unlearning for Image-to-Image Generative Models", arXiv:2402.00351, the form of eq. (10).
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from worker.engine.batch import Batch, Part, Rows
from worker.engine.method import Descent, Preset
from worker.engine.stepper import Stepper


class CompositeParams(Descent):
    """Of methods with two terms. They train the whole network unless they say otherwise: see `Params.trains`."""

    iterations: int = Field(default=500, ge=1, le=1_000_000, description="updates of the loop")
    alpha: float = Field(default=0.25, ge=0, le=1e6, description="of the mean over forgotten images")
    forget_batch_size: int | None = Field(
        default=None,
        ge=1,
        le=65_536,
        description="forgotten images of a global batch; null: as many as retained ones, batch_size",
    )
    label_drop: float = Field(
        default=0.5, ge=0, le=1, description="share of images shown with the empty prompt: without one a model completes, too"
    )


AS_DISTILLATION = (
    "alpha of arXiv:2402.00351; the rest as in encoder_l2's preset, for as many updates of as many images; unmeasured"
)

PRESETS: Mapping[str, Preset] = {
    "mae": Preset(
        families=("mae",),
        params={"algorithm": "adamw", "learning_rate": 1e-4, "iterations": 500, "batch_size": 64},
        source=AS_DISTILLATION,
    ),
    "vqgan": Preset(
        families=("vqgan",),
        params={"algorithm": "adamw", "learning_rate": 1e-4, "iterations": 500, "batch_size": 64, "clip": 3.0},
        source=AS_DISTILLATION,
    ),
    "inpainting": Preset(
        families=("i2i_diffusion", "sd_inpainting"),
        params={"learning_rate": 1e-5, "iterations": 500, "batch_size": 8},
        source=AS_DISTILLATION,
    ),
}
"""Of the baselines: what they are compared with goes as far."""


class Composite(Stepper[CompositeParams]):
    """Base of a method with two terms; what is left to it are their rows."""

    retained: Rows
    """l_r."""
    forgotten: Rows
    """l_f."""

    def step(self, iteration: int) -> None:
        """See `Method.step`."""
        p, run = self.params, self.run
        parts = [Part(run.batch(run.retain, iteration, p.batch_size, label_drop=p.label_drop), self.retained)]
        if p.alpha > 0:
            parts.append(Part(self.forget_batch(iteration), self.forgotten, scale=p.alpha))
        self.descend(parts, iteration)

    @property
    def forget_size(self) -> int:
        """Forgotten images of a global batch."""
        return self.params.forget_batch_size or self.params.batch_size

    def forget_batch(self, iteration: int) -> Batch:
        """This rank's rows."""
        return self.run.batch(self.run.forget, iteration, self.forget_size, label_drop=self.params.label_drop)
