"""Diagonal Fisher information of what is forgotten and of what is retained, from a table that serves every request.

Empirical: the mean, over batches, of the squared gradient of a batch's mean loss, at the weights as they came. Taken over
batches of one class (`class_batch`) it is additive: with N_k training images of class k,

    F_retained = Σ_{k retained} N_k F_k / Σ_{k retained} N_k

so one pass over a part of every class answers for any set of classes, now and for later requests on the same weights and
data; single items' share, from batches of one class too, is subtracted from the whole. `per_sample` takes batches of one image,
which is the textbook's empirical Fisher; `batch` is the reference protocol: forget and remain batches as they come, nothing
additive, so nothing is kept.

Letters: F (P,) information, one number a trainable parameter, flat, float32; K classes; N items.
Source: Huang et al. 2024 (SFR-on), arXiv:2409.19732, for the use; the additive table is ours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from worker.engine import sharding
from worker.engine.batch import Batch
from worker.engine.environment import environment
from worker.engine.errors import Diverged
from worker.engine.files import sha256_of, sync_directory, write_atomically
from worker.engine.run import Run
from worker.engine.streams import Stream, generator

SEED = 90_210
"""The table's own: it must not depend on the request that happens to make it."""

LARGEST_TABLE = 2 << 30
"""Bytes. A table with a row a class above this has one row for all, and what is forgotten is measured anew."""

Kind = Literal["class_batch", "per_sample", "batch"]


@dataclass(frozen=True)
class Settings:
    """How information is measured."""

    kind: Kind
    batch_size: int
    samples: int
    """At most so many images of each class (`class_batch`, `per_sample`), or of each of the two streams (`batch`)."""
    clip: float | None = None
    """Largest gradient norm before squaring."""
    loss_scale: float = 1.0

    @property
    def rows(self) -> int:
        """Images of one gradient."""
        return 1 if self.kind == "per_sample" else self.batch_size


@dataclass(frozen=True)
class Table:
    """Information by group: one group a class, or a single one of all classes."""

    counts_G: tuple[int, ...]
    """Training images of each group."""
    fisher_GP: Tensor
    """On the CPU."""

    def of(self, groups: Sequence[int]) -> Tensor:
        """(P,) of the union of some groups."""
        weights_G = torch.tensor([float(self.counts_G[g]) for g in groups])
        return (weights_G / weights_G.sum()) @ self.fisher_GP[list(groups)]


def forget_and_retain(run: Run, settings: Settings) -> tuple[list[Tensor], list[Tensor]]:
    """Information of the forget set and of the retained set, shaped like `run.parameters`, on the device.

    Raises:
        Diverged: it is not finite; on every rank.
        OutOfMemory: not even one row fits.
    """
    if settings.kind == "batch":
        tasks = [_Task(run, stream, settings) for stream in (run.forget, run.retain)]
        forget_P, retain_P = _measure(run, tasks, settings)
    else:
        forget_P, retain_P = _from_table(run, settings)
    return _shaped(run, forget_P), _shaped(run, retain_P)


def of_everything(run: Run, settings: Settings) -> list[Tensor]:
    """Information of all training images, forgotten ones too, shaped like `run.parameters`; always from the table.

    Raises: as `forget_and_retain`.
    """
    groups = _groups(run)
    return _shaped(run, _obtain(run, settings, groups).of(range(len(groups))))


def _groups(run: Run) -> list[list[int]]:
    """The classes of each row of the table."""
    classes = list(range(len(run.dataset.class_names)))
    return [[k] for k in classes] if len(classes) * _size(run) * 4 <= LARGEST_TABLE else [classes]


def _size(run: Run) -> int:
    """P: trainable weights, of the whole network where it is cut up."""
    return sum(p.numel() for p in run.parameters)


def _from_table(run: Run, settings: Settings) -> tuple[Tensor, Tensor]:
    classes, groups = range(len(run.dataset.class_names)), _groups(run)
    table = _obtain(run, settings, groups)
    forgotten = [k for k in run.spec.all_forgotten if len(groups) > 1]
    if forgotten and not run.spec.all_forgotten_samples:
        return table.of(forgotten), table.of([k for k in classes if k not in forgotten])
    (forget_P,) = _measure(run, [_Task(run, run.forget, settings)], settings)
    n, n_f = sum(table.counts_G), len(run.forget.indices_N)
    # F_all is the mix of both; where sampling noise makes the rest negative, the forget set alone moves that weight.
    retain_P = (n * table.of(range(len(groups))) - n_f * forget_P) / (n - n_f)
    return forget_P, retain_P.clamp_min(0)


# ---------------------------------------------------------------------------------------------------------- the table


def _obtain(run: Run, settings: Settings, groups: list[list[int]]) -> Table:
    """The cached table if it is whole, on every rank or on none; else measured now, and kept."""
    key = cache_key(run, settings, len(groups))
    fisher_GP = _load(run.cache / key, (len(groups), _size(run)))
    absent = run.ranks.any(fisher_GP is None)
    if fisher_GP is None or absent:
        tasks = [_Task(run, _everything(run, group), settings) for group in groups]
        fisher_GP = torch.stack(_measure(run, tasks, settings))
        if run.ranks.first:
            _save(run.cache / key, fisher_GP, run.spec.base_digest)
    run.events.note({"fisher": "measured" if absent else "cached", "key": key[:12]})
    return Table(tuple(len(run.dataset.train_of(group)) for group in groups), fisher_GP)


def cache_key(run: Run, settings: Settings, groups: int) -> str:
    """SHA-256 of everything that decides the table's bits: the same request gives the same weights, cached or not.

    Sums over another number of ranks or threads, or by another device's kernels, round otherwise, and that may tip a mask.
    """
    spec = run.spec
    ingredients = {
        "environment": environment(run.ranks.device, run.ranks.world).model_dump(),
        "sharded": run.sharded,
        "weights": spec.base_digest,
        "dataset": spec.dataset.digest,
        "held_out": sorted(spec.dataset.held_out_ids),
        "family": spec.family,
        "class_names": list(spec.class_names),  # the order in which an image folder's classes are numbered
        "labels": list(spec.labels),
        "settings": asdict(replace(settings, batch_size=settings.rows)),
        "groups": groups,
        "precision": run.gradients.precision,
    }
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()


def _everything(run: Run, classes: Sequence[int]) -> Stream:
    """All training items of some classes, forgotten samples too: the table is of the data, not of a request."""
    indices_N = run.dataset.train_of(classes)
    return Stream("fisher-" + "-".join(map(str, classes[:1])), SEED, indices_N, run.dataset.labels_N[indices_N])


def _save(folder: Path, fisher_GP: Tensor, weights: str) -> None:
    """Numbers first, record last, each by rename: a table without a record is no table.

    Args:
        weights: digest of those it is of, by which it is found once they are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / ".fisher.part"
    save_file({"fisher_GP": fisher_GP.contiguous()}, part)
    digest = sha256_of(part)
    part.replace(folder / "fisher.safetensors")
    write_atomically(folder / "fisher.json", json.dumps({"sha256": digest, "weights": weights}).encode())
    sync_directory(folder)


def _load(folder: Path, shape: tuple[int, int]) -> Tensor | None:
    """The table, if it is whole and can be one: a damaged or half-written one is measured again."""
    numbers = folder / "fisher.safetensors"
    try:
        if sha256_of(numbers) != json.loads((folder / "fisher.json").read_bytes())["sha256"]:
            return None
        with safe_open(numbers, framework="pt") as source:
            fisher_GP: Tensor = source.get_tensor("fisher_GP")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None
    # The digest lies beside the numbers: it tells of damage, not of who wrote both.
    fits = fisher_GP.dtype == torch.float32 and tuple(fisher_GP.shape) == shape and _possible(fisher_GP)
    return fisher_GP if fits else None


def _possible(fisher: Tensor) -> bool:
    """Can these be means of squares? Finite, and none below zero."""
    least, most = fisher.aminmax()  # NaN if one is
    return bool((least >= 0) & torch.isfinite(most))


# ------------------------------------------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class _Batch:
    """One gradient's items, its random numbers, and its share of the sum of squares."""

    index_B: Tensor
    source: torch.Generator
    weight: float


@dataclass(frozen=True)
class _Task:
    """Measure one stream's information: on at most `settings.samples` items, of each class or (`batch`) of all."""

    run: Run
    stream: Stream
    settings: Settings

    def batches(self) -> list[_Batch]:
        """The plan. Weights sum to 1."""
        return self._mixed() if self.settings.kind == "batch" else self._pure()

    def _pure(self) -> list[_Batch]:
        """Batches of one class each, a class weighing as many items as it has. One that is not full is left out, for its
        gradient is noisier, unless the class has no other.
        """
        plan, total = [], len(self.stream.indices_N)
        for k in self.stream.labels_N.unique().tolist():
            of_class_N = self.stream.indices_N[self.stream.labels_N == k]
            order_N = torch.randperm(len(of_class_N), generator=self.stream.generator("order", k))[: self.settings.samples]
            size = min(self.settings.rows, len(order_N))
            count = len(order_N) // size
            weight = len(of_class_N) / (total * count)
            for i in range(count):
                rows_B = order_N[i * size : (i + 1) * size]
                plan.append(_Batch(of_class_N[rows_B], generator(SEED, "fisher", self.stream.name, k, i), weight))
        return plan

    def _mixed(self) -> list[_Batch]:
        """One shuffled pass, the last batch as large as it comes."""
        n, most = len(self.stream.indices_N), self.settings.samples
        chosen = self.stream if most >= n else self.stream.stratified(most)
        order_N = chosen.indices_N[torch.randperm(len(chosen.indices_N), generator=chosen.generator("order"))]
        pieces = order_N.split(self.settings.rows)
        return [
            _Batch(piece_B, generator(SEED, "fisher", self.stream.name, i), 1 / len(pieces)) for i, piece_B in enumerate(pieces)
        ]


def _measure(run: Run, tasks: Sequence[_Task], settings: Settings) -> list[Tensor]:
    """(P,) for each task, on the CPU, the same on every rank.

    Whole batches are dealt out to the ranks, so that a batch's gradient is the same bits on any number of ranks. Of a sharded
    network no rank can ask alone: all take every batch together.
    """
    plans = [task.batches() for task in tasks]
    total, done, answers = sum(map(len, plans)), 0, []
    for plan in plans:
        fisher = [torch.zeros_like(p) for p in run.parameters]
        for i, batch in enumerate(plan):
            if run.sharded or i % run.ranks.world == run.ranks.rank:
                gradients = _gradients(run, batch.index_B, batch.source, settings)
                torch._foreach_addcmul_(sharding.local(fisher), gradients, gradients, value=batch.weight)
            done += 1
            run.preparing(done, total)
        answers.append(_flat(run, fisher))
    if not all(map(_possible, answers)):
        raise Diverged("the Fisher information of these weights is not finite; none was changed", step=0, loss=float("nan"))
    return answers


def _flat(run: Run, fisher: list[Tensor]) -> Tensor:
    """(P,) on the CPU: the sum of what the ranks measured, or their parts put together, a parameter at a time."""
    if run.sharded:
        return torch.cat([f.reshape(-1) for f in sharding.whole(fisher)])
    return run.ranks.sum_(torch.cat([f.reshape(-1) for f in fisher])).cpu()


def _gradients(run: Run, index_B: Tensor, source: torch.Generator, settings: Settings) -> list[Tensor]:
    """Of one batch's mean loss, clipped; of a sharded network this rank's parts."""
    batch = run.plain(index_B, source)
    weight = settings.loss_scale / batch.total
    gradients = sharding.local(_together(run, batch, weight)) if run.sharded else run.gradients.alone(batch, weight=weight)
    if settings.clip is not None:
        torch._foreach_mul_(gradients, (settings.clip / (run.norm(gradients) + 1e-6)).clamp(max=1.0))
    return gradients


def _together(run: Run, batch: Batch, weight: float) -> list[Tensor]:
    """Each rank its rows; all of them where there are fewer rows than ranks, for every rank must ask the network."""
    shared = batch.total >= run.ranks.world
    part = batch.part(run.ranks.rows(batch.total)) if shared else batch
    with run.gradients.autocast():
        loss_B = run.family.loss(part.x_BCHW, part.y_B, part.draw)
    # The backward pass leaves the mean over ranks of what they descend.
    (loss_B.sum() * (weight * (run.ranks.world if shared else 1))).backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in run.parameters]
    run.family.module.zero_grad(set_to_none=True)
    return gradients


def _shaped(run: Run, flat_P: Tensor) -> list[Tensor]:
    """A flat vector as tensors like the parameters, in their memory layout, on the device."""
    pieces = flat_P.split([p.numel() for p in run.parameters])
    pairs = zip(run.parameters, pieces, strict=True)
    return [torch.empty_like(p).copy_(sharding.cut(piece.view(p.shape), p)) for p, piece in pairs]
