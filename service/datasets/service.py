"""Registering datasets."""

from __future__ import annotations

from sqlalchemy.orm import Session as OrmSession

from service import files, formats, sources
from service.audit import ledger
from service.audit.leaves import LOCAL, Actor, DatasetRegistered
from service.datasets import items
from service.datasets.schemas import DatasetCreate, DatasetRead
from service.db import now
from service.edge import writing
from service.errors import Unprocessable
from service.tables import Dataset, new_id


def register(wanted: DatasetCreate, actor: Actor = LOCAL) -> DatasetRead:
    """Read, judge and hash the files, then record the dataset: the transaction begins when the reading is done.

    Raises:
        SourceRefused, BadLocation: the files lie elsewhere, or are not what the format says.
        Unprocessable: a held-out id is named twice, or is none of the dataset's.
    """
    if len(set(wanted.held_out_ids)) != len(wanted.held_out_ids):
        raise Unprocessable("held-out ids must differ", pointer="/held_out_ids")
    suffix = ".npz" if wanted.format == "npz" else None
    location = files.read_location(wanted.location, sources.configured(), single_suffix=suffix)
    if wanted.format == "npz":
        formats.check_npz(location)
    else:
        formats.check_image_folder(location, wanted.class_names)
    items.require_usable(_source(wanted, location))
    entries = files.hash_files(location)
    with writing() as session:
        row = _record(session, wanted, location, entries, actor)
        return read(row, len(entries))


def _source(wanted: DatasetCreate, location: files.Location) -> items.Source:
    return items.Source(
        format=wanted.format,
        location=location.url,
        paths=tuple(f.path for f in location.files),
        class_names=tuple(wanted.class_names),
        held_out_ids=frozenset(wanted.held_out_ids),
    )


def _record(
    session: OrmSession, wanted: DatasetCreate, location: files.Location, entries: tuple[files.FileEntry, ...], actor: Actor
) -> Dataset:
    digest = files.dataset_digest(
        entries, format=wanted.format, class_names=wanted.class_names, held_out_ids=wanted.held_out_ids
    )
    row = Dataset(
        id=new_id("dset"),
        name=wanted.name or location.name,
        format=wanted.format,
        location=location.url,
        class_names=wanted.class_names,
        held_out_ids=sorted(wanted.held_out_ids),
        files=[e.row() for e in entries],
        digest=digest,
        created_at=now(session),
        created_by=str(actor),
    )
    session.add(row)
    fact = DatasetRegistered(
        dataset_id=row.id, digest=digest, format=row.format, files=len(entries), held_out=len(row.held_out_ids)
    )
    ledger.append(session, fact, actor=actor)
    return row


def read(row: Dataset, file_count: int) -> DatasetRead:
    """The dataset as clients see it."""
    return DatasetRead(
        id=row.id,
        name=row.name,
        format=row.format,
        location=row.location,
        class_names=row.class_names,
        held_out_count=len(row.held_out_ids),
        file_count=file_count,
        digest=row.digest,
        created_at=row.created_at,
        created_by=row.created_by,
    )
