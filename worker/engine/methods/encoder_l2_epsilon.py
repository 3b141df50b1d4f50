"""Encoder distillation under a bound: what is forgotten comes as near to noise as asked, the rest stays as that allows.

    minimise f2 where f1 <= eps,   f1 = mean_f ||E(T(x_f)) - E0(T(n))||^2,   f2 = mean_r ||E(T(x_r)) - E0(T(x_r))||^2

f1 and f2 are encoder_l2's two means. In place of their weighted sum, every update descends one of them by at least so much, and
the other as far as that leaves room:

    g = g2 + eta g1,   eta = max(0, (psi - <g1, g2>) / ||g1||^2)

the shortest change of g2 that descends f1 at the rate psi. Phases:

    I.1   psi = a ||g1||^2              from the weights as they came: the end that forgets most; f1 there is eps_min
    I.2   g1 and g2 change places       from the weights as they came: the end that retains most; f1 there is eps_max
    II    psi = b (f1 - eps) ||g1||^2   goes on from there, with eps = eps_min + epsilon_ratio (eps_max - eps_min)

Source: Feng et al. 2025, "Controllable Unlearning for Image-to-Image Generative Models via epsilon-Constrained Optimization",
arXiv:2408.01689: the constrained problem, its two ends, the two phases. It published no code; the direction and psi are as a
public re-implementation has them.
Ours: how many updates a phase has, a and b, the optimizer; where a phase begins (I.2 and II on the side that retains, where
nothing has to be repaired); that eps_min and eps_max are means of f1 over the last quarter of their phase, as f1 of one batch
is noisy. Adam scales g weight by weight: the rate then holds of g, and with sgd of the update.

Letters as above. Shape suffix: P parameters of the network, tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from worker.engine import optim
from worker.engine.completion import EncoderParams, Lesson
from worker.engine.method import Params, Preset
from worker.engine.run import Run
from worker.engine.stepper import Stepper


class EncoderL2EpsilonParams(EncoderParams):
    """Takes two gradients an update, kept side by side. `decay` is of each phase's own iterations."""

    iterations: int = Field(default=1000, ge=3, le=1_000_000, description="updates of the loop, of all phases together")
    epsilon_ratio: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="how far from noise forgotten images may stay: 0 forgets as much as was found possible, 1 retains as much",
    )
    phase_one_share: float = Field(
        default=0.5, gt=0, lt=1, description="of the iterations, that look for the two ends of the trade, half of them for each"
    )
    phase_one_rate: float = Field(
        default=1.0, ge=0, le=1e6, description="a: an end's own distance falls at least a times as fast as by its own gradient"
    )
    phase_two_rate: float = Field(
        default=1.0, ge=0, le=1e6, description="b: how fast the forgotten images' distance is brought to its bound"
    )


PRESETS: Mapping[str, Preset] = {
    "mae": Preset(
        families=("mae",),
        params={"algorithm": "adamw", "learning_rate": 1e-4, "iterations": 1000, "batch_size": 64},
        source="arXiv:2408.01689 published no code; optimizer, rate and batch as in encoder_l2's preset, and as many updates "
        "again to find the two ends; unmeasured",
    ),
    "vqgan": Preset(
        families=("vqgan",),
        params={"algorithm": "adamw", "learning_rate": 1e-4, "iterations": 1000, "batch_size": 64, "clip": 3.0},
        source="the same, with encoder_l2's preset for this family; unmeasured",
    ),
    "i2i_diffusion": Preset(
        families=("i2i_diffusion",),
        params={"target": "mean_embedding", "learning_rate": 3e-4, "iterations": 400, "batch_size": 32},
        source="the same, with encoder_l2's preset for this family; measured on digits, see docs/benchmarks.md",
    ),
    "sd_inpainting": Preset(
        families=("sd_inpainting",),
        params={"learning_rate": 1e-5, "iterations": 1000, "batch_size": 8, "noise_scope": "image"},
        source="the same, with encoder_l2's preset for this family; unmeasured",
    ),
}


@dataclass(frozen=True)
class Phases:
    """How many updates look for either end, of how many in all."""

    each: int
    total: int

    @classmethod
    def of(cls, iterations: int, share: float) -> Phases:
        """At least one update for each phase."""
        return cls(max(1, int(iterations * share / 2)), iterations)

    def number(self, iteration: int) -> int:
        """0, 1 or 2."""
        return min(iteration // self.each, 2)

    def begin(self, number: int) -> int:
        """The first iteration of a phase."""
        return number * self.each

    def length(self, number: int) -> int:
        """Its iterations."""
        return self.each if number < 2 else max(1, self.total - 2 * self.each)

    def counts(self, iteration: int) -> bool:
        """Is this one of the last quarter of a phase that looks for an end?"""
        number = self.number(iteration)
        return number < 2 and iteration >= self.begin(number + 1) - self.counted

    @property
    def counted(self) -> int:
        """Iterations of the last quarter."""
        return max(1, self.each // 4)


def dot(a_P: Sequence[Tensor], b_P: Sequence[Tensor]) -> Tensor:
    """<a, b> over all parameters, float64."""
    return torch.stack([(a * b).sum(dtype=torch.float64) for a, b in zip(a_P, b_P, strict=True)]).sum()


def multiplier(free_P: Sequence[Tensor], bound_P: Sequence[Tensor], rate: Tensor | float) -> Tensor:
    """eta >= 0, by which a gradient is added to a free one so that their sum descends it at a rate.

        eta = max(0, (psi - <bound, free>) / ||bound||^2),   psi = rate ||bound||^2

    Args:
        free_P, bound_P: gradients, the same on every rank.

    Returns:
        Float64, on the device: 0 where the bound gradient is 0, NaN where a number is not finite: the update refuses that.

    Source: Feng et al. 2025, arXiv:2408.01689.
    """
    square = dot(bound_P, bound_P)
    eta = (rate - dot(bound_P, free_P) / square).clamp_min(0)
    return torch.where(square == 0, torch.zeros_like(square), eta)


class EncoderL2Epsilon(Stepper[EncoderL2EpsilonParams]):
    """Descent on one distance, held to a rate on the other."""

    name: ClassVar[str] = "encoder_l2_epsilon"
    title: ClassVar[str] = "Encoder distillation under a bound: forget to a chosen degree, retain what that allows"
    paper: ClassVar[str] = "arXiv:2408.01689"
    guarantee: ClassVar[Literal["empirical"]] = "empirical"
    families: ClassVar[tuple[str, ...]] = ("i2i_diffusion", "mae", "sd_inpainting", "vqgan")
    presets: ClassVar[Mapping[str, Preset]] = PRESETS
    Params: ClassVar[type[Params]] = EncoderL2EpsilonParams

    def __init__(self, params: EncoderL2EpsilonParams, run: Run) -> None:
        super().__init__(params, run)
        self.lesson = Lesson(params, run)
        self.phases = Phases.of(params.iterations, params.phase_one_share)
        self.ends = torch.zeros(2, dtype=torch.float64, device=run.ranks.device)
        """eps_min and eps_max, as far as they have been added up."""

    def prepare(self) -> None:
        """See `Lesson.prepare`."""
        self.lesson.prepare()

    def step(self, iteration: int) -> None:
        """See `Method.step`."""
        p, run, phases = self.params, self.run, self.phases
        number = phases.number(iteration)
        if iteration == phases.begin(number):
            self._begin(number)
        f1, g1 = self._forgotten(iteration)
        if phases.counts(iteration):
            self.ends[number] += f1 / phases.counted

        def combine(g2: list[Tensor]) -> None:
            if number == 1:
                eta = multiplier(g1, g2, p.phase_one_rate)
                _add_up(g2, eta, g1, 1.0, f1)
                return
            rate = p.phase_one_rate if number == 0 else p.phase_two_rate * (f1 - self.bound())
            _add_up(g2, 1.0, g1, multiplier(g2, g1, rate), f1)

        progress = iteration - phases.begin(number)
        optim.set_rate(self.optimizer, p.learning_rate * optim.decayed(p.decay, progress, phases.length(number)))
        run.descend([self.lesson.retained(iteration)], self.optimizer, step=iteration, clip=p.clip, edit=combine)

    def bound(self) -> Tensor:
        """eps, once both ends are known; in whichever order phases that were too short have found them."""
        low, high = self.ends.aminmax()
        return low + self.params.epsilon_ratio * (high - low)

    def _begin(self, number: int) -> None:
        """A phase has no momentum of the one before; that of the end which retains starts from the weights as they came."""
        self.optimizer.state.clear()
        if number == 1:
            before = dict(self.lesson.teacher.named_parameters())
            with torch.no_grad():
                for name, parameter in self.run.family.module.named_parameters():
                    if parameter.requires_grad:
                        parameter.copy_(before[name])

    def _forgotten(self, iteration: int) -> tuple[Tensor, list[Tensor]]:
        """f1 of the global batch, float64, and its gradient; both are the same on every rank."""
        run = self.run
        objective = run.gradients.together([self.lesson.forgotten(iteration, scale=1.0)])
        g1 = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in run.parameters]
        return run.ranks.sum_(objective.double()) / run.ranks.world, g1

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's, what was prepared, and the ends."""
        return {"lesson": self.lesson.state_dict(), "ends": self.ends, **super().state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Method.load_state_dict`."""
        self.lesson.load_state_dict(state["lesson"])
        self.ends = state["ends"].to(self.run.ranks.device)
        super().load_state_dict(state)


def _add_up(g2: list[Tensor], by2: Tensor | float, g1: list[Tensor], by1: Tensor | float, f1: Tensor) -> None:
    """by2 g2 + by1 g1 in place of g2. A forgotten loss that is not finite makes it NaN: what `descend` asks about is f2."""
    by1 = (by1 + 0 * f1).to(g2[0].dtype)
    torch._foreach_mul_(g2, by2.to(g2[0].dtype) if isinstance(by2, Tensor) else by2)
    torch._foreach_add_(g2, torch._foreach_mul(g1, by1))
