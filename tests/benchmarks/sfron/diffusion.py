"""A class-conditional DDPM on CIFAR-10: trained for some minutes, then one class forgotten by every method, one protocol.

The original and the retrained model come from one recipe, one budget of seconds and the same initial weights; the retrained
one never sees the class. Every model is asked for the same images (the same noise), and one judge looks at them.

Shape suffixes: N items, B images, C channels, H, W pixels, T timesteps.
Source: Ho et al. 2020, arXiv:2006.11239, for network and loss; Nichol & Dhariwal 2021, arXiv:2102.09672, for averaging weights.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor
from torch.nn import functional as F

from tests.benchmarks.sfron.cifar import CLASSES, Cifar
from tests.benchmarks.sfron.jobs import Subject, any_kernel, device, fresh_peak, make_job, run_unlearning, save_npz, settled
from tests.benchmarks.sfron.speed import FORGET, write_unet
from worker.contract import JudgePolicy, Sampling
from worker.engine import judge as judges
from worker.engine import optim
from worker.engine.data import Dataset
from worker.engine.environment import peak_memory_mb
from worker.engine.families.ddpm import DDPM
from worker.engine.judge import Judge, Judged
from worker.engine.sampling import sample_seed
from worker.engine.statistics import bootstrap_ratio_upper, frechet_distance, paired_drop_upper, upper_bound
from worker.engine.verifiers.feature_distance import Cloud

NULL = len(CLASSES)
NOISES = 77_007
"""Seed of the noise that every model draws from."""
METHODS: Mapping[str, Mapping[str, Any]] = {
    "sfron": {"preset": "ddpm", "batch_size": 128, "precision": "auto", "augment": "flip"},
    "salun": {"preset": "ddpm", "batch_size": 128, "augment": "flip"},
    "gradient_ascent": {"batch_size": 128, "augment": "flip"},
    "finetune": {"batch_size": 128, "augment": "flip"},
}


class TrainingDiverged(Exception):
    """The loss of the benchmark's own training stopped being a finite number."""


def published_unet(dropout: float = 0.1) -> UNet2DModel:
    """35.75 million parameters, seeded: the layout of google/ddpm-cifar10-32 with ten labels and a null label."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        dropout=dropout,
        flip_sin_to_cos=False,
        freq_shift=1,
        downsample_padding=0,
        norm_eps=1e-6,
        attention_head_dim=None,
        num_class_embeds=len(CLASSES) + 1,
    )


def undropped_unet() -> UNet2DModel:
    """The same without dropout: a network that is trained for minutes does not overfit."""
    return published_unet(dropout=0.0)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained from new weights."""

    seconds: float
    batch: int = 256
    rate: float = 4e-4
    """The largest; it rises linearly over `warm_up`, a share of the time, and falls to zero as a cosine."""
    warm_up: float = 0.05
    average: float = 0.999
    """Decay of the averaged weights, which are the ones that are kept."""
    label_drop: float = 0.1

    def rate_at(self, progress: float) -> float:
        """The step size when a share `progress` of the time is over."""
        return self.rate * min(1.0, progress / self.warm_up) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


@dataclass(frozen=True)
class Protocol:
    """What every method has in common."""

    recipe: Recipe
    unet: Callable[[], UNet2DModel] = undropped_unet
    judge: JudgePolicy = field(default_factory=lambda: JudgePolicy(epochs=12, min_accuracy=0.7))
    sampling: Sampling = field(default_factory=lambda: Sampling(steps=20, guidance_scale=2.0, batch_size=512))
    forget_samples: int = 500
    retain_samples: int = 200
    """Of each retained class."""
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: METHODS)

    def key(self, data: Cifar, on: torch.device) -> str:
        """What a kept original or row depends on; another key's is not used."""
        facts = {
            **asdict(self.recipe),
            "unet": self.unet.__name__,
            "judge": self.judge.model_dump(),
            "sampling": self.sampling.model_dump(),
            "samples": (self.forget_samples, self.retain_samples),
            "images": len(data.images),
            "device": on.type,
        }
        return json.dumps(facts, sort_keys=True)


# --------------------------------------------------------------------------------------------------------------- training


def trained(
    data: Cifar, keep_N: np.ndarray, protocol: Protocol, on: torch.device, seed: int
) -> tuple[UNet2DModel, dict[str, Any]]:
    """The averaged network on the CPU, after `recipe.seconds` on the images that `keep_N` marks, and what it took.

    Images stay on the device as bytes; bf16 where sums allow it; mirrored at random.

    Raises: TrainingDiverged.
    """
    recipe = protocol.recipe
    held_NCHW = torch.from_numpy(data.images[keep_N]).permute(0, 3, 1, 2).contiguous().to(on)
    label_N = torch.from_numpy(data.labels[keep_N]).to(on)
    module = protocol.unet().to(on, memory_format=torch.channels_last).train()
    average = copy.deepcopy(module).requires_grad_(False)
    averaged, newest = list(average.parameters()), [p.detach() for p in module.parameters()]
    optimizer = torch.optim.Adam(module.parameters(), lr=recipe.rate, fused=True)
    generator, abar_T = torch.Generator(on).manual_seed(seed), DDPMScheduler().alphas_cumprod.to(on)
    torch.manual_seed(seed)  # dropout's
    fresh_peak(on)
    began, step, recent = settled(on), 0, torch.zeros((), device=on)
    while (progress := (time.monotonic() - began) / recipe.seconds) < 1:
        optim.set_rate(optimizer, recipe.rate_at(progress))
        row_B = torch.randint(len(held_NCHW), (recipe.batch,), generator=generator, device=on)
        optimizer.zero_grad(set_to_none=True)
        loss = _loss(module, held_NCHW[row_B], label_N[row_B], abar_T, generator, recipe.label_drop)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        step += 1
        decay = min(recipe.average, step / (step + 9))  # an average of few steps must not be of the initial weights
        torch._foreach_lerp_(averaged, newest, 1 - decay)
        recent = loss.detach() if step == 1 else recent.lerp(loss.detach(), 0.02)
        if step % 200 == 0:
            _require_finite(recent, step)
    _require_finite(recent, step)
    figures = {"steps": step, "seconds": settled(on) - began, "peak_memory_mb": peak_memory_mb(on), "loss": float(recent)}
    return average.to("cpu", memory_format=torch.contiguous_format).requires_grad_(True).eval(), figures


def _loss(
    module: UNet2DModel, held_BCHW: Tensor, y_B: Tensor, abar_T: Tensor, generator: torch.Generator, label_drop: float
) -> Tensor:
    """The mean squared error of the predicted noise."""
    n, on = len(held_BCHW), held_BCHW.device
    flip_B = torch.rand(n, generator=generator, device=on) < 0.5
    held_BCHW = torch.where(flip_B.view(-1, 1, 1, 1), held_BCHW.flip(-1), held_BCHW)
    x_BCHW = held_BCHW.float().div(127.5).sub(1)
    t_B = torch.randint(len(abar_T), (n,), generator=generator, device=on)
    eps_BCHW = torch.randn(x_BCHW.shape, generator=generator, device=on)
    shown_B = torch.where(torch.rand(n, generator=generator, device=on) < label_drop, NULL, y_B)
    abar_B111 = abar_T[t_B].view(-1, 1, 1, 1)
    noisy_BCHW = (abar_B111.sqrt() * x_BCHW + (1 - abar_B111).sqrt() * eps_BCHW).contiguous(memory_format=torch.channels_last)
    with torch.autocast(on.type, dtype=torch.bfloat16):
        predicted_BCHW = module(noisy_BCHW, t_B, class_labels=shown_B).sample
    return F.mse_loss(predicted_BCHW.float(), eps_BCHW)


def _require_finite(loss: Tensor, step: int) -> None:
    if not bool(torch.isfinite(loss)):
        raise TrainingDiverged(f"expected a finite loss, found {float(loss)} after {step} steps")


# ---------------------------------------------------------------------------------------------------------------- judging


@dataclass(frozen=True)
class Looked:
    """What the judge says of a model's images, class by class."""

    judged: tuple[Judged, ...]

    def hits(self, k: int) -> Tensor:
        """(n,) bool: does an image drawn under class k show it?"""
        return self.judged[k].predicted_N == k

    def retained(self, gone: int) -> tuple[Tensor, Cloud]:
        """`hits` of all other classes, and their features."""
        others = [k for k in range(len(CLASSES)) if k != gone]
        cloud = Cloud.of([self.judged[k].features_ND.numpy() for k in others])
        return torch.cat([self.hits(k) for k in others]), cloud


def look(folder: Path, judge: Judge, protocol: Protocol, on: torch.device) -> Looked:
    """Draw from a saved model and judge; image i of a class is of the same noise for every model."""
    family, judged = DDPM.load(folder, labels=CLASSES, device=on), []
    for k in range(len(CLASSES)):
        n = protocol.forget_samples if k == FORGET else protocol.retain_samples
        seeds = [sample_seed(NOISES, k, i) for i in range(n)]
        judged.append(judge.look(family.sample(torch.full((n,), k), seeds, sampling=protocol.sampling)))
    return Looked(tuple(judged))


def judge_of(subject: Subject, data: Cifar, protocol: Protocol, on: torch.device) -> tuple[Judge, Cloud]:
    """The judge, and the features of the held-out images of all classes but the forgotten one. Raises: JudgeUnfit."""
    images_NCHW = torch.from_numpy(data.images).permute(0, 3, 1, 2).contiguous()
    held_N = torch.from_numpy(data.held_out)
    dataset = Dataset(images_NCHW, torch.from_numpy(data.labels), tuple(data.ids.tolist()), CLASSES, held_N)
    judge, origin = judges.obtain(dataset, subject.digest(subject.data), protocol.judge, subject.shared / "judges", on)
    print(
        f"judge: right on {judge.record.held_out_accuracy:.1%} of {judge.record.held_out_n} held-out images; {origin}",
        flush=True,
    )
    real = [images_NCHW[dataset.held_out_of([k])] for k in range(len(CLASSES)) if k != FORGET]
    return judge, Cloud.of([judge.look(images).features_ND.numpy() for images in real])


def scores(before: Looked, after: Looked, real: Cloud) -> dict[str, Any]:
    """How much of the class is still drawn, and what the others lost against the original; one-sided 95 % bounds."""
    gone_N = after.hits(FORGET)
    (right_N, cloud), (was_right_N, old) = after.retained(FORGET), before.retained(FORGET)
    worse, better, n = int((was_right_N & ~right_N).sum()), int((~was_right_N & right_N).sum()), len(right_N)

    def distance(of: Cloud, drawn_N: np.ndarray | slice = slice(None), real_N: np.ndarray | slice = slice(None)) -> float:
        return frechet_distance(of.moments(drawn_N), real.moments(real_N))

    def resampled(rng: np.random.Generator) -> float:
        drawn_N, real_N = cloud.resample(rng), real.resample(rng)
        return distance(cloud, drawn_N, real_N) / distance(old, drawn_N, real_N)

    ratio = distance(cloud) / distance(old)
    return {
        "forget_rate": float(gone_N.float().mean()),
        "forget_upper95": upper_bound(int(gone_N.sum()), len(gone_N)),
        "retain_accuracy": float(right_N.float().mean()),
        "retain_drop_points": 100 * (worse - better) / n,
        "retain_drop_upper95_points": 100 * paired_drop_upper(worse, better, n),
        "feature_ratio": ratio,
        "feature_ratio_upper95": bootstrap_ratio_upper(resampled, ratio, resamples=200, rng=np.random.default_rng(NOISES)),
    }


# --------------------------------------------------------------------------------------------------------------- the bench


@dataclass
class Bench:
    """The original and its judge, made once and kept in `root`, and a row for every method so far."""

    data: Cifar
    protocol: Protocol
    on: torch.device
    root: Path

    def measure(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Rows of the original and of every method that was ever measured in `root`; `names` are measured now."""
        subject = self._original()
        judge, real = judge_of(subject, self.data, self.protocol, self.on)
        before = look(subject.model, judge, self.protocol, self.on)
        self._keep(
            "original",
            {**scores(before, before, real), **self._read("trained"), "judge_accuracy": judge.record.held_out_accuracy},
        )
        for name in names:
            folder, cost = self._retrained() if name == "retrain" else self._forgotten(subject, name)
            row = {**scores(before, look(folder, judge, self.protocol, self.on), real), **cost}
            self._keep(name, row)
            print(shown(name, row), flush=True)
        kept = ("original", *self.protocol.params, "retrain")
        return {name: row for name in kept if (row := self._read(name))}

    def _original(self) -> Subject:
        folder, data = self.root / "original", self.data
        if not self._read("trained"):
            save_npz(self.root / "data", data.images, data.labels, data.ids)
            self._keep("trained", self._train(folder, ~data.held_out, seed=0))
        held = tuple(data.ids[data.held_out].tolist())
        return Subject("ddpm", folder, self.root / "data", CLASSES, held, self.root / "shared")

    def _retrained(self) -> tuple[Path, dict[str, Any]]:
        folder = self.root / "retrained"
        return folder, self._train(folder, ~self.data.held_out & (self.data.labels != FORGET), seed=1)

    def _train(self, folder: Path, keep_N: np.ndarray, seed: int) -> dict[str, Any]:
        with any_kernel(self.on):
            unet, figures = trained(self.data, keep_N, self.protocol, self.on, seed)
        write_unet(folder, unet)
        print(f"trained {folder.name}: {figures}", flush=True)
        return figures

    def _forgotten(self, subject: Subject, name: str) -> tuple[Path, dict[str, Any]]:
        params = dict(self.protocol.params[name])
        job = make_job(self.root / f"job-{name}", subject, name, params, seed=0, forget_classes=(FORGET,))
        manifest = run_unlearning(job, device(self.on.type))
        return job.out, {
            "steps": manifest.iterations_completed,
            "seconds": manifest.seconds_prepare + manifest.seconds_unlearn,
            "peak_memory_mb": manifest.peak_memory_mb,
        }

    def _keep(self, name: str, row: Mapping[str, Any]) -> None:
        (self.root / "rows").mkdir(parents=True, exist_ok=True)
        document = {"key": self.protocol.key(self.data, self.on), "row": dict(row)}
        (self.root / "rows" / f"{name}.json").write_text(json.dumps(document))

    def _read(self, name: str) -> dict[str, Any]:
        """A kept row; empty when there is none of this protocol."""
        file = self.root / "rows" / f"{name}.json"
        document = json.loads(file.read_text()) if file.is_file() else {"key": ""}
        return document["row"] if document["key"] == self.protocol.key(self.data, self.on) else {}


def shown(name: str, row: Mapping[str, Any]) -> str:
    """A row of the table."""
    return (
        f"{name:<16} still drawn {row['forget_rate']:.3f} (≤ {row['forget_upper95']:.3f})  "
        f"retained {row['retain_accuracy']:.3f}, drop {row['retain_drop_points']:+.1f} "
        f"(≤ {row['retain_drop_upper95_points']:.1f}) points  "
        f"distance ratio {row['feature_ratio']:.2f} (≤ {row['feature_ratio_upper95']:.2f})  "
        f"{row['steps']} steps  {row['seconds']:.1f} s  {row['peak_memory_mb']:.0f} MB"
    )
