"""SFR-on: forget by adaptive ascent on salient weights, then repair what is retained, in alternation.

Letters: l loss, w adaptive weight, lambda temperature, F diagonal Fisher information, m mask, gamma its threshold,
beta_t size of the forget step, k `forget_every`, T iterations. Shape suffix: B images of this rank.

Source: Huang et al. 2024, "Unified Gradient-Based Machine Unlearning with Remain Geometry Enhancement",
arXiv:2409.19732. The forget loss of our own presets is the authors' relabelling variant (their `rl`: towards the network's
own answer for another class) with the adaptive weights kept; `ascent` is the paper's figure. On 8x8 digits ascent turned a
forgotten 1 into a white bar that a judge still reads as a 1, 87 times in 100; relabelling, never in 200.
Where we differ: the forget step has an optimizer of its own by default (as in DualOptim,
arXiv:2504.15827), so that masked-out weights really stay and momentum does not leak between the two objectives; the
Fisher information is additive over classes and taken on a part of the data; it uses the trained (conditional) loss, not a
guided prediction; the weights' normaliser runs over the global batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from worker.engine import optim, sharding
from worker.engine.batch import Batch, Part
from worker.engine.fisher import Kind, Settings, forget_and_retain
from worker.engine.method import Conditions, Decay, Descent, Params, Preset
from worker.engine.optim import decayed
from worker.engine.presets.sfron import PRESETS
from worker.engine.relabel import following, next_others
from worker.engine.run import Run


class SFRonParams(Descent):
    """`learning_rate`, `decay`, `algorithm`, `momentum`, `weight_decay` and `clip` are the remain step's."""

    conditions: ClassVar[Conditions] = {
        "loss_ceiling": {"forget_loss": ("ascent",)},
        "fisher_batch_size": {"fisher": ("class_batch", "batch")},
        "gamma": {"saliency": ("gamma",)},
        "share": {"saliency": ("share",)},
    }

    alpha_forget: float = Field(default=1.0, gt=0, le=1e6, description="size of a forget step relative to a remain step")
    alpha_decay: Decay = Field(default="linear", description="how alpha_forget falls over the iterations")
    forget_every: int = Field(default=1, ge=1, le=10_000, description="k: a forget step before every k-th remain step")
    temperature: float = Field(default=0.5, ge=0, le=10, description="lambda; 0 pushes all forget samples alike")
    forget_loss: Literal["relabel", "ascent"] = Field(
        default="relabel", description="relabel: towards another retained class; ascent: away from the own training target"
    )
    loss_ceiling: float | None = Field(
        default=None, gt=0, le=1e6, description="ascent stops for a sample whose loss is above it; null: never"
    )
    forget_clip: float | None = Field(default=1.0, gt=0, le=1e6, description="largest gradient norm, after masking")
    saliency: Literal["gamma", "share"] = Field(
        default="gamma",
        description="salient weights: where forget / remain Fisher information reaches gamma, or a share of all",
    )
    gamma: float = Field(default=1.0, ge=0, le=1e6, description="saliency threshold on forget / remain Fisher information")
    share: float = Field(default=0.08, gt=0, le=1, description="of all weights, those with the largest such ratio")
    fisher: Kind = Field(
        default="class_batch",
        description="class_batch: squared gradients of batches of one class, kept for later requests; per_sample: of single "
        "images, kept too; batch: of batches as they come, the published protocol",
    )
    fisher_batch_size: int = Field(default=16, ge=1, le=65_536, description="images a squared gradient is taken over")
    fisher_samples: int = Field(
        default=128,
        ge=1,
        le=10_000_000,
        description="at most so many images of each class; with fisher = batch, of each stream",
    )
    fisher_clip: float | None = Field(default=None, gt=0, le=1e9, description="largest gradient norm before squaring")
    optimizer: Literal["dual", "shared"] = Field(default="dual", description="shared is the published code")
    loss_scale: float = Field(
        default=1.0, gt=0, le=1e9, description="multiplies every loss; the number of pixels turns a mean over them into a sum"
    )
    label_drop: float = Field(default=0.1, ge=0, le=1, description="share of retained images shown without their label")
    forget_label_drop: float = Field(default=0.0, ge=0, le=1, description="the same for forgotten images")


def adaptive_weights(
    loss_B: Tensor, *, temperature: float, floor: float = 1e-4, add: Callable[[Tensor], Tensor] = lambda x: x
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


def gamma_of(forget_F: list[Tensor], remain_F: list[Tensor], *, share: float) -> float:
    """The gamma that leaves a share of all weights salient: what a class's information allows at one gamma varies threefold."""
    ratio_P = torch.cat([((f + 1e-15) / (r + 1e-15)).flatten() for f, r in zip(forget_F, remain_F, strict=True)])
    keep = max(1, round(share * len(ratio_P)))
    return float(ratio_P.kthvalue(len(ratio_P) - keep + 1).values)


class SFRon:
    """Every iteration a remain step; before every k-th, a masked forget step."""

    name: ClassVar[str] = "sfron"
    title: ClassVar[str] = "SFR-on: saliency forgetting with remain-preserving repair"
    paper: ClassVar[str] = "arXiv:2409.19732"
    guarantee: ClassVar[Literal["empirical"]] = "empirical"
    families: ClassVar[tuple[str, ...]] = ("classifier", "ddpm", "dit", "stable_diffusion")
    shards: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Preset]] = PRESETS
    Params: ClassVar[type[Params]] = SFRonParams

    def __init__(self, params: SFRonParams, run: Run) -> None:
        self.params, self.run = params, run
        self.remain_optimizer = self._optimizer(params.weight_decay)
        dual = params.optimizer == "dual"  # whose forget step decays nothing: decay would reach past the mask
        self.forget_optimizer = self._optimizer(0.0) if dual else self.remain_optimizer
        self.mask: list[Tensor] = []
        classes = len(run.spec.class_names)
        if params.forget_loss == "relabel":
            next_others(run.forget.labels_N, run.spec.retain_classes, classes)  # refuses an image that has no other class
        self.anchor_K = following(run.spec.retain_classes, classes).to(run.ranks.device)

    def _optimizer(self, weight_decay: float) -> torch.optim.Optimizer:
        p, parameters = self.params, self.run.parameters
        return optim.make(
            p.algorithm, parameters, learning_rate=p.learning_rate, momentum=p.momentum, weight_decay=weight_decay
        )

    def prepare(self) -> None:
        """The saliency mask, once, at the weights as they came."""
        p = self.params
        settings = Settings(p.fisher, p.fisher_batch_size, p.fisher_samples, p.fisher_clip, p.loss_scale)
        forget_F, remain_F = forget_and_retain(self.run, settings)
        gamma = p.gamma
        if p.saliency == "share":
            gamma = gamma_of(sharding.whole(forget_F), sharding.whole(remain_F), share=p.share)
        self.mask = saliency(forget_F, remain_F, gamma=gamma)

    def step(self, iteration: int) -> None:
        """See `Method.step`."""
        if iteration % self.params.forget_every == 0:
            self.forget_step(iteration)
        self.remain_step(iteration)

    def forget_step(self, iteration: int) -> None:
        """Descend the weighted forget objective on the salient weights alone.

        With `dual`, beta_t is the step size itself (Adam and the clip would undo a factor on the loss) and nothing decays
        the masked-out weights. With `shared` it is a factor on the loss, as in the authors' code, and momentum and weight
        decay move masked-out weights too.
        """
        p = self.params
        alpha = p.alpha_forget * decayed(p.alpha_decay, iteration, p.iterations)
        scale = p.loss_scale
        if p.optimizer == "dual":
            optim.set_rate(self.forget_optimizer, alpha * p.learning_rate)
        else:
            optim.set_rate(self.forget_optimizer, self._rate(iteration))
            scale *= alpha
        # By its own count: counted by iterations, the stream would skip batches, and many images would never be forgotten.
        batch = self.run.batch(self.run.forget, iteration // p.forget_every, p.batch_size, label_drop=p.forget_label_drop)
        part = Part(batch, self.forget_rows, self._weigh, scale)
        self.run.descend([part], self.forget_optimizer, step=iteration, clip=p.forget_clip, mask=self.mask)

    def forget_rows(self, batch: Batch, module: nn.Module) -> tuple[Tensor, Tensor]:
        """What descending forgets each sample by, and the loss that its weight is made of."""
        p, family = self.params, self.run.family
        if p.forget_loss == "relabel":
            loss_B, distance_B = family.contrast(batch.x_BCHW, batch.y_B, self.anchor_K[batch.y_B], batch.draw, module=module)
            return distance_B, loss_B
        loss_B = family.loss(batch.x_BCHW, batch.y_B, batch.draw, module=module)
        return -(loss_B if p.loss_ceiling is None else loss_B.clamp(max=p.loss_ceiling)), loss_B

    def _weigh(self, loss_B: Tensor) -> Tensor:
        return adaptive_weights(loss_B, temperature=self.params.temperature, add=self.run.ranks.sum_)

    def remain_step(self, iteration: int) -> None:
        """Descend the mean retained loss on all weights."""
        p = self.params
        optim.set_rate(self.remain_optimizer, self._rate(iteration))
        batch = self.run.batch(self.run.retain, iteration, p.batch_size, label_drop=p.label_drop)
        self.run.descend(
            [Part(batch, self.remain_rows, scale=p.loss_scale)], self.remain_optimizer, step=iteration, clip=p.clip
        )

    def remain_rows(self, batch: Batch, module: nn.Module) -> tuple[Tensor, Tensor]:
        """The native loss of each retained sample."""
        loss_B = self.run.family.loss(batch.x_BCHW, batch.y_B, batch.draw, module=module)
        return loss_B, loss_B

    def _rate(self, iteration: int) -> float:
        return self.params.learning_rate * decayed(self.params.decay, iteration, self.params.iterations)

    def state_dict(self) -> dict[str, Any]:
        """Mask and optimizers; a shared optimizer once."""
        state = {"mask": self.mask, "remain": self.remain_optimizer.state_dict()}
        if self.forget_optimizer is not self.remain_optimizer:
            state["forget"] = self.forget_optimizer.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Method.load_state_dict`."""
        self.mask = [m.to(self.run.ranks.device) for m in state["mask"]]
        optim.restore(self.remain_optimizer, state["remain"])
        if self.forget_optimizer is not self.remain_optimizer:
            optim.restore(self.forget_optimizer, state["forget"])
