"""The unlearning stage: load -> prepare -> loop -> save, then the manifest, last and by rename."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from worker.contract import JobDirectory, Manifest, Spec, document_digest
from worker.engine import checkpoint, loop, registry
from worker.engine.data import Dataset, load_dataset
from worker.engine.distributed import Ranks
from worker.engine.environment import environment, peak_memory_mb
from worker.engine.errors import BadInput, in_words
from worker.engine.events import Events
from worker.engine.family import Family
from worker.engine.files import entries, require_digest, sync_directory, write_document
from worker.engine.method import Method, Params, Run
from worker.engine.streams import Stream

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
        BadInput, BadModel, Integrity: the job cannot be worked on; nothing was written.
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
    family = work.family.load(job.base, class_count=len(work.spec.class_names), device=ranks.device)
    method = work.method.begin(work.params, make_run(work.spec, family, dataset, ranks, events))
    settings = loop.Loop(family.module, ranks, events, job.steps, checkpoint.key_of(work.spec), cadence, stop_asked)
    outcome = loop.run(settings, method, work.params.iterations)
    if ranks.first:
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
    try:
        spec = job.read_spec()
    except FileNotFoundError as error:
        raise BadInput("expected spec.json in the job directory, found none") from error
    except ValidationError as error:
        raise BadInput(f"spec.json is not a spec: {in_words(error)}") from error
    family, method = registry.families().get(spec.family), registry.methods().get(spec.method)
    if family is None:
        raise BadInput(f"unknown family {spec.family!r}; known: {', '.join(registry.families())}")
    if method is None or spec.family not in method.families:
        fitting = [name for name, m in registry.methods().items() if spec.family in m.families]
        raise BadInput(f"unknown method {spec.method!r} for family {spec.family!r}; known: {', '.join(fitting)}")
    unknown = [k for k in spec.all_forgotten if not 0 <= k < len(spec.class_names)]
    if unknown or not spec.retain_classes:
        raise BadInput(f"expected some but not all of the classes 0 to {len(spec.class_names) - 1} in the forget set")
    if spec.ranks != ranks.world:
        raise BadInput(f"the spec asks for {spec.ranks} ranks, {ranks.world} were started")
    try:
        return Work(spec, family, method, method.Params.model_validate(spec.params))
    except ValidationError as error:
        raise BadInput(f"parameters of {spec.method}: {in_words(error)}") from error


def make_run(spec: Spec, family: Family, dataset: Dataset, ranks: Ranks, events: Events) -> Run:
    """The streams, the wrapped network and the narrator, put together for a method."""

    def stream(name: str, classes: tuple[int, ...]) -> Stream:
        indices = dataset.train_of(classes)
        return Stream(name, spec.seed, indices, dataset.labels_N[indices])

    def preparing(completed: int, total: int) -> None:
        events.progress(completed, total, "saliency batch")

    return Run(
        spec=spec,
        family=family,
        dataset=dataset,
        ranks=ranks,
        forget=stream("forget", spec.all_forgotten),
        retain=stream("retain", spec.retain_classes),
        module=ranks.wrap(family.module),
        preparing=preparing,
    )


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
        effective_params=work.params.model_dump(mode="json"),
        iterations_completed=outcome.iterations_completed,
        iterations_total=work.params.iterations,
        resumed_from_iteration=outcome.resumed_from,
        seconds_prepare=outcome.seconds_prepare,
        seconds_unlearn=outcome.seconds_unlearn,
        peak_memory_mb=peak_memory_mb(ranks.device),
        environment=environment(ranks.device, ranks.world),
    )


def _unfinished(job: JobDirectory) -> Path:
    return job.root / ".out.tmp"
