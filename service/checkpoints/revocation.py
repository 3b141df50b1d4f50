"""Taking a certificate back: one person asks and says why, another approves. From then on its checkpoint answers 410."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session as OrmSession

from service.audit import ledger
from service.audit.leaves import Actor, CertificateRevoked, RevocationAsked, RevocationReason
from service.certificates.dsse import payload_of
from service.checkpoints import repository
from service.config import get_settings
from service.db import now
from service.errors import Conflict
from service.requests.events import tell
from service.tables import Checkpoint, CheckpointRevocation, ModelVersion


class AlreadyAsked(Conflict):
    """Somebody has asked for this revocation before; it waits for a second person, or has been approved."""

    code, title = "revocation_exists", "This revocation was asked for before"


class NotAsked(Conflict):
    """There is no request for revocation to approve."""

    code, title = "revocation_not_asked", "Nobody has asked for this revocation"


class SamePerson(Conflict):
    """Who asked cannot approve."""

    code, title = "four_eyes", "A second person has to approve"


def steps(session: OrmSession, checkpoint_id: str) -> dict[str, CheckpointRevocation]:
    """What was asked, and what was approved."""
    chosen = select(CheckpointRevocation).where(CheckpointRevocation.checkpoint_id == checkpoint_id)
    return {row.step: row for row in session.scalars(chosen)}


def ask(session: OrmSession, checkpoint_id: str, *, reason: RevocationReason, by: Actor) -> CheckpointRevocation:
    """Ask for a revocation. Where the operator has said that one person is enough, it is approved at once, and says so.

    Raises:
        CheckpointNotFound, AlreadyAsked.
    """
    row = repository.get(session, checkpoint_id, lock=True)
    if steps(session, checkpoint_id):
        raise AlreadyAsked
    asked = _step(session, row, "asked", reason, by, self_approved=False)
    solo = get_settings().four_eyes == "solo"
    approved = _step(session, row, "approved", reason, by, self_approved=True) if solo else None
    if approved is not None:
        _tell(session, row, reason)
    _append(session, row, RevocationAsked(checkpoint_id=row.id, reason=reason), by)
    if approved is not None:
        _append(session, row, _revoked(row, reason, self_approved=True), by)
    return approved or asked


def approve(session: OrmSession, checkpoint_id: str, *, by: Actor) -> CheckpointRevocation:
    """Approve what another person asked for. Raises: CheckpointNotFound, NotAsked, AlreadyAsked, SamePerson."""
    row = repository.get(session, checkpoint_id, lock=True)
    found = steps(session, checkpoint_id)
    if "asked" not in found:
        raise NotAsked
    if "approved" in found:
        raise AlreadyAsked("it was approved before")
    asked = found["asked"]
    if asked.by == str(by):
        raise SamePerson
    reason: Any = asked.reason
    approved = _step(session, row, "approved", reason, by, self_approved=False)
    _tell(session, row, reason)
    _append(session, row, _revoked(row, reason, self_approved=False), by)
    return approved


def is_revoked(session: OrmSession, checkpoint_id: str) -> bool:
    """Was it taken back?"""
    return session.get(CheckpointRevocation, (checkpoint_id, "approved")) is not None


def superseded_by(session: OrmSession, row: Checkpoint) -> str | None:
    """The checkpoint of the lineage's next version."""
    mine = select(ModelVersion.id).where(ModelVersion.checkpoint_id == row.id).scalar_subquery()
    return session.scalars(select(ModelVersion.checkpoint_id).where(ModelVersion.parent_id == mine)).first()


def revoked(session: OrmSession) -> Iterable[tuple[Checkpoint, CheckpointRevocation]]:
    """Every certificate that was taken back, in that order."""
    chosen = (
        select(Checkpoint, CheckpointRevocation)
        .join(CheckpointRevocation, CheckpointRevocation.checkpoint_id == Checkpoint.id)
        .where(CheckpointRevocation.step == "approved")
        .order_by(CheckpointRevocation.at, Checkpoint.id)
    )
    return [(row[0], row[1]) for row in session.execute(chosen)]


def payload_sha256(row: Checkpoint) -> str:
    """What the ledger calls the certificate by."""
    return hashlib.sha256(payload_of(row.certificate)).hexdigest()


def _step(
    session: OrmSession, row: Checkpoint, step: str, reason: RevocationReason, by: Actor, *, self_approved: bool
) -> CheckpointRevocation:
    at = now(session)
    made = CheckpointRevocation(checkpoint_id=row.id, step=step, reason=reason, by=str(by), at=at, self_approved=self_approved)
    session.add(made)
    session.flush()
    return made


def _revoked(row: Checkpoint, reason: RevocationReason, *, self_approved: bool) -> CertificateRevoked:
    return CertificateRevoked(
        checkpoint_id=row.id, payload_sha256=payload_sha256(row), reason=reason, self_approved=self_approved
    )


def _tell(session: OrmSession, row: Checkpoint, reason: RevocationReason) -> None:
    tell(session, row.request_id, "checkpoint.revoked", {"checkpoint_id": row.id, "reason": reason})


def _append(session: OrmSession, row: Checkpoint, fact: RevocationAsked | CertificateRevoked, by: Actor) -> None:
    ledger.append(session, fact, actor=by, request_id=row.request_id, model_id=row.model_id)
