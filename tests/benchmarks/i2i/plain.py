"""The plain way of encoder distillation, one step of it: what is written down first, before one looks at what it costs.

    the student runs whole, decoder and all, and hooks pick the taps out of it;
    the teacher runs whole, on every image and on as many noises, and half of each answer is thrown away;
    a tokenizer tokenises the images of every one of these passes, in every step;
    the host reads the loss in every step.

Batches, masks and noises are the engine's, drawn from the same streams, and so is the objective: each mean over its own kind.
So the losses of both ways agree, and what is left to compare is time and memory.

Shape suffixes: B images of a batch, first the retained and then the forgotten ones, C channels, H, W pixels.
Source: Li et al. 2024, arXiv:2402.00351, eq. (10); written from the paper and a description of its released code.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from worker.engine.family import Draw, ImageToImage
from worker.engine.streams import Mixture, Stream, generator
from worker.engine.tokens import NOISES

Taps = list[Tensor]


class Plain:
    """The slow way on a freshly loaded model.

    Args:
        images_NCHW: uint8, of the whole dataset, on the device.
    """

    def __init__(
        self,
        family: Any,
        images_NCHW: Tensor,
        forget: Stream,
        retain: Stream | Mixture,
        *,
        batch: int,
        rate: float,
        algorithm: str,
        alpha: float,
        scope: str,
        clip: float | None,
        label_drop: float,
    ) -> None:
        self.family, self.images_NCHW, self.forget, self.retain = family, images_NCHW, forget, retain
        self.batch, self.alpha, self.scope, self.clip, self.label_drop = batch, alpha, scope, clip, label_drop
        family.module.fetch()
        self.student, self.teacher = family.module, copy.deepcopy(family.module).eval().requires_grad_(False)
        trained = [p for p in self.student.parameters() if p.requires_grad]
        self.parameters = trained
        kind = torch.optim.AdamW if algorithm == "adamw" else torch.optim.Adam
        self.optimizer = kind(trained, lr=rate, **({"weight_decay": 0.0} if algorithm == "adamw" else {}))
        self.ask = {"mae": _ask_mae, "vqgan": _ask_vqgan, "i2i_diffusion": _ask_diffusion}[family.name]
        self.noises = _noise_images(family) if family.name == "vqgan" else None

    def step(self, i: int) -> float:
        """One update; the loss before it."""
        n, shape, device = self.batch, self.images_NCHW.shape[1:], self.images_NCHW.device
        index_B = torch.cat([self.retain.pick(i, n), self.forget.pick(i, n)]).to(device)
        draws = [
            self.family.draw(n, shape, stream.generator(i, "draw"), label_drop=self.label_drop)
            for stream in (self.retain, self.forget)
        ]
        draw = Draw({name: torch.cat([d[name] for d in draws]) for name in draws[0].tensors}).to(device)
        noise_B = torch.cat([self._noise(generator(0, "unused", i)), self._noise(self.forget.generator(i, "noise"))])
        images_BCHW = self.images_NCHW[index_B]
        taps = self.ask(self.family, self.student, images_BCHW, draw, None)
        with torch.no_grad():
            of_images = self.ask(self.family, self.teacher, images_BCHW, draw, None)
            of_noises = self.ask(self.family, self.teacher, images_BCHW, draw, (self.scope, noise_B.to(device)))
        loss = _apart(taps, of_images)[:n].mean() + self.alpha * _apart(taps, of_noises)[n:].mean()
        self.optimizer.zero_grad()
        loss.backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        return loss.item()

    def _noise(self, source: torch.Generator) -> Tensor:
        """(n, …) noise images, in the family's own way."""
        n, shape = self.batch, self.images_NCHW.shape[1:]
        if self.noises is not None:
            return self.noises[torch.randint(len(self.noises), (n,), generator=source)]
        noise = self.family.noise(n, shape, source, scope=self.scope)
        return torch.empty(n, 0) if noise is None else noise


def _apart(taps: Taps, targets: Taps) -> Tensor:
    """(B,) the sum over taps of the mean squared difference."""
    return torch.stack([(a - b).square().flatten(1).mean(dim=1) for a, b in zip(taps, targets, strict=True)]).sum(dim=0)


Noise = tuple[str, Tensor]
"""Where it stands in, and what it is."""


def _ask_mae(family: ImageToImage, module: Any, images_BCHW: Tensor, draw: Draw, noise: Noise | None) -> Taps:
    """Transformers' own forward pass, masked by the same numbers: it keeps the lowest, the engine hides them."""
    x_BCHW = family.prepare(images_BCHW, draw) if noise is None else noise[1]
    with _caught([module.network.vit.layernorm]) as taps:
        module.network(x_BCHW, noise=-draw["mask"])
    return taps


def _ask_vqgan(family: Any, module: Any, images_BCHW: Tensor, draw: Draw, noise: Noise | None) -> Taps:
    """Tokenise, then the transformer to its logits."""
    id_BL = family.tokenizer.tokenise(images_BCHW if noise is None else noise[1]).long()
    with _caught([module.network.norm]) as taps:
        module(*family.question(id_BL, None, draw), whole=True)
    return taps


def _ask_diffusion(family: ImageToImage, module: Any, images_BCHW: Tensor, draw: Draw, noise: Noise | None) -> Taps:
    """Diffusers' own forward pass."""
    if noise is not None and noise[0] == "image":
        draw = Draw(draw.tensors | {"noise": noise[1]})
    question = family.question(family.prepare(images_BCHW, draw), torch.empty(0), draw, noise_in=noise and noise[0])  # type: ignore[arg-type]
    network = module.network
    with _caught([network.conv_in, *network.down_blocks, network.mid_block]) as taps:
        network(*question)
    return taps


@contextmanager
def _caught(modules: Sequence[nn.Module]) -> Iterator[Taps]:
    """What these modules answer, as they answer it; of a block, the maps that it hands on."""
    taps: Taps = []

    def catch(module: nn.Module, given: object, came: Tensor | tuple[Tensor, tuple[Tensor, ...]]) -> None:
        taps.extend(came[1] if isinstance(came, tuple) else [came])

    hooks = [module.register_forward_hook(catch) for module in modules]
    try:
        yield taps
    finally:
        for hook in hooks:
            hook.remove()


def _noise_images(family: Any) -> Tensor:
    """uint8: the images whose tokens the engine draws noise from, as pixels."""
    side, source = family.predictor.side * family.tokenizer.factor, generator(0, "noises")
    shape = (family.tokenizer.channels, side, side)
    parts = [torch.randn(len(rows), *shape, generator=source) for rows in torch.arange(NOISES).split(64)]
    mean, std = family.tokenizer.normalisation.mean[0], family.tokenizer.normalisation.std[0]
    return (255 * (mean + std * torch.cat(parts)).clamp(0, 1)).round().to(torch.uint8)
