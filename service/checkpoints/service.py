"""Checkpoints as clients see them."""

from __future__ import annotations

from sqlalchemy.orm import Session as OrmSession

from service.checkpoints import repository
from service.checkpoints.schemas import CheckpointRead
from service.downloads import StoredFile
from service.models import repository as models
from service.models.schemas import File, ForgetSet


def read(session: OrmSession, checkpoint_id: str) -> CheckpointRead:
    """The manifest of a checkpoint and where it belongs. Raises: CheckpointNotFound."""
    row = repository.get(session, checkpoint_id)
    version = repository.version(session, row.id)
    class_names = models.get(session, row.model_id).class_names
    return CheckpointRead(
        id=row.id,
        model_id=row.model_id,
        request_id=row.request_id,
        version=version.number,
        digest=row.digest,
        files=[File(path=f.path, size=f.size, sha256=f.sha256) for f in repository.files(session, row.id)],
        forgotten=ForgetSet.of_both(version.forgotten_classes, class_names, len(version.forgotten_samples)),
        certificate_url=f"/checkpoints/{row.id}/certificate",
        created_at=row.created_at,
    )


def stored_file(session: OrmSession, checkpoint_id: str, path: str) -> StoredFile:
    """Where a published file's bytes are. Raises: CheckpointNotFound, FileNotFound."""
    row = repository.file(session, checkpoint_id, path)
    return StoredFile(row.path, row.size, row.sha256)
