"""The slow, obvious SFR-on: what the published description does, step by step, in plain PyTorch.

Written from the paper and a description of the released code, to be compared with, in results and in time:
    the whole of both sets for the Fisher information, squared and summed on the host in float32;
    for diffusion a guided prediction from two forward passes, and gradients cut to norm 1 before squaring;
    batches made by the host, and the mask kept there, copied to the device for every step;
    a deep copy of the classifier in every iteration for an average that is the newest weights;
    one optimizer for both half-steps; the loss read by the host in every step.

Shape suffixes: B images, C channels, H, W pixels.
Source: Huang et al. 2024, arXiv:2409.19732.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Batches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]
"""seed -> endless shuffled batches (x, y)."""
LossB = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(module, x, y) -> (B,) loss."""


@dataclass(frozen=True)
class Settings:
    """Of one task."""

    iterations: int
    forget_every: int
    alpha_forget: float
    temperature: float
    gamma: float
    floor: float
    forget_clip: float | None
    remain_clip: float | None
    fisher_clip: float | None
    average: bool
    """Keep the average that the release keeps for classifiers."""


def fisher(module: nn.Module, batches: list[tuple[Tensor, Tensor]], loss: LossB, clip: float | None) -> dict[str, Tensor]:
    """name -> mean over batches of the squared gradient of a batch's mean loss, on the host."""
    module.eval()
    total = {name: torch.zeros_like(p, device="cpu") for name, p in module.named_parameters()}
    device = next(module.parameters()).device
    for x_BCHW, y_B in batches:
        module.zero_grad()
        loss(module, x_BCHW.to(device), y_B.to(device)).mean().backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        for name, p in module.named_parameters():
            if p.grad is not None:
                total[name] += p.grad.detach().cpu() ** 2 / len(batches)
    return total


def saliency(forget: dict[str, Tensor], remain: dict[str, Tensor], gamma: float) -> dict[str, Tensor]:
    """1[F_f / F_r >= gamma]."""
    return {name: (forget[name] + 1e-15) / (remain[name] + 1e-15) >= gamma for name in forget}


def unlearn(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler | None,
    forget: Iterator[tuple[Tensor, Tensor]],
    remain: Iterator[tuple[Tensor, Tensor]],
    mask: dict[str, Tensor],
    loss: LossB,
    settings: Settings,
) -> list[float]:
    """Alternate masked adaptive ascent and plain descent; the remain losses as the host read them."""
    average, losses = copy.deepcopy(module) if settings.average else None, []
    device = next(module.parameters()).device
    for step in range(settings.iterations):
        if step % settings.forget_every == 0:
            alpha = settings.alpha_forget * (1 + math.cos(math.pi * step / settings.iterations)) / 2
            loss_B = loss(module, *(t.to(device) for t in next(forget)))
            w_B = 1 / (loss_B.detach() ** settings.temperature + settings.floor)
            optimizer.zero_grad()
            (-alpha * (w_B / w_B.sum() * loss_B).sum()).backward()
            for name, p in module.named_parameters():
                if p.grad is not None:
                    p.grad *= mask[name].to(device)
            if settings.forget_clip is not None:
                nn.utils.clip_grad_norm_(module.parameters(), settings.forget_clip)
            optimizer.step()
        mean = loss(module, *(t.to(device) for t in next(remain))).mean()
        optimizer.zero_grad()
        mean.backward()
        if settings.remain_clip is not None:
            nn.utils.clip_grad_norm_(module.parameters(), settings.remain_clip)
        optimizer.step()
        if schedule is not None:
            schedule.step()
        if average is not None:
            average = copy.deepcopy(module)
        losses.append(mean.item())
    return losses


# -------------------------------------------------------------------------------------------------------------- the tasks


def classifier_loss(module: nn.Module, x_BCHW: Tensor, y_B: Tensor) -> Tensor:
    """(B,) cross-entropy."""
    return F.cross_entropy(module(x_BCHW), y_B, reduction="none")


def diffusion_loss(abar_T: Tensor, null: int, *, label_drop: float, guidance: float | None) -> LossB:
    """(B,) squared error summed over pixels, antithetic timesteps; guided: (1 + w) e_class - w e_null.

    Args:
        abar_T: on the device of the network.
    """

    def loss(module: nn.Module, x_BCHW: Tensor, y_B: Tensor) -> Tensor:
        n, steps = len(x_BCHW), len(abar_T)
        half_B = torch.randint(steps, (n // 2 + 1,), device=x_BCHW.device)
        t_B = torch.cat([half_B, steps - 1 - half_B])[:n]
        eps_BCHW = torch.randn_like(x_BCHW)
        abar_B111 = abar_T[t_B].view(-1, 1, 1, 1)
        noisy_BCHW = abar_B111.sqrt() * x_BCHW + (1 - abar_B111).sqrt() * eps_BCHW
        if guidance is None:
            shown_B = torch.where(torch.rand(n, device=x_BCHW.device) < label_drop, null, y_B)
            predicted_BCHW = module(noisy_BCHW, t_B, class_labels=shown_B).sample
        else:
            class_BCHW = module(noisy_BCHW, t_B, class_labels=y_B).sample
            null_BCHW = module(noisy_BCHW, t_B, class_labels=torch.full_like(y_B, null)).sample
            predicted_BCHW = (1 + guidance) * class_BCHW - guidance * null_BCHW
        return (eps_BCHW - predicted_BCHW).square().sum(dim=(1, 2, 3))

    return loss


def in_batches(x_NCHW: Tensor, y_N: Tensor, size: int, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """One shuffled pass; the last batch may be smaller."""
    order_N = torch.randperm(len(x_NCHW), generator=generator)
    return [(x_NCHW[rows], y_N[rows]) for rows in order_N.split(size)]


def endless(x_NCHW: Tensor, y_N: Tensor, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled passes for ever, whole batches only."""
    while True:
        yield from (batch for batch in in_batches(x_NCHW, y_N, size, generator) if len(batch[0]) == size)
