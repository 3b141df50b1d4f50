"""The unlearning stage: load -> prepare -> loop -> save, then the manifest, last and by rename."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from worker.contract import JobDirectory, Manifest, Spec, document_digest
from worker.engine import checkpoint, early_stop, foresight, halves, loop, sharding
from worker.engine.data import Dataset, fingerprints, load_dataset, load_proxy
from worker.engine.distributed import Ranks
from worker.engine.environment import environment, peak_memory_mb
from worker.engine.errors import BadInput
from worker.engine.events import Events
from worker.engine.family import Family
from worker.engine.files import entries, require_digest, sync_directory, write_document
from worker.engine.intake import effective, method_of, read_spec, recorded
from worker.engine.method import Method, Params
from worker.engine.run import Run
from worker.engine.streams import Mixture, Stream

PHASE = "unlearning"


@dataclass(frozen=True)
class Work:
    """A checked spec: every name in it found, every class in range, every parameter in its range."""

    spec: Spec
    family: type[Family]
    method: type[Method]
    params: Params


def run(job: JobDirectory, ranks: Ranks, *, cadence: checkpoint.Cadence, stop_asked: Callable[[], bool]) -> Manifest:
    """Unlearn what `spec.json` asks for and leave `out/` and `manifest.json`.

    Raises:
        BadInput, BadModel, Integrity: the job cannot be worked on, or its result not be measured, or training changed what it
            should not have; nothing was written.
        Diverged: the run stopped before the update that would have spoiled the weights; nothing was written.
        Stopped: asked to stop; a step checkpoint was left.
    """
    if ranks.first:
        clear_answers(job)
    events = Events(job.events, PHASE, speaks=ranks.first)
    events.begin()
    work = read_work(job, ranks)
    require_digest(job.base, work.spec.base_digest, "the base weights")
    dataset = load_dataset(job, work.spec)
    family = work.family.load(job.base, labels=work.spec.labels, device=ranks.device)
    foresight.require_measurable(work.spec, family, dataset)
    run = make_run(work, family, dataset, ranks, events, cache=job.fishers, proxy=load_proxy(job, work.spec, dataset))
    frozen = halves.digests(family)
    look = early_stop.look_of(run, job.judges)  # before there is a method, which may start the network anew
    method = work.method(work.params, run)
    settings = loop.Loop(family.module, ranks, events, job.steps, checkpoint.key_of(work.spec), cadence, stop_asked, run.check)
    if look is not None:
        settings = replace(settings, look_every=work.params.early_stop_every, enough=look.enough)
    outcome = loop.run(settings, method, work.params.iterations)
    if run.sharded:
        sharding.restore_whole(family.module, keep=ranks.first)
    if ranks.first:
        halves.require_unchanged(family, frozen)
        publish_weights(job, family)
    manifest = describe(job, work, ranks, outcome) if ranks.first else None
    if manifest is not None:
        write_document(job.manifest, manifest)
        shutil.rmtree(job.steps, ignore_errors=True)  # of no use once the answer is there
    ranks.wait()
    return manifest or Manifest.model_validate_json(job.manifest.read_bytes())


def clear_answers(job: JobDirectory) -> None:
    """Remove what an earlier attempt answered, so that nothing stale can be taken for this one's."""
    job.manifest.unlink(missing_ok=True)
    for folder in (job.out, _unfinished(job)):
        if folder.is_dir():
            shutil.rmtree(folder)


def read_work(job: JobDirectory, ranks: Ranks) -> Work:
    """Check the spec against what this engine has. Raises: BadInput."""
    spec, family = read_spec(job)
    method = method_of(spec)
    if spec.ranks != ranks.world:
        raise BadInput(f"the spec asks for {spec.ranks} ranks, {ranks.world} were started")
    params = effective(method, spec.family, spec.params, unit="sample" if spec.forget_samples else "class")
    early_stop.require_lookable(spec, method, params)
    return Work(spec, family, method, params)


def make_run(
    work: Work,
    family: Family,
    dataset: Dataset,
    ranks: Ranks,
    events: Events,
    *,
    cache: Path,
    proxy: Dataset | None = None,
) -> Run:
    """The streams, the wrapped network and what the family keeps of the data, put together for a method.

    Items of a proxy dataset come after those of the dataset: positions go on counting, and their label is -1, no class.

    Raises: BadInput when nothing is to forget or to retain, there are fewer images than ranks, sharding cannot be had, or
        retain data are chosen for a family whose methods may look at others.
    """
    if work.spec.retain is not None and family.kind != "i2i":
        raise BadInput(f"expected retain data chosen for an image-to-image model alone, found them for a {family.kind}")
    images_NCHW, labels_N = dataset.images_NCHW, dataset.labels_N
    if proxy is not None:
        images_NCHW = torch.cat([images_NCHW, proxy.images_NCHW])
        labels_N = torch.cat([labels_N, torch.full_like(proxy.labels_N, -1)])
    halves.choose(family, work.params.trains)
    forget = _stream("forget", forgotten(work.spec, dataset), labels_N, work.spec, ranks)
    retain = retained(work.spec, dataset, proxy, labels_N, ranks)
    return Run(
        spec=work.spec,
        params=work.params,
        family=family,
        dataset=dataset,
        ranks=ranks,
        forget=forget,
        retain=retain,
        module=distributed_module(work, family.module, ranks),
        held_N=held(family, images_NCHW, torch.cat([forget.indices_N, retain.indices_N])),
        labels_N=labels_N.to(ranks.device),
        events=events,
        cache=cache,
    )


def held(family: Family, images_NCHW: Tensor, dealt_N: Tensor) -> Tensor:
    """(N, …) what the family keeps of the items that a stream deals; zeros of the others, which nothing reads.

    An encoder is slow: it is not asked about images that are held out, set aside, or of no class that is trained on.
    """
    dealt_N = dealt_N.unique()
    some_N = family.hold(images_NCHW[dealt_N])
    held_N = some_N.new_zeros(len(images_NCHW), *some_N.shape[1:])
    held_N[dealt_N.to(some_N.device)] = some_N
    return held_N


def retained(spec: Spec, dataset: Dataset, proxy: Dataset | None, labels_N: Tensor, ranks: Ranks) -> Stream | Mixture:
    """Everything that is not to be forgotten; or, of what the spec names, real images and others at its share.

    Raises: BadInput when there are fewer of either than ranks, or the proxy dataset would bring back an image that is to be
        forgotten, one that is held out, or a real one of a retained class beyond the share.
    """
    forgotten_N = forgotten(spec, dataset)

    def stream(name: str, indices_N: Tensor) -> Stream:
        return _stream(name, indices_N[~torch.isin(indices_N, forgotten_N)], labels_N, spec, ranks)

    if spec.retain is None:
        return stream("retain", dataset.train_of(range(len(spec.class_names))))
    if spec.retain.real == 1:
        return stream("retain", dataset.train_of(spec.trained_classes))
    apart_N = dataset.train_of(spec.retain.proxy_classes)
    if proxy is not None:
        other_N = proxy.train_of(range(len(proxy.class_names)))
        held_N = dataset.held_out_of(range(len(dataset.class_names)))
        real_N, theirs = dataset.train_of(spec.retain_classes), fingerprints(proxy.images_NCHW[other_N])
        for what, index_N in (("to be forgotten", forgotten_N), ("held out", held_N), ("of a retained class", real_N)):
            ours = set(fingerprints(dataset.images_NCHW[index_N]))
            if count := sum(one in ours for one in theirs):
                raise BadInput(f"expected no image of the dataset that is {what} among the proxy images, found {count}")
        apart_N = torch.cat([apart_N, len(dataset.labels_N) + other_N])
    stand_in = stream("proxy", apart_N)
    if spec.retain.real == 0:
        return stand_in.named("retain")
    return Mixture("retain", stream("retain", dataset.train_of(spec.trained_classes)), stand_in, spec.retain.real)


def _stream(name: str, indices_N: Tensor, labels_N: Tensor, spec: Spec, ranks: Ranks) -> Stream:
    if len(indices_N) < ranks.world:
        raise BadInput(f"expected at least {ranks.world} training images to {name}, one a rank, found {len(indices_N)}")
    return Stream(name, spec.seed, indices_N, labels_N[indices_N])


def distributed_module(work: Work, module: nn.Module, ranks: Ranks) -> nn.Module:
    """The network to call in a loss: cut up in place, wrapped, or itself. Raises: BadInput when it cannot be cut as asked."""
    if sharding.wanted(
        work.params.sharding,
        world=ranks.world,
        trainable=sum(p.numel() for p in module.parameters() if p.requires_grad),
        memory=sharding.memory_of(ranks.device),
        able=getattr(work.method, "shards", False)
        and not isinstance(module, halves.Halves)
        and not work.params.early_stop_every,  # a look draws on every rank by itself
    ):
        sharding.shard(module, ranks)
        return module
    return ranks.wrap(module)


def forgotten(spec: Spec, dataset: Dataset) -> Tensor:
    """Positions (int64, ascending) of all training items that the result must not have learned from."""
    classes_N = dataset.train_of(spec.all_forgotten)
    return torch.cat([classes_N, dataset.positions_of(spec.all_forgotten_samples)]).unique()


def publish_weights(job: JobDirectory, family: Family) -> None:
    """Write `out/` beside and rename it: the folder is whole or absent."""
    unfinished = _unfinished(job)
    family.save(unfinished, job.base)
    for path in sorted(unfinished.rglob("*")):
        if path.is_file():
            with path.open("rb+") as stream:
                os.fsync(stream.fileno())
        else:
            sync_directory(path)
    sync_directory(unfinished)
    unfinished.rename(job.out)
    sync_directory(job.root)


def describe(job: JobDirectory, work: Work, ranks: Ranks, outcome: loop.Outcome) -> Manifest:
    """The manifest of what is in `out/` now."""
    return Manifest(
        spec_digest=document_digest(work.spec),
        files=entries(job.out),
        effective_params=recorded(work.method, work.spec.family, work.params),
        iterations_completed=outcome.iterations_completed,
        iterations_total=work.params.iterations,
        resumed_from_iteration=outcome.resumed_from,
        stopped_early_at=outcome.iterations_completed if outcome.stopped_early else None,
        seconds_prepare=outcome.seconds_prepare,
        seconds_unlearn=outcome.seconds_unlearn,
        peak_memory_mb=peak_memory_mb(ranks.device),
        environment=environment(ranks.device, ranks.world),
    )


def _unfinished(job: JobDirectory) -> Path:
    return job.root / ".out.tmp"
