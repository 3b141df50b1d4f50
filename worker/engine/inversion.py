"""Finding the label under which a generator draws given images: the network is frozen, the label's conditioning is not.

    e* = argmin_e  E_(x, t, eps)  loss(x, e)

Whoever zeroes a label's row leaves a network that draws the class as before, once it is told so in other words.

Shape suffixes: N images, B images of a batch, R restarts, S steps, X whatever a row is made of.
Source: Gal et al. 2022 (textual inversion), arXiv:2208.01618, section 3.2, of whole rows in place of a word's embedding;
as an attack on erased concepts: Pham et al. 2023 (Circumventing concept erasure), arXiv:2308.01508.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.errors import BadInput, Diverged
from worker.engine.family import Draw, Generator
from worker.engine.streams import generator


@dataclass(frozen=True)
class Inverted:
    """What an attack found."""

    rows_RX: Tensor
    """On the CPU."""
    loss_SR: Tensor
    """float64, of every step's batch before its update."""


def starts(model: Generator, own: int, others: tuple[int, ...], restarts: int, seed: int) -> Tensor:
    """(R, X) rows to begin with: the null label's, the class's own, and then random ones as large as those of the others.

    A model without a null label begins with the mean of the others in its place.

    Args:
        others: retained classes.

    Raises:
        BadInput: there are none.
    """
    if not others:
        raise BadInput("expected retained classes, whose labels say how large a label is, found none")
    known_KX = model.conditioning(torch.tensor(others, dtype=torch.int64))
    null = model.null_label
    first_X = known_KX.mean(dim=0) if null is None else model.conditioning(torch.tensor([null]))[0]
    rows = [first_X, model.conditioning(torch.tensor([own]))[0]]
    source = generator(seed, "inversion", "starts")
    middle_X, spread_X = known_KX.mean(dim=0), known_KX.std(dim=0, correction=0)
    while len(rows) < restarts:
        noise_X = torch.randn(middle_X.shape, generator=source).to(middle_X.device)
        rows.append(middle_X + spread_X * noise_X)
    return torch.stack(rows[:restarts])


def invert(
    model: Generator,
    images_NCHW: Tensor,
    start_RX: Tensor,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    beat: Callable[[], None],
) -> Inverted:
    """Descend the training loss by the label's row alone, all restarts at once; each sees the same images, times and noise.

    Args:
        images_NCHW: uint8, on the CPU.
        batch: images a restart and step; those that there are, if fewer.
        learning_rate: of Adam, as a share of the root mean square of the rows to begin with, or of 1 where they are zero.
        beat: called now and then: a sign of life.

    Raises:
        Diverged: a loss or a row is not finite: then nothing is known of the model.
    """
    if not bool(torch.isfinite(start_RX).all()):
        raise Diverged("a label could not be inverted: expected finite rows to begin with", step=0, loss=float("nan"))
    model.module.requires_grad_(False)
    held_N = model.hold(images_NCHW)
    rows_RX = start_RX.detach().clone().requires_grad_(True)
    scale = float(start_RX.square().mean().sqrt()) or 1.0
    optimizer = torch.optim.Adam([rows_RX], lr=learning_rate * scale)
    restarts, batch, source = len(start_RX), min(batch, len(images_NCHW)), generator(seed, "inversion", "batches")
    label_B = (model.label_count + torch.arange(restarts)).repeat_interleave(batch).to(held_N.device)
    losses = []
    for step in range(steps):
        if step % 20 == 0:
            beat()
        pick_B = torch.randperm(len(images_NCHW), generator=source)[:batch]
        drawn = model.draw(batch, images_NCHW.shape[1:], source, label_drop=0.0)
        drawn = Draw({name: _repeated(t, restarts) for name, t in drawn.tensors.items()}).to(held_N.device)
        x_BCHW = model.prepare(_repeated(held_N[pick_B.to(held_N.device)], restarts), drawn)
        loss_RB = model.with_labels(rows_RX).loss(x_BCHW, label_B, drawn).unflatten(0, (restarts, batch))
        loss_R = loss_RB.mean(dim=1)
        losses.append(loss_R.detach().double().cpu())
        optimizer.zero_grad(set_to_none=True)
        loss_R.sum().backward()
        optimizer.step()
    loss_SR = torch.stack(losses)
    found_RX = rows_RX.detach().cpu()
    if not (bool(torch.isfinite(loss_SR).all()) and bool(torch.isfinite(found_RX).all())):
        raise Diverged("a label could not be inverted: expected finite losses and rows", step=steps, loss=float("nan"))
    return Inverted(found_RX, loss_SR)


def _repeated(rows_B: Tensor, times: int) -> Tensor:
    return rows_B.repeat(times, *([1] * (rows_B.ndim - 1)))
