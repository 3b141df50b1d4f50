"""Proving to somebody that an item was among what was forgotten, for as long as what opens the commitment is kept.

Every request has a key of its own for the items that it was about. A later version's tree takes the leaves of earlier requests
as they are, so that erasing one request's key closes its items in every tree of the lineage, and no other's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from sqlalchemy import exists, select
from sqlalchemy.orm import Session as OrmSession

from service.audit.ledger import LOG_ID
from service.certificates import commitment
from service.certificates.commitment import Leaves
from service.checkpoints import repository
from service.checkpoints.schemas import Opening
from service.datasets import items
from service.db import reading
from service.errors import Conflict, NotFound
from service.models import repository as models
from service.tables import ForgetCommitment, LedgerEntry, LedgerPrivate, ModelVersion

SECRET_BYTES = 32


class NotForgotten(NotFound):
    """No such item is among those that the certificate is about."""

    code, title = "item_not_forgotten", "No such item is among what was forgotten"


class CommitmentErased(Conflict):
    """What would open the commitment was erased, wholly or for the request that was about this item, or there never was one."""

    code, title = "commitment_erased", "Nothing opens this commitment any more"


@dataclass(frozen=True)
class Committed:
    """What a certificate commits to, and what opens the part of it that is new."""

    secret: bytes
    leaves: Leaves


@dataclass(frozen=True)
class Before:
    """What the replaced version's commitment has; `leaves` None: it is of a release that did not keep them."""

    secret: bytes | None
    leaves: Leaves | None


def before(session: OrmSession, checkpoint_id: str | None) -> Before | None:
    """Of the checkpoint that is replaced; None: there is none, or it committed to nothing."""
    kept = session.get(ForgetCommitment, checkpoint_id) if checkpoint_id else None
    if kept is None:
        return None
    return Before(kept.secret, None if kept.leaves is None else commitment.unpacked(kept.leaves))


def committed(gone: Iterable[str], earlier: Iterable[str], kept: Before | None) -> Committed:
    """The commitment of a new version: leaves of its own request's items, and those of the version before as they were.

    Args:
        gone: all that the new version is to have forgotten.
        earlier: what the version before had.
    """
    secret, forgotten = os.urandom(SECRET_BYTES), set(earlier)
    if kept is None:
        return Committed(secret, commitment.leaves(secret, gone))
    carried = kept.leaves
    if carried is None:  # where its key was erased, these leaves must not open again either: under a key that nobody keeps
        carried = commitment.leaves(kept.secret or os.urandom(SECRET_BYTES), forgotten)
    return Committed(secret, commitment.leaves(secret, set(gone) - forgotten, carried))


def may_keep(session: OrmSession, request_id: str) -> bool:
    """May what opens a request's commitment be kept? Not once its private data were shredded, or an entry of it redacted."""
    shredded = (
        select(LedgerEntry.seq)
        .join(LedgerPrivate, (LedgerPrivate.log_id == LedgerEntry.log_id) & (LedgerPrivate.seq == LedgerEntry.seq))
        .where(LedgerEntry.request_id == request_id, LedgerPrivate.shredded_at.is_not(None))
    )
    redacted = select(LedgerEntry.seq).where(LedgerEntry.request_id == request_id, LedgerEntry.leaf.is_(None))
    of_log = LedgerEntry.log_id == LOG_ID
    return not session.scalar(select(exists(shredded.where(of_log)) | exists(redacted.where(of_log))))


def opening(checkpoint_id: str, item: str) -> Opening:
    """The proof that an item was among what was forgotten.

    Raises:
        CheckpointNotFound, NotForgotten.
        CommitmentErased: also where it cannot be told any more whether the item is among those of a request that was erased.
        BadLocation: a release before the leaves were kept made the commitment, and the dataset cannot be read any more.
    """
    with reading() as session:
        row = repository.get(session, checkpoint_id)
        kept = session.get(ForgetCommitment, checkpoint_id)
        version = repository.version(session, row.id)
        secrets = _secrets(session, version)
        where = items.source(session, models.get(session, row.model_id).dataset_id)
        gone = tuple(version.forgotten_classes), tuple(version.forgotten_samples)
    if kept is None or not any(secrets):
        raise CommitmentErased
    if kept.leaves is not None:
        leaves = commitment.unpacked(kept.leaves)
    elif kept.secret is not None:
        leaves = _leaves_of(kept.secret, where, *gone)
    else:
        raise CommitmentErased
    try:
        found = commitment.opening([secret for secret in secrets if secret is not None], leaves, item)
    except KeyError as error:
        raise (NotForgotten if all(secrets) else CommitmentErased) from error
    return Opening(checkpoint_id=row.id, **found)


def _secrets(session: OrmSession, version: ModelVersion) -> Sequence[bytes | None]:
    """Of the version's own request first, then of those before it on the lineage; None: it was erased."""
    chosen = (
        select(ForgetCommitment.secret)
        .join(ModelVersion, ModelVersion.checkpoint_id == ForgetCommitment.checkpoint_id)
        .where(ModelVersion.model_id == version.model_id, ModelVersion.number <= version.number)
        .order_by(ModelVersion.number.desc())
    )
    return session.scalars(chosen).all()


@lru_cache(maxsize=2)
def _leaves_of(secret: bytes, where: items.Source, classes: tuple[int, ...], samples: tuple[str, ...]) -> Leaves:
    """Of a release that did not keep them: from the dataset, which is read once for many questions."""
    return commitment.leaves(secret, forgotten_items_of(classes, samples)(items.read(where)))


def forgotten_items_of(classes: Iterable[int], samples: Iterable[str]) -> Callable[[items.Items], list[str]]:
    """Which training items those are: all of the classes, and the single ones."""
    gone, single = frozenset(classes), tuple(samples)
    return lambda known: [*(name for name, k in known.class_of.items() if k in gone), *single]
