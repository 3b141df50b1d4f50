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
from typing import Any, ClassVar, Literal, cast

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

NOISES = 64
"""Noises whose mean is a target that is kept. The gradient's mean is that of a noise anew, for its distance is squared:
E ||z - t||^2 = ||z - E t||^2 + const."""


class EncoderParams(Descent):
    """Of methods that descend the encoder's distances."""

    conditions: ClassVar[Conditions] = {
        "noise_scope": {"target": ("noise",)},
        "target_masks": {"target": ("noise",)},
        "partners": {"target": ("mean_embedding",)},
    }

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
    target_masks: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="so many masks in all for forgotten images, each with one target that is kept, a mean over noises; null: a "
        "mask and a noise anew for each image",
    )
    partners: int = Field(default=2, ge=1, le=64, description="retained images that stand for their mean, anew for each image")
    label_drop: float = Field(
        default=0.5, ge=0, le=1, description="share of images shown with the empty prompt: without one a model completes, too"
    )
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
        """The retained item that looks most like each forgotten one, -1 for all others; made by `prepare`."""
        self.kept: list[Tensor] = []
        """A tap's targets each, (masks, …), where they are kept; made by `prepare`."""
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
        if self.kept:
            return [tap[batch.draw["kept"]] for tap in self.kept]
        if self.params.target == "noise":
            question = self.family.question(batch.x_BCHW, batch.y_B, batch.draw, noise_in=self.params.noise_scope)
            return self.taught(question)
        answers = []
        for index_B in batch.draw["instead"].unbind(1):
            x_BCHW, y_B = self.family.prepare(self.run.held_N[index_B], batch.draw), self.run.labels_N[index_B]
            answers.append(self.taught(self.family.question(x_BCHW, y_B, batch.draw)))
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
        return self.run.batch(self.run.retain, iteration, self.params.batch_size, label_drop=self.params.label_drop)

    def forget_batch(self, iteration: int) -> Batch:
        """This rank's rows; their draw has what stands in for them: `noise`, positions `instead` (B, M), or `kept` targets."""
        run, size = self.run, self.forget_size
        batch = run.batch(run.forget, iteration, size, label_drop=self.params.label_drop)
        rows, device = run.ranks.rows(size), run.ranks.device
        match self.params.target:
            case "noise" if self.params.target_masks:
                chosen = torch.randint(self.params.target_masks, (size,), generator=run.forget.generator(iteration, "kept"))
                more = {"mask": self._masks()["mask"][chosen[rows]], "kept": chosen[rows]}
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

    # -------------------------------------------------------------------------------------------------- made beforehand

    def prepare(self) -> None:
        """Neighbours, or targets to keep, where they are asked for; the same on every rank."""
        if self.params.target == "retain_neighbour":
            self._find_neighbours()
        elif self.params.target == "noise" and self.params.target_masks:
            self._keep_targets(self.params.target_masks)

    def state_dict(self) -> dict[str, Any]:
        """What `prepare` made."""
        return {"neighbours": self.neighbour_N, "kept": self.kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it up; tensors are on the CPU."""
        self.neighbour_N = state["neighbours"]
        self.kept = [tap.to(self.run.ranks.device) for tap in state["kept"]]

    def _masks(self) -> Draw:
        """The numbers of the masks whose targets are kept, in order."""
        count, source = self.params.target_masks or 1, self.run.forget.generator("masks")
        return self.family.draw(count, self.run.dataset.image_shape, source, label_drop=0.0)

    def noises(self, k: int) -> Tensor:
        """(NOISES, …) whose mean answer is mask k's target, on the CPU."""
        source = self.run.forget.generator("kept", k)
        noise = self.family.noise(NOISES, self.run.dataset.image_shape, source, scope=self.params.noise_scope)
        assert noise is not None
        return noise

    @torch.no_grad()
    def _keep_targets(self, count: int) -> None:
        run, masks = self.run, self._masks()
        means: list[list[Tensor]] = []
        for k in range(count):
            draw = alike(masks.part(slice(k, k + 1)), NOISES)
            draw = with_numbers(draw.to(run.ranks.device), {"noise": self.noises(k)}, run.ranks.device)
            y_B = torch.full((NOISES,), -1, device=run.ranks.device)
            taps = self.taught(self.family.question(draw["noise"], y_B, draw, noise_in=self.params.noise_scope))
            means.append([tap.float().mean(dim=0) for tap in taps])
            run.preparing(k + 1, count)
        self.kept = [torch.stack(taps) for taps in zip(*means, strict=True)]

    def _find_neighbours(self) -> None:
        """By the cosine of the last tap's mean, under one mask for all."""
        run = self.run
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
                index_B, draw = sent(index_B, run.ranks.device), alike(drawn, len(index_B)).to(run.ranks.device)
                x_BCHW = self.family.prepare(run.held_N[index_B], draw)
                tap = self.taught(self.family.question(x_BCHW, run.labels_N[index_B], draw))[-1].float()
                rows.append(F.normalize(tap.mean(dim=1) if tap.ndim == 3 else tap.mean(dim=(2, 3)), dim=1))
            else:
                rows.append(torch.empty(len(index_B), 0, device=run.ranks.device))
            run.preparing(i + 1, len(pieces))
        features = torch.tensor(max(row.shape[1] for row in rows), device=run.ranks.device)
        width = int(run.ranks.max_(features))  # a rank without a piece has not seen it
        return run.ranks.sum_(torch.cat([F.pad(row, (0, width - row.shape[1])) for row in rows]))


def alike(draw: Draw, count: int) -> Draw:
    """The numbers of one row for many."""
    return Draw({name: t.expand(count, *t.shape[1:]) for name, t in draw.tensors.items()})


def apart(taps: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """(B,) the sum over taps of the mean squared difference of their numbers, float32 whatever they are."""
    distances = [
        (tap.float() - target.float()).square().flatten(1).mean(dim=1) for tap, target in zip(taps, targets, strict=True)
    ]
    return torch.stack(distances).sum(dim=0)


def with_numbers(draw: Draw, more: dict[str, Tensor], device: torch.device) -> Draw:
    """The draw and more of its rows' numbers, which are on the CPU yet."""
    return Draw(draw.tensors | {name: sent(t, device) for name, t in more.items()}, draw.host)
