"""Checkpoint rows."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session as OrmSession

from service.errors import CheckpointNotFound, FileNotFound
from service.tables import Checkpoint, CheckpointFile, ModelVersion
from service.values import is_id


def get(session: OrmSession, checkpoint_id: str, *, lock: bool = False) -> Checkpoint:
    """One checkpoint. `lock` makes whoever else decides about it wait until the transaction ends.

    Raises:
        CheckpointNotFound.
    """
    found = session.get(Checkpoint, checkpoint_id, with_for_update=lock or None) if is_id(checkpoint_id) else None
    if found is None:
        raise CheckpointNotFound
    return found


def files(session: OrmSession, checkpoint_id: str) -> list[CheckpointFile]:
    """Its files in path order."""
    query = select(CheckpointFile).where(CheckpointFile.checkpoint_id == checkpoint_id)
    return sorted(session.scalars(query), key=lambda f: f.path)


def file(session: OrmSession, checkpoint_id: str, path: str) -> CheckpointFile:
    """The file with exactly this name: the path is a key, never joined to a folder.

    Raises:
        CheckpointNotFound, FileNotFound.
    """
    get(session, checkpoint_id)
    found = session.get(CheckpointFile, (checkpoint_id, path)) if "\0" not in path else None
    if found is None:
        raise FileNotFound
    return found


def version(session: OrmSession, checkpoint_id: str) -> ModelVersion:
    """The lineage's version that the checkpoint became."""
    return session.scalars(select(ModelVersion).where(ModelVersion.checkpoint_id == checkpoint_id)).one()
