"""Checkpoints as clients see them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sqlalchemy.orm import Session as OrmSession

from service.certificates import commitment
from service.checkpoints import evidence, repository, revocation
from service.checkpoints.schemas import CheckpointRead, EvidenceFile, Opening, RevocationRead, Status
from service.datasets import items
from service.db import reading
from service.downloads import StoredFile
from service.errors import Conflict, NotFound, Revoked
from service.models import repository as models
from service.models.schemas import File, ForgetSet
from service.tables import ForgetCommitment


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


class NotForgotten(NotFound):
    """No such item is among those that the certificate is about."""

    code, title = "item_not_forgotten", "No such item is among what was forgotten"


class CommitmentErased(Conflict):
    """What would open the commitment was erased, or there never was one."""

    code, title = "commitment_erased", "Nothing opens this commitment any more"


def opening(checkpoint_id: str, item: str) -> Opening:
    """The proof that an item was among what was forgotten. Raises: CheckpointNotFound, NotForgotten, CommitmentErased."""
    with reading() as session:
        row = repository.get(session, checkpoint_id)
        kept = session.get(ForgetCommitment, checkpoint_id)
        version = repository.version(session, row.id)
        where = items.source(session, models.get(session, row.model_id).dataset_id)
        gone = forgotten_items_of(version.forgotten_classes, version.forgotten_samples)
    if kept is None or kept.secret is None:
        raise CommitmentErased
    try:
        return Opening(checkpoint_id=row.id, **commitment.opening(kept.secret, gone(items.read(where)), item))
    except KeyError as error:
        raise NotForgotten from error


def forgotten_items_of(classes: Iterable[int], samples: Iterable[str]) -> Callable[[items.Items], list[str]]:
    """Which training items those are: all of the classes, and the single ones."""
    gone, single = frozenset(classes), tuple(samples)
    return lambda known: [*(name for name, k in known.class_of.items() if k in gone), *single]


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
