"""SFR-on side by side: the engine's real stage, and the slow obvious one, on the same weights, data and settings."""

from __future__ import annotations

import copy
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from tests.benchmarks.sfron import classes, reference
from tests.benchmarks.sfron.cifar import CLASSES, MEAN, STD, Cifar
from tests.benchmarks.sfron.jobs import Subject, any_kernel, device, fresh_peak, make_job, run_unlearning, save_npz, settled
from worker.contract import Manifest
from worker.engine.environment import peak_memory_mb
from worker.engine.families.classifier import ImageClassifier
from worker.engine.families.ddpm import DDPM

FORGET = 3
CPU = torch.device("cpu")


def subject(root: Path, family: str, data: Cifar, write_model: Any) -> Subject:
    """Model and data on disk, as they are registered."""
    write_model(root / "model")
    save_npz(root / "data", data.images, data.labels, data.ids)
    held = tuple(data.ids[data.held_out].tolist())
    return Subject(family, root / "model", root / "data", CLASSES, held, root / "shared")


# ------------------------------------------------------------------------------------------------------------------ DDPM


def small_unet() -> UNet2DModel:
    """About a million parameters at 32x32, seeded; the last label row is the null label."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(32, 48, 64),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=16,
        num_class_embeds=len(CLASSES) + 1,
    )


@dataclass(frozen=True)
class Generation:
    """What both ways do to a DDPM, and where."""

    device: torch.device = CPU
    unet: Callable[[], UNet2DModel] = small_unet
    rate: float = 1e-3
    """Of the few plain steps before."""
    iterations: int = 50
    batch: int = 32
    engine: Mapping[str, Any] = field(
        default_factory=lambda: {"fisher": "class_batch", "fisher_batch_size": 32, "fisher_samples": 128}
    )
    """What the engine does in its own way, on 128 images a class; the reference's information is of all images and guided."""


def train_unet(data: Cifar, steps: int, task: Generation) -> UNet2DModel:
    """The network after a few plain steps, on the CPU: at random weights every gradient says the same."""
    x_NCHW, y_N = pixels(data.images[~data.held_out]), torch.from_numpy(data.labels[~data.held_out])
    module = task.unet().to(task.device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(module.parameters(), lr=task.rate, fused=True)
    abar_T = DDPMScheduler().alphas_cumprod.to(task.device)
    loss = reference.diffusion_loss(abar_T, len(CLASSES), label_drop=0.1, guidance=None)
    batches = reference.endless(x_NCHW, y_N, 2 * task.batch, torch.Generator().manual_seed(0))
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast(task.device.type, dtype=torch.bfloat16):
            mean = loss(module, *(t.to(task.device) for t in next(batches))).mean() / x_NCHW[0].numel()
        mean.backward()
        optimizer.step()
    return module.to(CPU, memory_format=torch.contiguous_format).eval()


def write_unet(directory: Path, unet: UNet2DModel) -> None:
    """A plain diffusers folder."""
    unet.save_pretrained(directory)
    DDPMScheduler().save_pretrained(directory)


def small_subject(root: Path) -> Subject:
    """The untrained small network and 200 noise images: for figures that depend on shapes alone."""
    labels = np.repeat(np.arange(len(CLASSES)), 20)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 32, 32, 3)).astype(np.uint8)
    ids = np.array([f"train/{CLASSES[k]}/{i:04d}" for i, k in enumerate(labels)])
    return subject(root, "ddpm", Cifar(images, labels, ids), lambda path: write_unet(path, small_unet()))


def pixels(images_NHWC: np.ndarray) -> Tensor:
    """uint8 to float32 (N, C, H, W) in [-1, 1]."""
    return torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).contiguous().float().div(127.5).sub(1)


def ddpm_reference(unet: UNet2DModel, data: Cifar, seed: int, task: Generation) -> tuple[torch.nn.Module, float, float]:
    """The network after the slow way, on the CPU, seconds for the mask, seconds for the loop."""
    keep = ~data.held_out
    x_NCHW, y_N = pixels(data.images[keep]), torch.from_numpy(data.labels[keep])
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    module, abar_T, null = copy.deepcopy(unet).to(task.device), DDPMScheduler().alphas_cumprod.to(task.device), len(CLASSES)
    forgotten_N = y_N == FORGET
    began = settled(task.device)
    guided = reference.diffusion_loss(abar_T, null, label_drop=0.0, guidance=2.0)
    parts = ((x_NCHW[rows], y_N[rows]) for rows in (forgotten_N, ~forgotten_N))
    fishers = [reference.fisher(module, reference.in_batches(x, y, task.batch, generator), guided, 1.0) for x, y in parts]
    mask = reference.saliency(*fishers, gamma=1.0)
    prepared = settled(task.device)
    settings = reference.Settings(
        task.iterations, 1, alpha_forget=10.0, temperature=0.5, gamma=1.0, floor=1e-8,
        forget_clip=1.0, remain_clip=1.0, fisher_clip=1.0, average=False,
    )  # fmt: skip
    module.train()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-4)
    streams = [reference.endless(x_NCHW[rows], y_N[rows], task.batch, generator) for rows in (forgotten_N, ~forgotten_N)]
    loss = reference.diffusion_loss(abar_T, null, label_drop=0.1, guidance=None)
    reference.unlearn(module, optimizer, None, *streams, mask, loss, settings)
    ended = settled(task.device)
    return module.eval().to(CPU), prepared - began, ended - prepared


def ddpm_engine(
    root: Path, model: Subject, seed: int, task: Generation, *, forget: int = FORGET
) -> tuple[torch.nn.Module, Manifest]:
    """The network that the real stage wrote, on the CPU, and its manifest."""
    params = {"preset": "cifar10-ddpm", "iterations": task.iterations, "batch_size": task.batch, **task.engine}
    job = make_job(root, model, "sfron", params, seed=seed, forget_classes=(forget,))
    manifest = run_unlearning(job, device(task.device.type))
    return DDPM.load(job.out, labels=CLASSES, device=CPU).module, manifest


def mean_losses(module: torch.nn.Module, data: Cifar, on: torch.device = CPU) -> dict[str, float]:
    """Mean squared error on held-out images, forgotten and retained, from fixed noise: what both ways must agree in."""
    held = data.held_out
    x_NCHW, y_N = pixels(data.images[held]), torch.from_numpy(data.labels[held])
    loss = reference.diffusion_loss(DDPMScheduler().alphas_cumprod.to(on), len(CLASSES), label_drop=0.0, guidance=None)
    module, answers = copy.deepcopy(module).to(on), {}
    for name, rows in (("forget", y_N == FORGET), ("retain", y_N != FORGET)):
        torch.manual_seed(1)
        with torch.inference_mode():
            pairs = zip(x_NCHW[rows].split(256), y_N[rows].split(256), strict=True)
            parts = [loss(module, x.to(on), y.to(on)) for x, y in pairs]
        answers[name] = float(torch.cat(parts).mean()) / x_NCHW[0].numel()
    return answers


def ddpm(data: Cifar, *, rounds: int, steps: int, task: Generation | None = None) -> dict[str, Any]:
    """Seconds of both ways, their ratio (median over rounds, each round measuring both), and the losses they end at."""
    rows, task = [], task or Generation()
    unet = train_unet(data, steps, task)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            root = Path(folder) / str(number)
            model = subject(root, "ddpm", data, lambda path: write_unet(path, unet))
            fresh_peak(task.device)
            with any_kernel(task.device):
                slow, mask, loop = ddpm_reference(unet, data, number, task)
            peak = peak_memory_mb(task.device)
            fast, first = ddpm_engine(root / "first", model, number, task)
            _, second = ddpm_engine(root / "second", model, number, task, forget=(FORGET + 1) % 10)
            engine = first.seconds_prepare + first.seconds_unlearn
            row = {
                "reference_seconds": (mask, loop),
                "engine_seconds": (first.seconds_prepare, first.seconds_unlearn),
                "speedup": (mask + loop) / engine,
                "second_prepare_ratio": second.seconds_prepare / first.seconds_prepare,
                "reference_losses": mean_losses(slow, data, task.device),
                "engine_losses": mean_losses(fast, data, task.device),
                "untouched_losses": mean_losses(unet, data, task.device),
                "peak_memory_mb": first.peak_memory_mb,
                "reference_peak_memory_mb": peak,
            }
            print(f"ddpm round {number}: {row}", flush=True)
            rows.append(row)
    return {
        "ddpm_speedup": statistics.median(r["speedup"] for r in rows),
        "ddpm_seconds": statistics.median(sum(r["engine_seconds"]) for r in rows),
        "ddpm_reference_seconds": statistics.median(sum(r["reference_seconds"]) for r in rows),
        "second_request_prepare_ratio": statistics.median(r["second_prepare_ratio"] for r in rows),
        "peak_memory_mb": max(r["peak_memory_mb"] for r in rows),
        "rounds": rows,
    }


# ------------------------------------------------------------------------------------------------------------ classifier

CLASSIFIER = {
    "learning_rate": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "alpha_forget": 0.2, "forget_clip": 7.0, "forget_every": 5,
    "temperature": 0.5, "gamma": 1.0,
}  # fmt: skip
"""The published settings for CIFAR-10 but for alpha (25), which is tuned to 1,500 iterations on a larger network.

At 0.2 both ways forget the class and keep the others alike. On a fifth of the data the reference lost 8 points of the others at
0.5 and 10, 79 and 29 at 1, 2 and 3, where the engine lost 0.4 to 2.0: scores so far apart would compare two different results.
"""


@dataclass(frozen=True)
class Classification:
    """What both ways do to a classifier, and where."""

    device: torch.device = CPU
    share: float | None = None
    """Of the training images, forgotten at random; None: one class."""
    iterations: int = 100
    batch: int = 128
    alpha: float = CLASSIFIER["alpha_forget"]
    trained_statistics: bool = False
    """Does BatchNorm estimate its statistics anew while it unlearns?"""
    engine: Mapping[str, Any] = field(
        default_factory=lambda: {
            **CLASSIFIER, "preset": None, "algorithm": "sgd", "decay": "cosine", "alpha_decay": "cosine",
            "forget_loss": "ascent", "optimizer": "shared", "augment": "crop_flip",
        }
    )  # fmt: skip

    def forgotten(self, data: Cifar, seed: int) -> Tensor:
        """(N,) bool."""
        if self.share is None:
            return torch.from_numpy((data.labels == FORGET) & ~data.held_out)
        train_N = torch.from_numpy(np.flatnonzero(~data.held_out))
        order_N = train_N[torch.randperm(len(train_N), generator=torch.Generator().manual_seed(seed))]
        gone_N = torch.zeros(len(data.labels), dtype=torch.bool)
        gone_N[order_N[: int(self.share * len(train_N))]] = True
        return gone_N

    def wish(self, data: Cifar, seed: int) -> dict[str, Any]:
        """The same, as a request says it."""
        if self.share is None:
            return {"forget_classes": (FORGET,)}
        return {"forget_samples": tuple(sorted(data.ids[self.forgotten(data, seed).numpy()].tolist()))}

    def scores(self, before: ImageClassifier, after: ImageClassifier, data: Cifar, seed: int) -> dict[str, float]:
        """What is forgotten and what is kept."""
        if self.share is None:
            return classes.forgetting_scores(before, after, data, FORGET)
        return classes.sample_scores(after, data, self.forgotten(data, seed))


class Ahead(IterableDataset[tuple[Tensor, Tensor]]):
    """An iterator that a data loader's process runs."""

    def __init__(self, make: Callable[[], Iterator[tuple[Tensor, Tensor]]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.make()


def loaded(make: Callable[[], Iterator[tuple[Tensor, Tensor]]], on: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches made ahead by another process while a GPU computes, as the release's loader does; a CPU has no cores to spare.

    One process a stream keeps their order; forked, as a closure cannot be sent.
    """
    if on.type == "cpu":
        return make()
    return iter(DataLoader(Ahead(make), batch_size=None, num_workers=1, pin_memory=True, multiprocessing_context="fork"))


def varied(x_NCHW: Tensor, y_N: Tensor, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches, each image shifted and mirrored by itself, in a loop over images as data loaders do it."""
    for x_BCHW, y_B in reference.endless(x_NCHW, y_N, size, generator):
        padded_BCHW = torch.nn.functional.pad(x_BCHW, (4, 4, 4, 4))
        images = []
        for image_CHW in padded_BCHW:
            top, left, flip = (int(torch.randint(n, (1,), generator=generator)) for n in (9, 9, 2))
            crop_CHW = image_CHW[:, top : top + 32, left : left + 32]
            images.append(crop_CHW.flip(-1) if flip else crop_CHW)
        yield torch.stack(images), y_B


def classifier_reference(model: Path, data: Cifar, seed: int, task: Classification) -> tuple[torch.nn.Module, float, float]:
    """The network after the slow way, seconds for the mask, seconds for the loop."""
    keep = ~data.held_out
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    x_NCHW = ((pixels(data.images[keep]) + 1) / 2 - mean) / std
    y_N = torch.from_numpy(data.labels[keep])
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    module = classes.load(model, task.device.type).module
    module = module.to(memory_format=torch.contiguous_format)
    forgotten_N = task.forgotten(data, seed)[torch.from_numpy(keep)]
    began = settled(task.device)
    parts = [(x_NCHW[rows], y_N[rows]) for rows in (forgotten_N, ~forgotten_N)]
    batches = [reference.in_batches(x, y, task.batch, generator) for x, y in parts]
    mask = reference.saliency(*(reference.fisher(module, b, reference.classifier_loss, None) for b in batches), gamma=1.0)
    prepared = settled(task.device)
    settings = reference.Settings(
        task.iterations, int(CLASSIFIER["forget_every"]), task.alpha, CLASSIFIER["temperature"],
        gamma=1.0, floor=1e-15, forget_clip=CLASSIFIER["forget_clip"], remain_clip=None, fisher_clip=None, average=True,
    )  # fmt: skip
    optimizer = torch.optim.SGD(module.parameters(), lr=CLASSIFIER["learning_rate"], momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, task.iterations)
    forget, remain = (loaded(partial(varied, x, y, task.batch, generator), task.device) for x, y in parts)
    module.train(task.trained_statistics)
    reference.unlearn(module, optimizer, schedule, forget, remain, mask, reference.classifier_loss, settings)
    ended = settled(task.device)
    return module.eval(), prepared - began, ended - prepared


def classifier_engine(
    root: Path, model: Subject, data: Cifar, seed: int, task: Classification
) -> tuple[ImageClassifier, Manifest]:
    """The model that the real stage wrote, and its manifest: the same algorithm and settings."""
    params = {**task.engine, "iterations": task.iterations, "batch_size": task.batch}
    job = make_job(root, model, "sfron", params, seed=seed, **task.wish(data, seed))
    manifest = run_unlearning(job, device(task.device.type))
    return classes.load(job.out, task.device.type), manifest


def classifier(original: Subject, data: Cifar, *, rounds: int, task: Classification | None = None) -> dict[str, Any]:
    """Seconds of both ways, their ratio (median over rounds), and test accuracies that both end at."""
    rows, task = [], task or Classification()
    on = task.device.type
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            model = replace(original, shared=Path(folder) / f"shared-{number}")
            fresh_peak(task.device)
            with any_kernel(task.device):
                slow, mask, loop = classifier_reference(model.model, data, number, task)
            peak = peak_memory_mb(task.device)
            fast, manifest = classifier_engine(Path(folder) / f"job-{number}", model, data, number, task)
            engine = manifest.seconds_prepare + manifest.seconds_unlearn
            before, other = classes.load(model.model, on), classes.load(model.model, on)
            other.module.load_state_dict(slow.state_dict())
            row = {
                "reference_seconds": (mask, loop),
                "engine_seconds": (manifest.seconds_prepare, manifest.seconds_unlearn),
                "speedup": (mask + loop) / engine,
                "reference_scores": task.scores(before, other, data, number),
                "engine_scores": task.scores(before, fast, data, number),
                "untouched_scores": task.scores(before, before, data, number),
                "peak_memory_mb": manifest.peak_memory_mb,
                "reference_peak_memory_mb": peak,
            }
            print(f"classifier round {number}: {row}", flush=True)
            rows.append(row)
    return {
        "classifier_speedup": statistics.median(r["speedup"] for r in rows),
        "classifier_seconds": statistics.median(sum(r["engine_seconds"]) for r in rows),
        "classifier_reference_seconds": statistics.median(sum(r["reference_seconds"]) for r in rows),
        "rounds": rows,
    }
