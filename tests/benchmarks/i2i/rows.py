"""The table: every model on every corruption, forgotten and retained side by side; and the figures that sum it up."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from tests.benchmarks.i2i import tasks, training
from tests.benchmarks.i2i.completions import Gallery, Seen, Side, side, underpowered
from tests.benchmarks.i2i.subjects import Images, Split
from tests.benchmarks.i2i.tasks import BASELINES, METHODS, OURS, OURS_PROXY, Task
from tests.benchmarks.kept import Trained
from tests.benchmarks.sfron.jobs import Subject, make_job, run_unlearning, save_npz
from worker.contract import JobDirectory, MaskSpec
from worker.engine import halves, registry
from worker.engine.distributed import Ranks
from worker.engine.errors import Diverged
from worker.engine.region import described
from worker.engine.verifiers.frozen_decoder import trained_by
from worker.engine.verifiers.retain_completion import distance_ratio

ORIGINAL, NEVER = "original", "retrain"
RESAMPLES = 1000


@dataclass
class Run:
    """One split and seed: what every model completes."""

    split: Split
    seed: int
    judge_accuracy: Mapping[MaskSpec, float]
    rows: dict[str, Seen] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_mb: dict[str, float] = field(default_factory=dict)
    unchanged: dict[str, bool] = field(default_factory=dict)
    """Of rows whose method trains the encoder alone: are all frozen tensors of the saved model as they were?"""
    diverged: dict[str, str] = field(default_factory=dict)
    """Rows that have no completions, and why."""


@dataclass(frozen=True)
class Cell:
    """A row of the table."""

    forget: Side
    retain: Side
    ratio: float
    upper95: float


class Subjects:
    """Models and data of a task on disk: what is trained once, and what requests are made of."""

    def __init__(self, made: Task, images: Images, root: Path, cache: Path, ranks: Ranks) -> None:
        self.task, self.root, self.cache, self.ranks = made, root, cache, ranks
        self.images = images.part(made.train_part)
        few = images.part(made.per_class, 1)
        for name, some in (("all", self.images), ("few", few)):
            save_npz(root / name, some.images, some.labels, some.ids)
        self._held = {"all": self.images.held_out_ids, "few": few.held_out_ids}
        self.trained: list[Trained] = []

    def model(self, seed: int, without: Sequence[int] = ()) -> Path:
        """The original, or what was trained without some classes."""
        untrained = self.root / f"untrained-{seed}"
        if not untrained.exists():
            images, on = self.images.training(), self.ranks.device
            tasks.write_untrained(self.task, untrained, images, seed=seed, cache=self.cache, on=on)
        found = training.trained(
            self.task.family,
            untrained,
            self.images.training(without),
            self.task.recipe,
            seed=seed,
            cache=self.cache,
            on=self.ranks.device,
        )
        self.trained.append(found)
        return found.folder

    def subject(self, model: Path, data: str) -> Subject:
        """A model with all images, by which it is judged, or with the few that a method is given."""
        names = self.images.class_names
        return Subject(self.task.family, model, self.root / data, names, self._held[data], self.cache / "shared")


def measure(made: Task, images: Images, root: Path, cache: Path, ranks: Ranks, rows: Sequence[str] = ()) -> Iterator[Run]:
    """Every split and seed of a task, printed as it comes."""
    there = Subjects(made, images, root, cache, ranks)
    for seed in made.seeds:
        original = there.model(seed)
        for name in made.only_splits:
            run = _one(there, original, made.splits[name], seed, rows or tuple(METHODS))
            print(table(made, run), flush=True)
            yield run


def _one(there: Subjects, original: Path, split: Split, seed: int, rows: Sequence[str]) -> Run:
    made, ranks, work = there.task, there.ranks, there.root / f"{split.name}-{seed}"
    never = there.model(seed, split.forget)
    gallery = Gallery(
        work / "gallery", there.subject(original, "all"), split, made.corruptions, made.judge, ranks,
        steps=made.steps, shown=made.shown, seed=seed,
    )  # fmt: skip
    seen = {ORIGINAL: gallery.look(original), NEVER: gallery.look(never)}
    run = Run(split, seed, gallery.judge_accuracy, seen)
    few = there.subject(original, "few")
    for row in rows:
        began, method = time.monotonic(), METHODS[row]
        retain = split.stand_in if method.stand_in else split.real
        job = make_job(work / row, few, method.name, made.asked(row), seed=seed, forget_classes=split.forget, retain=retain)
        try:
            manifest = run_unlearning(job, ranks)
        except Diverged as error:
            run.diverged[row] = str(error)
            continue
        run.seconds[row], run.peak_memory_mb[row] = time.monotonic() - began, manifest.peak_memory_mb
        if (same := _unchanged(made.family, original, job)) is not None:
            run.unchanged[row] = same
        run.rows[row] = gallery.look(job.out)
        shutil.rmtree(job.out)
    return run


def _unchanged(family: str, before: Path, job: JobDirectory) -> bool | None:
    """Of the saved files, read again, as `frozen_decoder` does; None where the method trains more than the encoder."""
    trains = trained_by(job.read_spec())
    if trains != "encoder":
        return None
    digests = []
    for folder in (before, job.out):
        model = registry.families()[family].load(folder, labels=["a", "b"], device=torch.device("cpu"))
        halves.choose(model, trains)
        digests.append(halves.digests(model))
    return digests[0] == digests[1]


# ---------------------------------------------------------------------------------------------------------------- the table


def cells(run: Run, corruption: MaskSpec) -> dict[str, Cell]:
    """Every row that has completions."""
    kept = {row: {k: seen[corruption][k] for k in run.split.retain} for row, seen in run.rows.items()}
    return {
        row: Cell(
            side(seen[corruption], run.split.forget),
            side(seen[corruption], run.split.retain),
            *distance_ratio(kept[ORIGINAL], kept[row], resamples=RESAMPLES, rng=np.random.default_rng(0))[::2],
        )
        for row, seen in run.rows.items()
    }


def table(made: Task, run: Run) -> str:
    """A block of lines for every corruption."""
    return "\n".join(_block(made, run, corruption) for corruption in made.corruptions)


def _block(made: Task, run: Run, corruption: MaskSpec) -> str:
    found = cells(run, corruption)
    weak = underpowered(found[ORIGINAL].forget, found[NEVER].forget)
    judge = run.judge_accuracy[corruption]
    lines = [
        f"\n{made.family}, {run.split.name}, seed {run.seed}, hidden: {described(corruption)}; "
        f"the judge is right on {judge:.1%} of what is hidden",
        f"{'':<20} {'forgotten: seen (95 %)':<26} {'dist':>6} {'cos':>6} {'PSNR':>6} {'SSIM':>6}   "
        f"{'retained: seen':<14} {'dist':>6} {'ratio (bound)':<15} {'cos':>6} {'PSNR':>6} {'SSIM':>6} {'s':>6}",
    ]
    for row, cell in found.items():
        f, r = cell.forget, cell.retain
        low, high = f.interval
        lines.append(
            f"{row:<20} {f.accuracy:>6.3f} ({low:.3f}, {high:.3f})       {f.distance:>6.2f} {f.cosine:>6.3f} {f.psnr:>6.2f} "
            f"{f.ssim:>6.3f}   {r.accuracy:>14.3f} {r.distance:>6.2f} {cell.ratio:>6.3f} ({cell.upper95:.3f}) {r.cosine:>6.3f} "
            f"{r.psnr:>6.2f} {r.ssim:>6.3f} {run.seconds.get(row, float('nan')):>6.0f}{'  underpowered' if weak else ''}"
        )
    lines += [f"{row:<20} diverged: {why}" for row, why in run.diverged.items()]
    return "\n".join(lines)


# -------------------------------------------------------------------------------------------------------------- the figures


def figures(made: Task, runs: Sequence[Run]) -> dict[str, Any]:
    """Of the first split under the first corruption, over all seeds; accuracies are of all seeds' images together."""
    corruption, split = made.corruptions[0], made.only_splits[0]
    chosen = [run for run in runs if run.split.name == split]
    by_seed = [cells(run, corruption) for run in chosen]
    original, never = _forgotten(by_seed, ORIGINAL), _forgotten(by_seed, NEVER)
    scores = {row: _score(by_seed, row, never) for row in (*METHODS, NEVER)}
    ours, proxy = scores[OURS], scores[OURS_PROXY]
    rivals = {row: scores[row] for row in BASELINES if scores[row] is not None}
    best = min(rivals, key=lambda row: sum(_lacks(rivals[row])), default=None)
    unchanged = [same for run in chosen for same in run.unchanged.values()]
    return {
        "retain_distance_ratio": ours and ours["retain_distance_ratio"],
        "retain_distance_ratio_upper95": ours and ours["retain_distance_ratio_upper95"],
        "forget_accuracy": ours and ours["forget_accuracy"],
        "forget_accuracy_lower95": ours and ours["forget_accuracy_lower95"],
        "never_seen_accuracy": never.accuracy,
        "original_accuracy": original.accuracy,
        "underpowered": underpowered(original, never),
        "proxy_retain_distance_ratio": proxy and proxy["retain_distance_ratio"],
        "proxy_forget_accuracy": proxy and proxy["forget_accuracy"],
        "best_baseline": best,
        "as_good_as_every_baseline": ours and all(_as_good(ours, rival) for rival in rivals.values()),
        "beaten_by": ours and [row for row, rival in rivals.items() if not _as_good(ours, rival) and _as_good(rival, ours)],
        "frozen_unchanged": all(unchanged) if unchanged else None,
        "judge_accuracy": fmean(run.judge_accuracy[corruption] for run in chosen),
        "split": split,
        "corruption": described(corruption),
        "seeds": len(chosen),
        "rows": scores,
    }


def _forgotten(by_seed: Sequence[Mapping[str, Cell]], row: str) -> Side:
    """All seeds' images together."""
    parts = [found[row].forget for found in by_seed]
    means = [fmean(getattr(part, name) for part in parts) for name in ("distance", "cosine", "psnr", "ssim")]
    return Side(sum(part.hits for part in parts), sum(part.n for part in parts), *means)


def _score(by_seed: Sequence[Mapping[str, Cell]], row: str, never: Side) -> dict[str, float] | None:
    """Of a row; None where a seed diverged, or it was not measured."""
    if not all(row in found for found in by_seed):
        return None
    forget = _forgotten(by_seed, row)
    return {
        "retain_distance_ratio": fmean(found[row].ratio for found in by_seed),
        "retain_distance_ratio_upper95": max(found[row].upper95 for found in by_seed),
        "forget_accuracy": forget.accuracy,
        "forget_accuracy_lower95": forget.interval[0],
        "above_never_seen": forget.accuracy - never.accuracy,
        "retain_accuracy": fmean(found[row].retain.accuracy for found in by_seed),
    }


def _lacks(score: Mapping[str, float]) -> tuple[float, float]:
    """How far retained images are from as before, and forgotten ones from never seen; what is better than that counts as 0."""
    return max(0.0, score["retain_distance_ratio"] - 1), max(0.0, score["above_never_seen"])


def _as_good(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    return all(a <= b for a, b in zip(_lacks(one), _lacks(other), strict=True))
