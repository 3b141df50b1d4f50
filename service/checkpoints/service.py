"""Checkpoints as clients see them."""

from __future__ import annotations

from sqlalchemy.orm import Session as OrmSession

from service.checkpoints import evidence, repository, revocation
from service.checkpoints.schemas import CheckpointRead, EvidenceFile, RevocationRead, Status
from service.downloads import StoredFile
from service.errors import Revoked
from service.models import repository as models
from service.models.schemas import File, ForgetSet


def read(session: OrmSession, checkpoint_id: str) -> CheckpointRead:
    """The manifest of a checkpoint and where it belongs. Raises: CheckpointNotFound."""
    row = repository.get(session, checkpoint_id)
    version = repository.version(session, row.id)
    class_names = models.get(session, row.model_id).class_names
    replaced = revocation.superseded_by(session, row)
    status: Status = "superseded" if replaced else "current"
    return CheckpointRead(
        id=row.id,
        model_id=row.model_id,
        request_id=row.request_id,
        version=version.number,
        digest=row.digest,
        files=[File(path=f.path, size=f.size, sha256=f.sha256) for f in repository.files(session, row.id)],
        forgotten=ForgetSet.of_both(version.forgotten_classes, class_names, len(version.forgotten_samples)),
        evidence=[EvidenceFile(path=p.path, size=len(p.content), sha256=p.sha256) for p in evidence.listed(session, row)],
        later=evidence.later(session, row),
        certificate_url=f"/checkpoints/{row.id}/certificate",
        status="revoked" if revocation.is_revoked(session, row.id) else status,
        superseded_by=replaced,
        created_at=row.created_at,
    )


def stored_file(session: OrmSession, checkpoint_id: str, path: str) -> StoredFile:
    """Where a published file's bytes are. Raises: CheckpointNotFound, FileNotFound, Revoked."""
    row = repository.file(session, checkpoint_id, path)
    if revocation.is_revoked(session, checkpoint_id):
        raise Revoked
    return StoredFile(row.path, row.size, row.sha256)


def revocation_read(session: OrmSession, checkpoint_id: str) -> RevocationRead:
    """Raises: NotAsked."""
    found = revocation.steps(session, checkpoint_id)
    asked, approved = found.get("asked"), found.get("approved")
    if asked is None:
        raise revocation.NotAsked
    return RevocationRead(
        checkpoint_id=checkpoint_id,
        status="approved" if approved else "asked",
        reason=asked.reason,
        asked_by=asked.by,
        asked_at=asked.at,
        approved_by=approved.by if approved else None,
        approved_at=approved.at if approved else None,
        self_approved=approved.self_approved if approved else False,
    )
