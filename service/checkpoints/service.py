"""Checkpoints as clients see them."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session as OrmSession

from service.audit import repository as ledgers
from service.audit import trust
from service.audit.leaves import rfc3339
from service.certificates import publication, revocations
from service.checkpoints import evidence, repository, revocation
from service.checkpoints.schemas import CheckpointRead, EvidenceFile, RevocationRead, Status
from service.config import get_settings
from service.db import now
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
        later=list(publication.LATER),
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


def revocation_list(session: OrmSession) -> dict[str, Any]:
    """What the signer is asked to sign: everything that was revoked, and the tree that says so."""
    size = ledgers.size(session)
    revoked = [
        {
            "checkpoint": row.id,
            "certificateSha256": revocation.payload_sha256(row),
            "at": rfc3339(step.at),
            "reason": step.reason,
        }
        for row, step in revocation.revoked(session)
    ]
    try:
        origin = trust.log_keys(get_settings())[0].name
    except trust.NoLogKey:
        origin = "unnamed"
    return revocations.statement(
        as_of=rfc3339(now(session)), origin=origin, size=size, root=ledgers.root(session, size), revoked=revoked
    )


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
