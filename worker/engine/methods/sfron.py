"""SFR-on: forget by adaptive ascent on salient weights, then repair what is retained, in alternation.

Letters: l loss, w adaptive weight, lambda temperature, F diagonal Fisher information, m mask, gamma its threshold,
beta_t size of the forget step, k `forget_every`, T iterations. Shape suffix: B images of this rank.

Source: Huang et al. 2024, "Unified Gradient-Based Machine Unlearning with Remain Geometry Enhancement",
arXiv:2409.19732. The forget loss is by default the authors' relabelling variant (their `rl`: towards the network's own
answer for the next class) with the adaptive weights kept; `ascent` is the paper's figure. On 8x8 digits ascent turned a
forgotten 1 into a white bar that a judge still reads as a 1, 87 times in 100; relabelling, never in 200.
Where we differ: the forget step has an optimizer of its own by default (as in DualOptim,
arXiv:2504.15827), so that masked-out weights really stay and momentum does not leak between the two objectives; the
remain Fisher uses a class-balanced part of the retained data as large as the forget set; both Fishers use the trained
(conditional) loss, not a guided prediction; the weights' normaliser runs over the global batch; both step sizes fall.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from worker.engine.method import Batch, Params, Run
from worker.engine.streams import Stream

Decay = Literal["cosine", "linear", "constant"]


class SFRonParams(Params):
    """Defaults forget any one class of the example model; see the field texts for which way to turn them."""

    iterations: int = Field(default=50, ge=1, le=1_000_000, description="T: remain steps, one an iteration")
    batch_size: int = Field(default=48, ge=1, le=65_536, description="images of a global batch, forget and remain alike")
    learning_rate: float = Field(default=3e-4, gt=0, le=1, description="of the remain step")
    alpha_forget: float = Field(default=3.0, gt=0, le=1e4, description="size of a forget step relative to a remain step")
    alpha_decay: Decay = Field(default="linear", description="how alpha_forget falls over the iterations")
    remain_decay: Decay = Field(default="linear", description="how learning_rate falls over the iterations")
    forget_every: int = Field(default=1, ge=1, le=10_000, description="k: a forget step before every k-th remain step")
    temperature: float = Field(default=0.5, ge=0, le=10, description="lambda; 0 pushes all forget samples alike")
    forget_loss: Literal["relabel", "ascent"] = Field(
        default="relabel", description="relabel: towards the next retained class; ascent: away from the class's own noise"
    )
    loss_ceiling: float = Field(default=1.0, gt=0, le=1e6, description="ascent stops for a sample whose loss is above it")
    gamma: float = Field(
        default=3.0, ge=0, le=1e6, description="saliency threshold on forget / remain Fisher; 1 is the authors'"
    )
    fisher_batch_size: int = Field(default=16, ge=1, le=65_536, description="images a squared gradient is taken over")
    fisher_samples: int = Field(default=256, ge=1, le=10_000_000, description="at most so many images for each Fisher")
    clip: float = Field(default=1.0, gt=0, le=1e6, description="largest gradient norm, after masking")
    optimizer: Literal["dual", "shared"] = Field(default="dual", description="shared is the authors' code")
    remain_label_drop: float = Field(default=0.1, ge=0, le=1)
    forget_label_drop: float = Field(default=0.0, ge=0, le=1)


def adaptive_weights(
    loss_B: Tensor, *, temperature: float, floor: float = 1e-6, add: Callable[[Tensor], Tensor] = lambda x: x
) -> Tensor:
    """Weights that push hardest on the forget samples the model still fits best.

        w_i = l_i^(-lambda) / sum_j l_j^(-lambda)

    Args:
        loss_B: (B,) per-sample loss, float32, >= 0; detached here, so no gradient flows through the weights.
        temperature: lambda >= 0, dimensionless. 0 weighs all samples alike (plain gradient ascent).
        floor: losses below this share of the mean loss are lifted to it; one exact zero would else take all the weight.
        add: sums a scalar over ranks, so that j runs over the global batch.

    Returns:
        (B,) non-negative; over all ranks they sum to 1. NaN where a loss is not finite: the update refuses those.

    Source: Huang et al. 2024, the adaptive coefficient, over the batch as in the authors' code; the floor is ours.
    """
    loss_B = loss_B.detach()
    mean = add(loss_B.sum()) / add(torch.ones_like(loss_B).sum())
    relative_B = (loss_B / mean.clamp_min(torch.finfo(loss_B.dtype).tiny)).clamp_min(floor)
    power_B = relative_B.pow(-temperature)
    return power_B / add(power_B.sum())


def saliency(forget_F: list[Tensor], remain_F: list[Tensor], *, gamma: float) -> list[Tensor]:
    """Bool masks, shaped like the Fishers: m = 1[F_f >= gamma F_r], with a floor so that 0 against 0 counts as a ratio of 1.

    Source: Huang et al. 2024, eq. for the forget-remain balanced saliency; the floor 1e-15 as in the authors' code.
    """
    return [f + 1e-15 >= gamma * (r + 1e-15) for f, r in zip(forget_F, remain_F, strict=True)]


def decayed(decay: Decay, iteration: int, iterations: int) -> float:
    """Share of alpha_forget left at an iteration: 1 at the first. The paper draws linear, its code uses cosine."""
    progress = iteration / iterations
    if decay == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    return 1 - progress if decay == "linear" else 1.0


def anchors(class_count: int, retain_classes: tuple[int, ...]) -> Tensor:
    """(K,) for every class the next retained one, cyclically: what a forgotten label shall mean from now on."""
    retained = set(retain_classes)
    after = [[(k + i) % class_count for i in range(1, class_count + 1)] for k in range(class_count)]
    return torch.tensor([next(c for c in cycle if c in retained) for cycle in after])


class SFRon:
    """Every iteration a remain step; before every k-th, a masked forget step."""

    name: ClassVar[str] = "sfron"
    title: ClassVar[str] = "SFR-on: saliency forgetting with remain-preserving repair"
    paper: ClassVar[str] = "arXiv:2409.19732"
    guarantee: ClassVar[Literal["empirical"]] = "empirical"
    families: ClassVar[tuple[str, ...]] = ("ddpm",)
    Params: ClassVar[type[Params]] = SFRonParams

    def __init__(self, params: SFRonParams, run: Run) -> None:
        self.params, self.run = params, run
        self.remain_optimizer = torch.optim.Adam(run.parameters, lr=params.learning_rate, fused=True)
        dual = params.optimizer == "dual"
        self.forget_optimizer = torch.optim.Adam(run.parameters, fused=True) if dual else self.remain_optimizer
        self.mask: list[Tensor] = []
        self.anchor_K = anchors(len(run.spec.class_names), run.spec.retain_classes).to(run.ranks.device)

    @classmethod
    def begin(cls, params: SFRonParams, run: Run) -> Self:
        """See `Method.begin`."""
        return cls(params, run)

    def prepare(self) -> None:
        """The saliency mask, once, at the weights as they came."""
        count = min(len(self.run.forget.indices_N), self.params.fisher_samples)
        forget_F = self._fisher(self.run.forget.stratified(count), done=0)
        remain_F = self._fisher(self.run.retain.stratified(count), done=1)
        self.mask = saliency(forget_F, remain_F, gamma=self.params.gamma)

    def step(self, iteration: int) -> None:
        """See `Method.step`."""
        if iteration % self.params.forget_every == 0:
            self.forget_step(iteration)
        self.remain_step(iteration)

    def forget_step(self, iteration: int) -> None:
        """Ascend the weighted forget loss on the salient weights.

        With `dual`, beta_t is the step size itself: Adam and the clip would undo a factor on the loss. With `shared` it
        is a factor on the loss, as in the authors' code, and the remain momentum moves masked-out weights too.
        """
        p = self.params
        alpha = p.alpha_forget * decayed(p.alpha_decay, iteration, p.iterations)
        batch = self.run.batch(self.run.forget, iteration, p.batch_size, label_drop=p.forget_label_drop)
        objective = self.forget_objective(batch) * self.run.ranks.world
        if p.optimizer == "dual":
            self.forget_optimizer.param_groups[0]["lr"] = alpha * p.learning_rate
        else:
            objective = alpha * objective
        self.run.update(objective, self.forget_optimizer, step=iteration, clip=p.clip, mask=self.mask)

    def forget_objective(self, batch: Batch) -> Tensor:
        """This rank's part of the global sum of w_i times what forgets sample i; descending it forgets."""
        p, run = self.params, self.run
        if p.forget_loss == "relabel":
            loss_B, distance_B = run.family.contrast(
                batch.x_BCHW, batch.y_B, self.anchor_K[batch.y_B], batch.draw, module=run.module
            )
            forgets_B = distance_B
        else:
            loss_B = run.losses(batch)
            forgets_B = -loss_B.clamp(max=p.loss_ceiling)
        w_B = adaptive_weights(loss_B, temperature=p.temperature, add=run.ranks.sum_)
        return (w_B * forgets_B).sum()

    def remain_step(self, iteration: int) -> None:
        """Descend the mean retained loss on all weights."""
        p = self.params
        rate = p.learning_rate * decayed(p.remain_decay, iteration, p.iterations)
        self.remain_optimizer.param_groups[0]["lr"] = rate
        batch = self.run.batch(self.run.retain, iteration, p.batch_size, label_drop=p.remain_label_drop)
        objective = self.run.losses(batch).sum() * (self.run.ranks.world / batch.total)
        self.run.update(objective, self.remain_optimizer, step=iteration, clip=p.clip)

    def state_dict(self) -> dict[str, Any]:
        """Mask and optimizers; a shared optimizer once."""
        state = {"mask": self.mask, "remain": self.remain_optimizer.state_dict()}
        if self.forget_optimizer is not self.remain_optimizer:
            state["forget"] = self.forget_optimizer.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Method.load_state_dict`."""
        self.mask = [m.to(self.run.ranks.device) for m in state["mask"]]
        self.remain_optimizer.load_state_dict(state["remain"])
        if self.forget_optimizer is not self.remain_optimizer:
            self.forget_optimizer.load_state_dict(state["forget"])

    def _fisher(self, stream: Stream, *, done: int) -> list[Tensor]:
        """Diagonal Fisher information: the mean over batches of the squared gradient of a batch's mean loss.

        Whole batches are dealt out to the ranks, so that a batch's gradient is the same bits on any number of ranks.
        """
        size = min(self.params.fisher_batch_size, len(stream.indices_N))
        batches = len(stream.indices_N) // size
        fisher = [torch.zeros_like(p) for p in self.run.parameters]
        for i in range(self.run.ranks.rank, batches, self.run.ranks.world):
            mean_loss = self.run.losses(self._whole(stream, i, size), self.run.family.module).mean()
            gradients = torch.autograd.grad(mean_loss, self.run.parameters)
            torch._foreach_addcmul_(fisher, gradients, gradients, value=1 / batches)
            self.run.preparing(done * batches + i + 1, 2 * batches)
        for f in fisher:
            self.run.ranks.sum_(f)
        return fisher

    def _whole(self, stream: Stream, i: int, size: int) -> Batch:
        return self.run.batch(stream, i, size, label_drop=0.0, whole=True)
