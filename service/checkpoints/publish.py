"""Publishing: the one transaction that makes a result visible, with its certificate and its ledger entries, or none of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import select, update
from sqlalchemy.orm import Session as OrmSession

from service.audit import ledger
from service.audit.leaves import CertificateIssued, CertificateSuperseded, Fact, ModelPublished, RequestClosed, sample_count
from service.certificates import commitment
from service.certificates.dsse import Bundle, payload_of
from service.checkpoints import membership
from service.checkpoints.membership import Committed
from service.db import now
from service.files import FileEntry
from service.requests.events import tell
from service.requests.leases import Lease, LeaseLost, announce
from service.requests.lifecycle import MAY_PUBLISH
from service.tables import (
    Attempt,
    Checkpoint,
    CheckpointEvidence,
    CheckpointFile,
    ForgetCommitment,
    Model,
    ModelVersion,
    UnlearnRequest,
    new_id,
)


@dataclass(frozen=True)
class Result:
    """What is to be published: files that the store already holds, the certificate that names them, and what lies beside it."""

    checkpoint_id: str
    digest: str
    """Tree digest of `files`."""
    files: tuple[FileEntry, ...]
    certificate: Bundle
    evidence: Mapping[str, bytes] = field(default_factory=dict)
    """By the path under which it is downloaded."""
    committed: Committed | None = None
    """The certificate's commitment to the items that were forgotten."""


class BaseMoved(Exception):
    """The model's current version is no longer the one that this result was made from; it must not replace it."""


def publish(session: OrmSession, lease: Lease, result: Result) -> None:
    """Publish a result, in the caller's transaction. Any exception must roll it back: the certificate is worth nothing then.

    Repeating it after an answer that got lost on the way changes nothing.

    Raises:
        LeaseLost: the fence has moved on, somebody asked to cancel, or the request has ended.
        BaseMoved: another version was published meanwhile.
    """
    if _is_published(session, lease, result):
        return
    at = now(session)
    won = session.execute(
        update(UnlearnRequest)
        .where(
            UnlearnRequest.id == lease.request_id,
            UnlearnRequest.fence == lease.fence,
            UnlearnRequest.lease_owner == lease.owner,
            UnlearnRequest.status.in_(sorted(MAY_PUBLISH)),
            UnlearnRequest.cancel_requested_at.is_(None),
        )
        .values(
            status="succeeded",
            checkpoint_id=result.checkpoint_id,
            finished_at=at,
            estimated_remaining_seconds=None,
            lease_owner=None,
            lease_expires_at=None,
            version=UnlearnRequest.version + 1,
        )
        .returning(UnlearnRequest.id)
        .execution_options(synchronize_session=False)
    ).scalar_one_or_none()
    if won is None:
        raise LeaseLost(f"request {lease.request_id} may no longer publish under fence {lease.fence}")
    request = session.get_one(UnlearnRequest, lease.request_id, populate_existing=True)
    version = _new_version(session, request, result)
    session.add(
        Checkpoint(
            id=result.checkpoint_id,
            request_id=request.id,
            model_id=request.model_id,
            fence=lease.fence,
            digest=result.digest,
            certificate=result.certificate,
            created_at=at,
        )
    )
    session.flush()  # the files refer to it, and there is no relationship that would order them
    session.add_all(CheckpointFile(checkpoint_id=result.checkpoint_id, **file.row()) for file in result.files)
    for path, content in result.evidence.items():
        found = hashlib.sha256(content).hexdigest()
        session.add(CheckpointEvidence(checkpoint_id=result.checkpoint_id, path=path, content=content, sha256=found))
    if (made := result.committed) is not None:
        secret = made.secret if membership.may_keep(session, request.id) else None
        kept = commitment.packed(made.leaves)
        session.add(ForgetCommitment(checkpoint_id=result.checkpoint_id, secret=secret, leaves=kept))
    attempt = session.get_one(Attempt, (lease.request_id, lease.fence))
    attempt.outcome = "succeeded"
    attempt.ended_at = at
    made_it = {"checkpoint_id": result.checkpoint_id, "version": version.number}
    tell(session, request.id, "checkpoint.certified", made_it, at)
    announce(session, request.id, "succeeded", made_it, at)
    _record(session, lease, request.model_id, result, version)


def _new_version(session: OrmSession, request: UnlearnRequest, result: Result) -> ModelVersion:
    """The lineage's next version; everything its parent had forgotten stays forgotten."""
    base = session.get_one(ModelVersion, request.base_version_id)
    moved = session.execute(
        update(Model)
        .where(Model.id == request.model_id, Model.current_version == base.number)
        .values(current_version=base.number + 1)
        .returning(Model.id)
        .execution_options(synchronize_session=False)
    ).scalar_one_or_none()
    if moved is None:
        raise BaseMoved(f"version {base.number} of {request.model_id} is not current any more")
    version = ModelVersion(
        id=new_id("mver"),
        model_id=request.model_id,
        number=base.number + 1,
        parent_id=base.id,
        checkpoint_id=result.checkpoint_id,
        location=None,
        files=[file.row() for file in result.files],
        digest=result.digest,
        forgotten_classes=sorted({*base.forgotten_classes, *request.forget_classes}),
        forgotten_samples=sorted({*base.forgotten_samples, *request.forget_samples}),
        created_at=now(session),
    )
    session.add(version)
    return version


def _record(session: OrmSession, lease: Lease, model_id: str, result: Result, version: ModelVersion) -> None:
    issued = CertificateIssued(
        checkpoint_id=result.checkpoint_id,
        payload_sha256=hashlib.sha256(payload_of(result.certificate)).hexdigest(),
        key_id=result.certificate["verificationMaterial"]["publicKey"]["hint"],
    )
    published = ModelPublished(
        checkpoint_id=result.checkpoint_id,
        version_id=version.id,
        number=version.number,
        digest=result.digest,
        forgotten_classes=tuple(version.forgotten_classes),
        forgotten_samples=sample_count(version.forgotten_samples),
    )
    before = session.scalars(select(ModelVersion.checkpoint_id).where(ModelVersion.id == version.parent_id)).one()
    replaced: tuple[Fact, ...] = (CertificateSuperseded(checkpoint_id=before, by=result.checkpoint_id),) if before else ()
    for fact in (issued, published, *replaced, RequestClosed(status="succeeded")):
        ledger.append(session, fact, actor=lease.actor, request_id=lease.request_id, model_id=model_id)


def _is_published(session: OrmSession, lease: Lease, result: Result) -> bool:
    """True when this very publication was committed before and only its confirmation was lost."""
    found = session.execute(
        select(Checkpoint.id).where(
            Checkpoint.id == result.checkpoint_id,
            Checkpoint.request_id == lease.request_id,
            Checkpoint.fence == lease.fence,
        )
    )
    return found.scalar_one_or_none() is not None
