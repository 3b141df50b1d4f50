"""Both ways of the same unlearning, a step of the one after a step of the other: seconds, memory, and that they do the same.

Shape suffixes: N items, C channels, H, W pixels.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from tests.benchmarks.i2i import tasks
from tests.benchmarks.i2i.plain import Plain
from tests.benchmarks.i2i.rows import Subjects
from tests.benchmarks.i2i.subjects import CIFAR_SPLITS, INTERLEAVED, random_images
from tests.benchmarks.i2i.tasks import Task
from tests.benchmarks.i2i.training import Recipe
from tests.benchmarks.sfron.jobs import fresh_peak, make_job, settled
from worker.contract import JobDirectory
from worker.engine import unlearn
from worker.engine.data import load_dataset
from worker.engine.distributed import Ranks
from worker.engine.environment import peak_memory_mb
from worker.engine.events import Events
from worker.engine.methods.encoder_l2 import EncoderL2
from worker.engine.run import Run

AGREE = 1e-3
"""Largest difference of the two losses, relative to the larger; both are computed in float32."""

PALETTE = {
    "channels": 3, "layers_per_block": 2, "block_out_channels": (32, 64, 128), "norm_num_groups": 8, "dropout": 0.0,
    "down_block_types": ("DownBlock2D",) * 3, "up_block_types": ("UpBlock2D",) * 3, "add_attention": True,
    "attention_head_dim": 32,
}  # fmt: skip
"""At 32x32 pixels: on 8x8 digits what would be measured is how fast Python calls torch."""


MAE = {
    "image_size": 32, "patch_size": 4, "num_channels": 3, "mask_ratio": 0.75, "hidden_dropout_prob": 0.0,
    "hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768,
    "decoder_hidden_size": 128, "decoder_num_hidden_layers": 8, "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 512,
}  # fmt: skip
"""ViT-MAE-Base at a quarter of its width: in the task's own network the decoder is smaller beside the encoder than there."""

MAGE = {
    "sample_size": 8, "codebook_size": 256, "hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4,
    "intermediate_size": 512, "decoder_hidden_size": 128, "decoder_num_hidden_layers": 4, "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 512,
}  # fmt: skip
"""MAGE-Base (12 and 8 layers of one width) at half its depth and a sixth of its width."""

TOKENIZER = {
    "in_channels": 3, "block_out_channels": (80, 80, 152), "latent_channels": 8, "norm_num_groups": 8,
    "num_vq_embeddings": 256, "sample_size": 32,
}  # fmt: skip
"""Of an image 243 MMAC beside 39 of the transformer's encoder and 55 of its decoder; published: 69, 11 and about 15 GMAC."""


class CurvesDiffer(Exception):
    """The two ways do not descend the same loss, so their seconds say nothing."""


@dataclass(frozen=True)
class Pace:
    """How much is timed."""

    steps: int
    rounds: int
    batch: int
    iterations: int
    """Of a request, over which what is prepared once is spread."""
    per_class: int
    """Training images of a class; all of them are tokenised."""


def pace(size: tasks.SizeName) -> Pace:
    """The published batch of masked models on one device is 32 or more; a step each way is some tenths of a second."""
    made = Pace(steps=12, rounds=2, batch=32, iterations=500, per_class=500)
    match size:
        case "quick":
            return replace(made, steps=6, rounds=1)
        case "smoke":
            return replace(made, steps=2, rounds=1, batch=4, iterations=2, per_class=2)
    return made


class Engine:
    """The method as the real stage runs it, step by step; what is made once is timed apart."""

    def __init__(self, job: JobDirectory, ranks: Ranks) -> None:
        self.work = unlearn.read_work(job, ranks)
        spec = self.work.spec
        family = self.work.family.load(job.base, labels=spec.labels, device=ranks.device)
        dataset, events = load_dataset(job, spec), Events(job.events, "unlearning", speaks=False)
        began = settled(ranks.device)
        self.run: Run = unlearn.make_run(self.work, family, dataset, ranks, events, cache=job.fishers)
        self.method = cast(EncoderL2, self.work.method(self.work.params, self.run))
        self.method.prepare()
        self.method.lesson.forget_batch(0)  # a family may make its noises when it is first asked for some
        self.seconds_once = settled(ranks.device) - began
        self._losses: list[float] = []
        self._listen()

    def _listen(self) -> None:
        """Keep what an update descends; the engine itself does not read it."""
        together = self.run.gradients.together

        def heard(parts: Sequence[Any]) -> torch.Tensor:
            objective = together(parts)
            self._losses.append(float(objective))
            return objective

        self.run.gradients.together = heard  # type: ignore[method-assign]

    def step(self, i: int) -> float:
        """One update; the loss before it."""
        self.method.step(i)
        return self._losses[-1]


def plain(job: JobDirectory, engine: Engine, ranks: Ranks) -> Plain:
    """The slow way on the same weights, images and streams."""
    spec, params = engine.work.spec, engine.method.params
    family = engine.work.family.load(job.base, labels=spec.labels, device=ranks.device)
    return Plain(
        family,
        load_dataset(job, spec).images_NCHW.to(ranks.device),
        engine.run.forget,
        engine.run.retain,
        batch=params.batch_size,
        rate=params.learning_rate,
        algorithm=params.algorithm,
        alpha=params.alpha,
        scope=params.noise_scope,
        clip=params.clip,
        label_drop=params.label_drop,
    )


def measure(made: Task, size: tasks.SizeName, root: Path, cache: Path, ranks: Ranks) -> dict[str, Any]:
    """Median over rounds of the plain way's seconds over the engine's; networks untrained, for shapes alone decide.

    Raises: CurvesDiffer.
    """
    how = pace(size)
    images = random_images(32, 3, how.per_class, 1)
    subjects = Subjects(_untrained(made, how, size), images, root / "speed", cache, ranks)
    rows = [_round(subjects, how, root / f"speed-{number}", number, ranks) for number in range(how.rounds)]
    for row in rows:
        print(f"{made.family} speed: {row}", flush=True)
    return {
        "speedup": statistics.median(row["speedup"] for row in rows),
        "step_speedup": statistics.median(row["step_speedup"] for row in rows),
        "loss_difference": max(row["loss_difference"] for row in rows),
        "peak_memory_mb": rows[0]["peak_memory_mb"],
        "plain_peak_memory_mb": rows[0]["plain_peak_memory_mb"],
        "engine_step_seconds": statistics.median(row["engine_step_seconds"] for row in rows),
        "plain_step_seconds": statistics.median(row["plain_step_seconds"] for row in rows),
    }


def _untrained(made: Task, how: Pace, size: tasks.SizeName) -> Task:
    """The same networks after next to no training, so that no network's answers are all alike."""
    few = Recipe(steps=5, batch=8, rate=1e-3)
    shape, tokenizer = dict(made.shape), made.tokenizer
    if size != "smoke":
        shape = {"mae": MAE, "vqgan": MAGE, "i2i_diffusion": PALETTE}.get(made.family, shape)
        tokenizer = tokenizer and TOKENIZER
    if made.family == "i2i_diffusion":
        shape = {**shape, "channels": 3}
    return replace(
        made,
        shape=shape,
        tokenizer=tokenizer,
        recipe=few,
        tokenizer_recipe=made.tokenizer_recipe and few,
        train_part=None,
        per_class=how.per_class,
    )


def _round(there: Subjects, how: Pace, root: Path, seed: int, ranks: Ranks) -> dict[str, Any]:
    made = there.task
    split = CIFAR_SPLITS[INTERLEAVED]
    params = {
        "target": "noise",
        "precision": "fp32",
        "iterations": how.iterations,
        "batch_size": how.batch,
        "learning_rate": 1e-4,
    }
    subject = there.subject(there.model(seed), "few")
    job = make_job(root, subject, "encoder_l2", params, seed=seed, forget_classes=split.forget, retain=split.real)
    engine = Engine(job, ranks)
    slow = plain(job, engine, ranks)
    seconds: dict[str, list[float]] = {"engine": [], "plain": []}
    losses: dict[str, list[float]] = {"engine": [], "plain": []}
    for i in range(how.steps):
        # The first of a pair takes turns: what one leaves in the caches is the other's.
        for name, step in _in_turn(i, {"engine": engine.step, "plain": slow.step}):
            began = settled(ranks.device)
            losses[name].append(step(i))
            seconds[name].append(settled(ranks.device) - began)
    worst = max(abs(a - b) / max(abs(a), abs(b), 1e-8) for a, b in zip(*losses.values(), strict=True))
    if worst > AGREE:
        raise CurvesDiffer(f"expected losses that agree to {AGREE:g}, found {worst:.3g} apart: {losses}")
    warm = 1 if how.steps > 2 else 0
    fast, slowly = (statistics.median(seconds[name][warm:]) for name in ("engine", "plain"))
    return {
        "family": made.family,
        "speedup": how.iterations * slowly / (engine.seconds_once + how.iterations * fast),
        "step_speedup": slowly / fast,
        "engine_step_seconds": fast,
        "plain_step_seconds": slowly,
        "engine_seconds_once": engine.seconds_once,
        "loss_difference": worst,
        "losses": (losses["engine"][0], losses["engine"][-1]),
        "peak_memory_mb": _peak(lambda: Engine(job, ranks).step(0), ranks),
        "plain_peak_memory_mb": _peak(lambda: plain(job, engine, ranks).step(0), ranks),
    }


def _in_turn(i: int, steps: dict[str, Callable[[int], float]]) -> list[tuple[str, Callable[[int], float]]]:
    pairs = list(steps.items())
    return pairs if i % 2 else pairs[::-1]


def _peak(work: Callable[[], object], ranks: Ranks) -> float:
    """MiB: the most that tensors held at one time, beyond what was there before.

    On a CPU by torch's own account of what it allocates: the process's size would be the larger way's, for both.
    """
    if ranks.device.type == "cuda":
        before = torch.cuda.memory_allocated(ranks.device) / 2**20
        fresh_peak(ranks.device)
        work()
        return peak_memory_mb(ranks.device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    results = profile.profiler.kineto_results  # type: ignore[union-attr]
    changes = sorted((e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]")
    held, most = 0, 0
    for _, nbytes in changes:
        held += nbytes
        most = max(most, held)
    return most / 2**20
