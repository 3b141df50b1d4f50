"""The last layer of a network that classifies: where it is, and what it is given.

Architectures name it differently and wrap it differently, so it is found by what it does: it is that linear layer whose output
is the network's answer. What it is given is the network's knowledge; what it makes of that can be edited in a second.

Shape suffixes: B images, C channels, H, W pixels, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from worker.engine.errors import BadModel

Ask = Callable[[nn.Module, Tensor], Tensor]
"""(module, x_BCHW) -> logits (B, K)."""


def last_layer(module: nn.Module, ask: Ask, x_BCHW: Tensor) -> nn.Linear:
    """The linear layer whose output is the answer, number by number.

    Raises:
        BadModel: there is none; the answer is made of several layers, as where two heads are averaged.
    """
    said: list[tuple[nn.Linear, Tensor]] = []
    linear = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    hooks = [layer.register_forward_hook(lambda layer, _, output: said.append((layer, output))) for layer in linear]
    try:
        with torch.inference_mode():
            logits_BK = ask(module, x_BCHW)
    finally:
        for hook in hooks:
            hook.remove()
    for layer, output in reversed(said):
        if output.numel() == logits_BK.numel() and torch.equal(output.reshape(logits_BK.shape), logits_BK):
            return layer
    raise BadModel("expected a network whose answer is what one last linear layer says, found another")


@contextmanager
def listening(layer: nn.Linear) -> Iterator[list[Tensor]]:
    """What a layer is given while this is entered, forward pass by forward pass, each (B, D)."""
    given: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].reshape(-1, layer.in_features)))
    try:
        yield given
    finally:
        hook.remove()
