"""Unlearning for models that complete images: a student encoder and the frozen teacher that it starts as.

    L = mean_r ||E(q_r) - E0(q_r)||^2 + alpha mean_f ||E(q_f) - t_f||^2

q are corrupted images; t_f, the target of a forgotten one, is what the teacher says of something else under the same mask:
noise, any retained images, or the retained image most like it. The squared distance is a mean over the numbers of a tap and a
sum over taps.

Each mean is over its own kind, so that a batch with more of one does not rescale alpha. The published code divides both sums by
the size of the mixed batch. It asks the teacher twice, of all images and of all noises, and throws half of each answer away;
here every row is asked once.

Shape suffixes: B images of this rank's batch, M contents of a target, N items of the dataset, D features.
Source: Li et al. 2024, "Machine Unlearning for Image-to-Image Generative Models", arXiv:2402.00351, eq. (10).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from worker.engine.batch import Batch, Part
from worker.engine.family import Draw, ImageToImage, Question, Scope, sent
from worker.engine.halves import Trains
from worker.engine.method import Conditions, Descent
from worker.engine.run import Run

Target = Literal["noise", "mean_embedding", "retain_neighbour"]

CANDIDATES = 4096
"""At most so many retained images are looked through for neighbours."""


class EncoderParams(Descent):
    """Of methods that descend the encoder's distances."""

    conditions: ClassVar[Conditions] = {"noise_scope": {"target": ("noise",)}, "partners": {"target": ("mean_embedding",)}}

    iterations: int = Field(default=500, ge=1, le=1_000_000, description="updates of the loop")
    forget_batch_size: int | None = Field(
        default=None,
        ge=1,
        le=65_536,
        description="forgotten images of a global batch; null: as many as retained ones, batch_size",
    )
    target: Target = Field(
        default="noise",
        description="what a forgotten image is to look like to the encoder: noise, retained images on average, or the retained "
        "image that looks most like it",
    )
    noise_scope: Scope = Field(
        default="image",
        description="noise in place of the hidden part alone, as the published diffusion code has it, or of all",
    )
    partners: int = Field(default=2, ge=1, le=64, description="retained images that stand for their mean, anew for each image")
    release_compat: bool = Field(
        default=False,
        description="train what encoder and decoder both read, as the published code does; the decoder then changes",
    )

    @property
    def trains(self) -> Trains:
        """See `Params.trains`."""
        return "release" if self.release_compat else "encoder"


class Lesson:
    """The two parts of the objective, and what they are made of. Made at the weights as they came: those are the teacher's."""

    def __init__(self, params: EncoderParams, run: Run) -> None:
        self.params, self.run = params, run
        self.family = cast(ImageToImage, run.family)
        self.teacher = self.family.module.teacher()
        self.neighbour_N = torch.empty(0, dtype=torch.int64)
        """The retained item that looks most like each forgotten one, -1 for all others; made by `find_neighbours`."""
        self._partners = run.retain.named("partners")

    # ---------------------------------------------------------------------------------------------------------- the parts

    def retained(self, iteration: int) -> Part:
        """Mean distance of retained images from the teacher's answer to the same question."""
        return Part(self.retain_batch(iteration), self.as_taught)

    def forgotten(self, iteration: int, *, scale: float) -> Part:
        """Mean distance of forgotten images from their targets."""
        return Part(self.forget_batch(iteration), self.as_target, scale=scale)

    def as_taught(self, batch: Batch, module: nn.Module) -> tuple[Tensor, Tensor]:
        """See `batch.Rows`."""
        question = self._question(batch)
        apart_B = apart(self.family.encode(question, module=module), self.taught(question))
        return apart_B, apart_B

    def as_target(self, batch: Batch, module: nn.Module) -> tuple[Tensor, Tensor]:
        """See `batch.Rows`."""
        apart_B = apart(self.family.encode(self._question(batch), module=module), self.target(batch))
        return apart_B, apart_B

    @torch.no_grad()
    def taught(self, question: Question) -> list[Tensor]:
        """The teacher's taps."""
        return self.family.encode(question, module=self.teacher)

    @torch.no_grad()
    def target(self, batch: Batch) -> list[Tensor]:
        """The teacher's taps of what stands in for forgotten images: a mean, where it is several."""
        if self.params.target == "noise":
            question = self.family.question(batch.x_BCHW, batch.y_B, batch.draw, noise_in=self.params.noise_scope)
            return self.taught(question)
        answers = []
        for index_B in batch.draw["instead"].unbind(1):
            x_BCHW = self.family.prepare(self.run.held_N[index_B], batch.draw)
            answers.append(self.taught(self.family.question(x_BCHW, batch.y_B, batch.draw)))
        return [torch.stack(taps).mean(dim=0) for taps in zip(*answers, strict=True)]

    def _question(self, batch: Batch) -> Question:
        return self.family.question(batch.x_BCHW, batch.y_B, batch.draw)

    # -------------------------------------------------------------------------------------------------------- the batches

    @property
    def forget_size(self) -> int:
        """Forgotten images of a global batch."""
        return self.params.forget_batch_size or self.params.batch_size

    def retain_batch(self, iteration: int) -> Batch:
        """This rank's rows."""
        return self.run.batch(self.run.retain, iteration, self.params.batch_size)

    def forget_batch(self, iteration: int) -> Batch:
        """This rank's rows, and in their draw what stands in for them: `noise`, or (B, M) positions `instead`."""
        run, size = self.run, self.forget_size
        batch = run.batch(run.forget, iteration, size)
        rows, device = run.ranks.rows(size), run.ranks.device
        match self.params.target:
            case "noise":
                source = run.forget.generator(iteration, "noise")
                noise = self.family.noise(size, run.dataset.image_shape, source, scope=self.params.noise_scope)
                more = {} if noise is None else {"noise": noise[rows]}
            case "mean_embedding":
                count = self.params.partners
                more = {"instead": self._partners.pick(iteration, size * count).view(size, count)[rows]}
            case "retain_neighbour":
                more = {"instead": self.neighbour_N[run.forget.pick(iteration, size)[rows]][:, None]}
        return replace(batch, draw=with_numbers(batch.draw, more, device))

    # --------------------------------------------------------------------------------------------------------- neighbours

    def find_neighbours(self) -> None:
        """Fill `neighbour_N`, where the target asks for it: by the cosine of the last tap's mean, under one mask for all."""
        run = self.run
        if self.params.target != "retain_neighbour":
            return
        candidates = run.retain.stratified(min(CANDIDATES, len(run.retain.indices_N))).indices_N
        forgotten = run.forget.indices_N
        seen_ND = self._seen(torch.cat([candidates, forgotten]))
        among_ND, wanted_ND = seen_ND[: len(candidates)], seen_ND[len(candidates) :]
        nearest = torch.cat([(part @ among_ND.T).argmax(dim=1) for part in wanted_ND.split(1024)]).cpu()
        self.neighbour_N = torch.full((len(run.labels_N),), -1)
        self.neighbour_N[forgotten] = candidates[nearest]

    @torch.no_grad()
    def _seen(self, index_M: Tensor) -> Tensor:
        """(M, D) what the teacher makes of items, each of length 1; batches are dealt out to the ranks."""
        run, size = self.run, self.params.batch_size
        pieces: Sequence[Tensor] = index_M.split(size)
        drawn = self.family.draw(1, run.dataset.image_shape, run.retain.generator("neighbours"), label_drop=0.0)
        rows: list[Tensor] = []
        for i, index_B in enumerate(pieces):
            if i % run.ranks.world == run.ranks.rank:
                batch = run.plain(index_B, run.retain.generator("neighbours", i))
                same = Draw({name: t.expand(len(index_B), *t.shape[1:]) for name, t in drawn.tensors.items()})
                tap = self.taught(self._question(replace(batch, draw=same.to(run.ranks.device))))[-1].float()
                rows.append(F.normalize(tap.mean(dim=1) if tap.ndim == 3 else tap.mean(dim=(2, 3)), dim=1))
            else:
                rows.append(torch.empty(0))
            run.preparing(i + 1, len(pieces))
        width = self._width(rows)
        table_MD = torch.zeros(len(index_M), width, device=run.ranks.device)
        for i, row in enumerate(rows):
            if len(row):
                table_MD[i * size : i * size + len(row)] = row
        return run.ranks.sum_(table_MD)

    def _width(self, rows: Sequence[Tensor]) -> int:
        mine = max(row.shape[-1] if len(row) else 0 for row in rows)
        return int(self.run.ranks.max_(torch.tensor(mine, device=self.run.ranks.device)))


def apart(taps: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """(B,) the sum over taps of the mean squared difference of their numbers, float32 whatever they are."""
    distances = [
        (tap.float() - target.float()).square().flatten(1).mean(dim=1) for tap, target in zip(taps, targets, strict=True)
    ]
    return torch.stack(distances).sum(dim=0)


def with_numbers(draw: Draw, more: dict[str, Tensor], device: torch.device) -> Draw:
    """The draw and more of its rows' numbers, which are on the CPU yet."""
    return Draw(draw.tensors | {name: sent(t, device) for name, t in more.items()}, draw.host)
