"""Registering models."""

from __future__ import annotations

from sqlalchemy.orm import Session as OrmSession

from service import catalogue, files, formats, sources
from service.audit import ledger
from service.audit.leaves import LOCAL, Actor, ModelRegistered
from service.datasets import repository as datasets
from service.db import now, reading
from service.edge import writing
from service.errors import Unprocessable
from service.models import repository
from service.models.schemas import File, ForgetSet, ModelCreate, ModelRead, ModelSummary, VersionRead
from service.tables import Model, ModelVersion, new_id


def register(wanted: ModelCreate, actor: Actor = LOCAL) -> ModelRead:
    """Read, judge and hash the files, then record the model and its first version: the transaction begins after the reading.

    Raises:
        UnknownFamily, DatasetNotFound: nothing has this name.
        Unprocessable: the class names are not the dataset's; the family takes no prompts, or some class has none.
        PickleWeights, SourceRefused, BadLocation: the folder holds what it must not, or not what it must.
    """
    _require_prompts(wanted, catalogue.require_family(wanted.family))
    with reading() as session:
        if datasets.get(session, wanted.dataset_id).class_names != wanted.class_names:
            raise Unprocessable("class names must be the dataset's, in the same order", pointer="/class_names")
    location = files.read_location(wanted.location, sources.configured())
    formats.check_model(location)
    entries = files.hash_files(location)
    with writing() as session:
        return read(session, _record(session, wanted, location, entries, actor))


def _require_prompts(wanted: ModelCreate, family: catalogue.FamilyEntry) -> None:
    if wanted.prompts is None:
        return
    if not family.prompts:
        raise Unprocessable("this family takes no prompts: its models are told a class by its number", pointer="/prompts")
    if set(wanted.prompts) != set(wanted.class_names):
        raise Unprocessable("expected a prompt for every class and for nothing else", pointer="/prompts")


def _record(
    session: OrmSession, wanted: ModelCreate, location: files.Location, entries: tuple[files.FileEntry, ...], actor: Actor
) -> Model:
    at = now(session)
    model = Model(
        id=new_id("mdl"),
        name=wanted.name or location.name,
        family=wanted.family,
        dataset_id=wanted.dataset_id,
        class_names=wanted.class_names,
        prompts=[wanted.prompts[name] for name in wanted.class_names] if wanted.prompts else None,
        current_version=1,
        created_at=at,
        created_by=str(actor),
    )
    version = ModelVersion(
        id=new_id("mver"),
        model_id=model.id,
        number=1,
        location=location.url,
        files=[e.row() for e in entries],
        digest=files.tree_digest(entries),
        forgotten_classes=[],
        forgotten_samples=[],
        created_at=at,
    )
    session.add(model)
    session.flush()  # the version refers to it
    session.add(version)
    fact = ModelRegistered(family=model.family, dataset_id=model.dataset_id, version_id=version.id, digest=version.digest)
    ledger.append(session, fact, actor=actor, model_id=model.id)
    return model


def summary(model: Model, forgotten: tuple[list[int], int]) -> ModelSummary:
    """The model in short, as clients see it.

    Args:
        forgotten: by its current version: class indices, and the number of single samples.
    """
    return ModelSummary(
        id=model.id,
        name=model.name,
        family=model.family,
        dataset_id=model.dataset_id,
        class_names=model.class_names,
        prompts=dict(zip(model.class_names, model.prompts, strict=True)) if model.prompts else None,
        current_version=model.current_version,
        forgotten=ForgetSet.of_both(forgotten[0], model.class_names, forgotten[1]),
        created_at=model.created_at,
        created_by=model.created_by,
    )


def read(session: OrmSession, model: Model) -> ModelRead:
    """The model with its lineage, as clients see it."""
    versions = repository.versions(session, model.id)
    samples = repository.sample_counts(session, model.id)
    current = next(v for v in versions if v.number == model.current_version)
    short = summary(model, (list(current.forgotten_classes), samples[current.id]))
    return ModelRead(**short.model_dump(), versions=[_version(v, model.class_names, samples[v.id]) for v in versions])


def _version(row: ModelVersion, class_names: list[str], samples: int) -> VersionRead:
    return VersionRead(
        id=row.id,
        number=row.number,
        parent_id=row.parent_id,
        checkpoint_id=row.checkpoint_id,
        digest=row.digest,
        files=[File(**f) for f in row.files],
        forgotten=ForgetSet.of_both(row.forgotten_classes, class_names, samples),
        created_at=row.created_at,
    )
