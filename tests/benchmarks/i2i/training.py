"""Models of the benchmark, trained from new weights by one recipe, and kept under the hash of all that decides them.

The never-seen model has the original's architecture, recipe, seed and number of updates, and none of the forgotten classes'
images. A tokenizer is trained once, on all classes, and serves both: as in a request, it is no part of what is unlearned.

Shape suffixes: N images, B images of a batch, C channels, H, W pixels, D numbers of a code, h, w tokens.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import VQModel
from torch import Tensor

from tests.benchmarks.i2i.subjects import Images
from tests.benchmarks.kept import Trained, kept
from tests.worker.engine.tiny import vqgan
from worker.contract import tree_digest
from worker.engine import optim, precision, registry
from worker.engine.family import Augment, ImageToImage
from worker.engine.files import entries
from worker.engine.streams import Stream, generator

RECIPE = "bench-i2i/1"
"""Part of every key. Change it whenever a line below changes the weights that training gives."""


class TrainingDiverged(Exception):
    """The loss of the benchmark's own training stopped being a finite number."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained from new weights: AdamW, a linear warm-up, then a cosine down to zero."""

    steps: int
    batch: int = 128
    rate: float = 1e-3
    warm_up: float = 0.05
    """Share of the steps."""
    weight_decay: float = 0.05
    clip: float = 1.0
    augment: Augment = "none"

    def rate_at(self, step: int) -> float:
        """The step size."""
        rising = (step + 1) / max(1.0, self.warm_up * self.steps)
        return self.rate * min(rising, 0.5 * (1 + math.cos(math.pi * step / self.steps)))


def trained(
    family: str, untrained: Path, images: Images, recipe: Recipe, *, seed: int, cache: Path, on: torch.device
) -> Trained:
    """The network of a folder after training on all of these images, from weights that are drawn from the seed."""

    def make(target: Path) -> None:
        model = cast(ImageToImage, registry.families()[family].load(untrained, labels=images.class_names, device=on))
        model.module.load_state_dict(model.fresh(seed).state_dict())
        train(model, images, recipe, seed=seed)
        model.save(target, untrained)

    what = {"family": family, "untrained": tree_digest(entries(untrained)), "recipe": asdict(recipe), "seed": seed}
    return kept(cache, {"version": RECIPE, **what, "images": images.digest}, make)


def train(family: ImageToImage, images: Images, recipe: Recipe, *, seed: int) -> None:
    """Descent on the family's own loss over the whole network, in place. Raises: TrainingDiverged."""
    held_N, labels_N = family.hold(images.images_NCHW), torch.from_numpy(images.labels)
    stream = Stream("train", seed, torch.arange(len(labels_N)), labels_N)
    module, device = family.module, held_N.device
    module.choose("all")
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = optim.make("adamw", parameters, learning_rate=recipe.rate, weight_decay=recipe.weight_decay)
    half = precision.resolve("auto", device) == "bf16"
    shape = images.images_NCHW.shape[1:]
    for step in range(recipe.steps):
        index_B = stream.pick(step, recipe.batch)
        source = stream.generator(step, "draw")
        draw = family.draw(recipe.batch, shape, source, label_drop=0.0, augment=recipe.augment).to(device)
        x_BCHW, y_B = family.prepare(held_N[index_B.to(device)], draw), labels_N[index_B].to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            loss = family.loss(x_BCHW, y_B, draw).mean()
        _descend(loss, parameters, optimizer, recipe, step)
    module.choose("encoder")


def train_tokenizer(vq: VQModel, images: Images, recipe: Recipe, *, seed: int, on: torch.device) -> None:
    """Squared error and commitment, in place; codes that nothing came near for a while are put where latents are.

    Source: van den Oord et al. 2017, arXiv:1711.00937, for the loss; no discriminator and no perceptual loss, which would take
    longer than there is.
    """
    images_NCHW = images.images_NCHW
    vq.to(on).train()
    parameters = list(vq.parameters())
    optimizer = optim.make("adamw", parameters, learning_rate=recipe.rate, weight_decay=0.0)
    stream = Stream("tokenizer", seed, torch.arange(len(images_NCHW)), torch.from_numpy(images.labels))
    vqgan.take_codes_from(vq, _to_range(images_NCHW[stream.pick(0, recipe.batch)]).to(on))
    codes = vq.quantize.embedding.weight
    used = torch.zeros(len(codes), dtype=torch.bool, device=on)
    every = max(10, recipe.steps // 20)
    for step in range(recipe.steps):
        x_BCHW = _to_range(images_NCHW[stream.pick(step, recipe.batch)]).to(on)
        latent_BDhw = vq.encode(x_BCHW).latents
        coded_BDhw, commitment, (_, _, index) = vq.quantize(latent_BDhw)
        drawn_BCHW = vq.decode(coded_BDhw, force_not_quantize=True).sample
        _descend((drawn_BCHW - x_BCHW).square().mean() + commitment, parameters, optimizer, recipe, step)
        used[index.flatten()] = True
        if step % every == every - 1:
            if step < 0.8 * recipe.steps:
                _revive(codes, used, latent_BDhw.detach(), generator(seed, "codes", step))
            used.zero_()
    vq.eval().to("cpu")


@torch.no_grad()
def _revive(codes_VD: Tensor, used_V: Tensor, latent_BDhw: Tensor, source: torch.Generator) -> None:
    idle = torch.nonzero(~used_V).flatten()
    latent_ND = latent_BDhw.permute(0, 2, 3, 1).flatten(0, 2)
    codes_VD[idle] = latent_ND[torch.randint(len(latent_ND), (len(idle),), generator=source).to(codes_VD.device)]


def _descend(loss: Tensor, parameters: list[Any], optimizer: torch.optim.Optimizer, recipe: Recipe, step: int) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
    if not bool(torch.isfinite(norm)):
        raise TrainingDiverged(f"the loss stopped being a finite number at step {step}")
    optim.set_rate(optimizer, recipe.rate_at(step))
    optimizer.step()


def _to_range(images_BCHW: Tensor) -> Tensor:
    """uint8 to [-1, 1]."""
    return images_BCHW.float().div(127.5).sub(1.0)
