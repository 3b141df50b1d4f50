"""Optimizers by name, their schedules, and putting their state back."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from worker.engine import sharding
from worker.engine.method import Decay

Algorithm = Literal["sgd", "adam", "adamw"]


def make(
    algorithm: Algorithm,
    parameters: Iterable[nn.Parameter],
    *,
    learning_rate: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """A fused optimizer, as `Run.descend` needs it: only those skip an update when the device says so.

    On shards SGD is not fused, for torch has no such kernel; there `Run.descend` asks before it steps.

    Args:
        momentum: of SGD; beta_1 of Adam and AdamW, whose beta_2 is 0.999.
        weight_decay: coupled (added to the gradient) for SGD and Adam, decoupled for AdamW.
    """
    parameters = list(parameters)
    if algorithm == "sgd":
        fused = not any(sharding.is_cut(p) for p in parameters)
        return torch.optim.SGD(parameters, lr=learning_rate, momentum=momentum, weight_decay=weight_decay, fused=fused)
    kind = torch.optim.AdamW if algorithm == "adamw" else torch.optim.Adam
    return kind(parameters, lr=learning_rate, betas=(momentum, 0.999), weight_decay=weight_decay, fused=True)


def decayed(decay: Decay, iteration: int, iterations: int) -> float:
    """What is left of a step size at an iteration: 1 at the first; towards 0 at the end unless constant."""
    progress = iteration / iterations
    if decay == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    return 1 - progress if decay == "linear" else 1.0


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The step size from now on."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def restore(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take up the state that `state_dict` gave; whole tensors are cut where the parameters are.

    Fused kernels walk parameter and moments side by side in memory, so each moment gets its parameter's layout again: a
    checkpoint's tensors are contiguous, channels-last weights are not.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {i: _cut_moments(values, parameters[i]) for i, values in state["state"].items()}
    # Which kernel steps is this optimizer's own affair: it hangs on whether the parameters are shards.
    groups = [g | {"fused": own["fused"]} for g, own in zip(state["param_groups"], optimizer.param_groups, strict=True)]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _cut_moments(values: dict[str, Any], parameter: nn.Parameter) -> dict[str, Any]:
    """Before they go to the device: whole, the moments of all weights might not fit it."""
    return {
        name: sharding.cut(value, parameter) if isinstance(value, Tensor) and value.shape == parameter.shape else value
        for name, value in values.items()
    }
