"""What one attempt will do, read from the rows once and then fixed: the Spec, and where its inputs are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session as OrmSession

from service.catalogue import get_catalogue
from service.requests.leases import Lease
from service.requests.retain import Choice
from service.requests.rungs import ladder_of, seed_at
from service.requests.seeds import verification_seed
from service.tables import Dataset, Model, ModelVersion, UnlearnRequest
from worker.conductor.outcomes import Failed, problem
from worker.contract import DatasetSpec, FileEntry, Policy, RetainData, Spec, document_digest, tree_digest


@dataclass(frozen=True)
class Source:
    """Registered bytes: a model version or a dataset. `location` is None when the store has them."""

    id: str
    digest: str
    location: str | None
    files: tuple[FileEntry, ...]


@dataclass(frozen=True)
class Plan:
    """One attempt's work."""

    spec: Spec
    requested: str
    """The method that was asked for: the spec's, or `auto`, of which the spec has one recipe."""
    model_id: str
    number: int
    """The version number that a publication will get."""
    base: Source
    original: Source
    dataset: Source
    proxy: Source | None = None
    """The dataset that stands in for retained images."""

    @property
    def spec_sha256(self) -> str:
        return document_digest(self.spec)

    @property
    def prompts(self) -> dict[str, str]:
        """What the model is asked with, by class name: its prompts, or the names themselves."""
        return dict(zip(self.spec.class_names, self.spec.labels, strict=True))

    @property
    def policy_sha256(self) -> str:
        return document_digest(self.spec.policy)


def wanted_ranks(session: OrmSession, lease: Lease) -> int | None:
    """The ranks that the request asks for; None leaves it to the worker."""
    return session.get_one(UnlearnRequest, lease.request_id).ranks


def makes_images(session: OrmSession, lease: Lease) -> bool:
    """Does the request's model draw or complete images, which the mounted metric networks look at?"""
    request = session.get_one(UnlearnRequest, lease.request_id)
    family = get_catalogue().families.get(session.get_one(Model, request.model_id).family)
    return family is not None and family.kind in ("generator", "i2i")


def read(session: OrmSession, lease: Lease, *, ranks: int, secret: bytes, metric_weights: str | None = None) -> Plan:
    """The plan of a claimed request, on its lease's rung.

    The same rung of a request on the same base gives the same Spec, so step checkpoints stay valid.

    Args:
        metric_weights: digest of those that are mounted, for a model that draws or completes images.

    Raises:
        Failed: what is registered makes no valid Spec.
    """
    request = session.get_one(UnlearnRequest, lease.request_id)
    model = session.get_one(Model, request.model_id)
    base = session.get_one(ModelVersion, request.base_version_id)
    root = session.execute(
        select(ModelVersion).where(ModelVersion.model_id == model.id).order_by(ModelVersion.number).limit(1)
    ).scalar_one()
    dataset = session.get_one(Dataset, model.dataset_id)
    choice = Choice.of(request.retain)
    other = session.get_one(Dataset, choice.proxy_dataset_id) if choice and choice.proxy_dataset_id else None
    recipe = ladder_of(request.method, request.params, request.policy)[lease.rung - 1]
    try:
        data, proxy = _dataset(dataset), _dataset(other) if other else None
        spec = Spec(
            request_id=request.id,
            family=model.family,
            method=recipe.method,
            params=dict(recipe.params),
            seed=seed_at(request.seed, lease.rung),
            verification_seed=verification_seed(secret, request.id, lease.rung),
            attempt=lease.rung,
            ranks=ranks,
            class_names=tuple(model.class_names),
            prompts=tuple(model.prompts or ()),
            forget_classes=tuple(sorted(request.forget_classes)),
            forget_samples=tuple(sorted(request.forget_samples)),
            forgotten_classes=tuple(sorted(base.forgotten_classes)),
            forgotten_samples=tuple(sorted(base.forgotten_samples)),
            base_digest=base.digest,
            original_digest=root.digest,
            dataset=_described(dataset, data),
            policy=Policy.model_validate(request.policy),
            retain=_retain_data(choice, _described(other, proxy) if other and proxy else None, other),
            metric_weights_digest=metric_weights,
        )
        return Plan(spec, request.method, model.id, base.number + 1, _version(base), _version(root), data, proxy)
    except ValidationError as error:
        # of the document as a whole there is a sentence of the contract's, in place of a field
        wrong = sorted({".".join(map(str, e["loc"])) or e["msg"] for e in error.errors(include_url=False, include_input=False)})
        message = f"the registered request makes no valid spec; wrong: {', '.join(wrong)}"
        raise Failed(problem("bad_input", message)) from error


def _dataset(row: Dataset) -> Source:
    return Source(row.id, row.digest, row.location, _entries(row.files))


def _described(row: Dataset, source: Source) -> DatasetSpec:
    # of the files alone: the engine proves it from what is staged, and the split is beside it in this very document
    return DatasetSpec(format=row.format, digest=tree_digest(source.files), held_out_ids=tuple(row.held_out_ids))


def _retain_data(choice: Choice | None, proxy: DatasetSpec | None, row: Dataset | None) -> RetainData | None:
    if choice is None:
        return None
    return RetainData(
        classes=choice.classes,
        real=choice.real,
        proxy_classes=choice.proxy_classes,
        proxy_dataset=proxy,
        proxy_class_names=tuple(row.class_names) if row else (),
    )


def _version(row: ModelVersion) -> Source:
    entries = _entries(row.files)
    came = tree_digest(entries)
    if came != row.digest:
        raise Failed(problem("integrity", f"version {row.id} is registered as {row.digest}, its file list gives {came}"))
    return Source(row.id, row.digest, row.location, entries)


def _entries(rows: list[Mapping[str, Any]]) -> tuple[FileEntry, ...]:
    return tuple(FileEntry(path=r["path"], size=r["size"], sha256=r["sha256"]) for r in rows)
