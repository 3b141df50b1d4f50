"""One gate, many models: which check refuses which, and whether the verdict is the one that is due."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.gate.fakes import Fake
from tests.benchmarks.gate.subjects import Stage
from tests.benchmarks.policies import packaged
from tests.benchmarks.sfron.jobs import Subject, make_job
from worker.contract import Environment, JobDirectory, Manifest, Policy, Report, document_digest, tree_digest
from worker.engine import registry, verify
from worker.engine.distributed import Ranks
from worker.engine.files import entries, write_document

MISSING = "samples missing"


def policy(name: str, kind: str) -> Policy:
    """A packaged policy as a request of that kind of model gets it; but that noise is forbidden, which it leaves open."""
    named = packaged(name, kind)
    checks = [
        c.model_copy(update={"params": {**c.params, "forbid_noise": True}}) if c.verifier == "form_of_forgetting" else c
        for c in named.checks
    ]
    return named.model_copy(update={"checks": tuple(checks)})


@dataclass(frozen=True)
class Row:
    """A model and what the gate said."""

    stage: str
    name: str
    due: bool
    """A true retrain: it must pass."""
    caught_by: frozenset[str]
    report: Report
    seconds: float

    @property
    def failed(self) -> frozenset[str]:
        """Checks that refused the model, or could not be measured."""
        refused = {f.check for f in self.report.findings if f.gating and f.passed is not True}
        return frozenset(refused | {f.check for f in self.report.findings if f.metric == "not_measured"})

    @property
    def right(self) -> bool:
        """A retrain passes; a fake does not, and a check that was made to see it is among those that refuse it."""
        if self.due:
            return self.report.verdict == "PASS"
        return self.report.verdict in ("FAIL", "ERROR") and bool(self.failed & self.caught_by)


def measure(stage: Stage, fakes: Sequence[Fake], named: Policy, root: Path, ranks: Ranks) -> Iterator[Row]:
    """Every fake, a model that leaves out samples, and every retrain; printed as it comes."""
    family = stage.setting.family
    for fake in fakes:
        candidate = root / "fakes" / fake.name.replace(" ", "-")
        fake.make(stage.subject.model, candidate, stage.setting)
        place = _Place(stage, stage.subject, stage.reference(None), named, root, ranks)
        yield _row(place, candidate, fake.name, fake.caught_by, due=False)
    if named.kind == "generator":
        with _dropping_samples(family):
            checks = frozenset({"forget_rate"})
            place = _Place(stage, stage.subject, stage.reference(0), named, root, ranks)
            yield _row(place, stage.retrains[0], MISSING, checks, due=False)
    for number, retrained in enumerate(stage.retrains):
        name = f"retrained {number + 1}"
        place = _Place(stage, stage.retrained_from, stage.reference(number), named, root, ranks)
        yield _row(place, retrained, name, frozenset(), due=True)


@dataclass(frozen=True)
class _Place:
    """Where a candidate stands: what it was made from, and who never saw the class, where somebody is at hand."""

    stage: Stage
    parent: Subject
    reference: Path | None
    policy: Policy
    root: Path
    ranks: Ranks


def _row(place: _Place, candidate: Path, name: str, caught_by: frozenset[str], *, due: bool) -> Row:
    stage, parent, ranks = place.stage, place.parent, place.ranks
    known = {} if place.reference is None else {"reference_digest": tree_digest(entries(place.reference))}
    job = make_job(
        place.root / "jobs" / name.replace(" ", "-"), parent, "finetune", {}, seed=1, policy=place.policy,
        forget_classes=(stage.setting.forgotten,), **known,
    )  # fmt: skip
    if place.reference is not None:
        job.reference.symlink_to(place.reference.resolve())
    shutil.copytree(parent.model, job.out, ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copytree(candidate, job.out, dirs_exist_ok=True)  # as a worker saves it: what is not weights is as it was
    _answer(job)
    began = time.monotonic()
    report = verify.run(job, ranks)
    row = Row(stage.setting.family, name, due, caught_by, report, time.monotonic() - began)
    word = "right" if row.right else "WRONG"
    shown = f"{row.stage:<11} {name:<44} {report.verdict:<13} {word:<6} {row.seconds:>5.0f} s"
    print(f"{shown}  {', '.join(sorted(row.failed))}", flush=True)
    return row


def _answer(job: JobDirectory) -> None:
    """The manifest that an unlearning stage leaves beside such files."""
    environment = Environment(code_version="0", python="3", torch="2", device="cpu", ranks=1, threads=1)
    manifest = Manifest(
        spec_digest=document_digest(job.read_spec()), files=entries(job.out), effective_params={}, iterations_completed=1,
        iterations_total=1, seconds_prepare=0, seconds_unlearn=0, peak_memory_mb=0, environment=environment,
    )  # fmt: skip
    write_document(job.manifest, manifest)


@contextmanager
def _dropping_samples(family: str) -> Iterator[None]:
    """A family that gives one image less than it is asked for."""
    found: Any = registry.families()[family]
    whole = found.sample
    found.sample = lambda self, *args, **kwargs: whole(self, *args, **kwargs)[:-1]
    try:
        yield
    finally:
        found.sample = whole


# --------------------------------------------------------------------------------------------------------------- the table


def table(rows: Sequence[Row]) -> str:
    """A row a model, a column a check: X refused, . passed, ? not measured, - not asked; in brackets what should refuse it."""
    checks = list(dict.fromkeys(f.check for row in rows for f in row.report.findings))
    width = max(len(row.name) for row in rows)
    head = [f"{'':<{width}}  " + " ".join(f"{i:>3}" for i in range(1, len(checks) + 1)) + "  verdict"]
    body = [f"{row.name:<{width}}  " + " ".join(_mark(row, c) for c in checks) + f"  {row.report.verdict}" for row in rows]
    return "\n".join([*head, *body, *(f"{i:>3} {name}" for i, name in enumerate(checks, start=1))])


def _mark(row: Row, check: str) -> str:
    findings = [f for f in row.report.findings if f.check == check]
    gating = [f for f in findings if f.gating]
    sign = "-" if not findings else "?" if not gating else "." if all(f.passed is True for f in gating) else "X"
    return f"[{sign}]" if check in row.caught_by else f" {sign} "


def seconds(rows: Iterable[Row], tiers: Sequence[str]) -> float:
    """Of the checks of these tiers, of the fastest retrain: the slowest one first trained the judges."""
    known = {name: found.tier for name, found in registry.verifiers().items()}
    sums = [
        sum(spent for name, spent in row.report.seconds_by_check.items() if known[name] in tiers) for row in rows if row.due
    ]
    return min(sums, default=float("nan"))
