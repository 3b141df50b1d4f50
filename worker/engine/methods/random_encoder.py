"""Random encoder: retained images look to the encoder as they did, forgotten ones like random features. A baseline.

    mean_r ||E(T(x_r)) - E0(T(x_r))||^2 + alpha mean_f ||E(T(x_f)) - z||^2,   z = m + s N(0, 1) for every number of a tap

m and s are the mean and the standard deviation of all numbers of that tap, as the encoder answered before. So z is as large as
features are and means nothing; encoder_l2 asks for what the encoder makes of noise, which a decoder has an answer to.

Source: Li et al. 2024, "Machine Unlearning for Image-to-Image Generative Models", arXiv:2402.00351, baseline RANDOM ENCODER.
The published code weighs both terms by the weight of retained images (1 + label, where the second needs 1 - label): there the
second term pulls at retained images as well, and no forgotten image has a gradient.
Where we differ, besides: m and s are taken once, of forgotten and retained images, not of every batch, whose own would depend
on how it is cut; nothing that the decoder reads is trained, unless `release_compat`; each mean is over its own kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from worker.engine.batch import Batch
from worker.engine.completion import apart, with_numbers
from worker.engine.composite import PRESETS, Composite, CompositeParams
from worker.engine.family import ImageToImage, Question
from worker.engine.halves import Trains
from worker.engine.method import Params, Preset
from worker.engine.run import Run

SEEN = 256
"""At most about so many images of each stream have their features counted."""


class RandomEncoderParams(CompositeParams):
    """The encoder is trained, and nothing that the decoder reads."""

    release_compat: bool = Field(
        default=False,
        description="train what encoder and decoder both read, as the published code does; the decoder then changes",
    )

    @property
    def trains(self) -> Trains:
        """See `Params.trains`."""
        return "release" if self.release_compat else "encoder"


class Moments:
    """Sizes, means and standard deviations of the taps of many answers, each over all of a tap's numbers."""

    def __init__(self) -> None:
        self.shapes: list[list[int]] = []
        """Of one row of each tap."""
        self._sums: list[list[float]] = []

    def count(self, taps: Sequence[Tensor]) -> None:
        """Add the answers about some images."""
        self.shapes = [list(tap.shape[1:]) for tap in taps]
        rows = [tap.detach().double() for tap in taps]
        self._sums.append([float(x) for tap in rows for x in (tap.numel(), tap.sum(), tap.square().sum())])

    def spread(self) -> list[tuple[float, float]]:
        """(mean, standard deviation) of each tap."""
        n_T, sum_T, square_T = torch.tensor(self._sums, dtype=torch.float64).sum(dim=0).view(-1, 3).unbind(1)
        mean_T = sum_T / n_T
        std_T = (square_T / n_T - mean_T.square()).clamp_min(0).sqrt()
        return list(zip(mean_T.tolist(), std_T.tolist(), strict=True))


class RandomEncoder(Composite):
    """Descent on both distances, in one update."""

    name: ClassVar[str] = "random_encoder"
    title: ClassVar[str] = "Random encoder: random features for what is forgotten (baseline)"
    paper: ClassVar[str] = "arXiv:2402.00351"
    guarantee: ClassVar[Literal["empirical"]] = "empirical"
    families: ClassVar[tuple[str, ...]] = ("i2i_diffusion", "mae", "sd_inpainting", "vqgan")
    presets: ClassVar[Mapping[str, Preset]] = PRESETS
    Params: ClassVar[type[Params]] = RandomEncoderParams

    def __init__(self, params: RandomEncoderParams, run: Run) -> None:
        super().__init__(params, run)
        self.family = cast(ImageToImage, run.family)
        self.teacher = self.family.module.teacher()
        self.shapes: list[list[int]] = []
        self.spread: list[tuple[float, float]] = []
        """Of each tap: the shape of a row; mean and standard deviation of its numbers."""

    @torch.no_grad()
    def prepare(self) -> None:
        """Count the features of the encoder as it came; every rank counts them all."""
        run, moments = self.run, Moments()
        streams = [stream.stratified(min(SEEN, len(stream.indices_N))) for stream in (run.forget, run.retain)]
        pieces = torch.cat([stream.indices_N for stream in streams]).split(self.params.batch_size)
        for i, index_B in enumerate(pieces):
            batch = run.plain(index_B, run.forget.generator("features", i))
            moments.count(self.family.encode(self._question(batch), module=self.teacher))
            run.preparing(i + 1, len(pieces))
        self.shapes, self.spread = moments.shapes, moments.spread()

    def forget_batch(self, iteration: int) -> Batch:
        """This rank's rows; `tap0`, `tap1`, … of their draw are N(0, 1), shaped like the taps."""
        run, batch = self.run, super().forget_batch(iteration)
        source, rows = run.forget.generator(iteration, "features"), run.ranks.rows(batch.total)
        drawn = {f"tap{i}": torch.randn(batch.total, *shape, generator=source)[rows] for i, shape in enumerate(self.shapes)}
        return replace(batch, draw=with_numbers(batch.draw, drawn, run.ranks.device))

    def retained(self, batch: Batch, module: nn.Module) -> tuple[Tensor, Tensor]:
        """How far each image's taps are from the teacher's."""
        question = self._question(batch)
        with torch.no_grad():
            taught = self.family.encode(question, module=self.teacher)
        apart_B = apart(self.family.encode(question, module=module), taught)
        return apart_B, apart_B

    def forgotten(self, batch: Batch, module: nn.Module) -> tuple[Tensor, Tensor]:
        """How far each image's taps are from random ones."""
        random = [mean + std * batch.draw[f"tap{i}"] for i, (mean, std) in enumerate(self.spread)]
        apart_B = apart(self.family.encode(self._question(batch), module=module), random)
        return apart_B, apart_B

    def _question(self, batch: Batch) -> Question:
        return self.family.question(batch.x_BCHW, batch.y_B, batch.draw)

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's, and what was counted."""
        return {"shapes": self.shapes, "spread": [list(pair) for pair in self.spread], **super().state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Method.load_state_dict`."""
        self.shapes = state["shapes"]
        self.spread = [(mean, std) for mean, std in state["spread"]]
        super().load_state_dict(state)
