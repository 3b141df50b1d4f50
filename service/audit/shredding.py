"""Opening, holding and shredding private payloads. Each function is part of its caller's one transaction.

Shredding takes away the salt, the wrapped key and the ciphertext, and every copy of what the client said: in the request's row,
in its event stream, and in the idempotency key, whose digest of the body could confirm a guess; and with them what opens the
commitment to what the request was about.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import select, update
from sqlalchemy.orm import Session as OrmSession

from service.audit import ledger
from service.audit.leaves import Actor, PrivateShredded, RequestAmended
from service.audit.ledger import LOG_ID
from service.audit.legal import HoldReleased, HoldSet, PrivateOpened
from service.audit.vault import KekGone, KeyStore, Sealed, Unopenable, unseal
from service.db import get_engine, now
from service.errors import LegalHold, NotFound
from service.tables import (
    Checkpoint,
    ForgetCommitment,
    IdempotencyKey,
    LedgerEntry,
    LedgerPrivate,
    RequestApproval,
    RequestEvent,
    UnlearnRequest,
    new_id,
)

log = logging.getLogger("expunge.shredding")

Ground = Literal["erasure_request", "retention_ended", "withdrawn", "data_minimisation", "operator"]
HoldGround = Literal["legal_claim", "authority", "internal_review"]
Fault = Literal["key_gone", "damaged"]
"""Why private values that nobody shredded cannot be read: the key of their month is lost, or they are not what was sealed."""
FIRST = 0
"""Ordinal of a request's `received` entry, which commits to what is copied in its row."""


def private_rows(
    session: OrmSession, *, seq: int | None = None, request_id: str | None = None, lock: bool = False
) -> Sequence[LedgerPrivate]:
    """The private rows of an entry, or of all entries of a request. Raises: NotFound: there are none.

    Args:
        lock: hold them, and first their request's row: everybody takes it before anything else of a request.
    """
    if lock:
        owner = request_id or (requests_of(session, [seq]).get(seq, (None, None))[0] if seq is not None else None)
        session.execute(select(UnlearnRequest.id).where(UnlearnRequest.id == owner).with_for_update())
    query = select(LedgerPrivate).where(LedgerPrivate.log_id == LOG_ID)
    if seq is not None:
        query = query.where(LedgerPrivate.seq == seq)
    else:
        of_request = select(LedgerEntry.seq).where(LedgerEntry.log_id == LOG_ID, LedgerEntry.request_id == request_id)
        query = query.where(LedgerPrivate.seq.in_(of_request))
    query = query.order_by(LedgerPrivate.seq)
    if lock:
        query = query.with_for_update().execution_options(populate_existing=True)
    found = session.scalars(query).all()
    if not found:
        raise NotFound("no private data are kept under this address")
    return found


def requests_of(session: OrmSession, seqs: Iterable[int]) -> dict[int, tuple[str | None, int | None]]:
    """Request and ordinal of each of these entries."""
    chosen = select(LedgerEntry.seq, LedgerEntry.request_id, LedgerEntry.request_ordinal)
    rows = session.execute(chosen.where(LedgerEntry.log_id == LOG_ID, LedgerEntry.seq.in_(list(seqs))))
    return {seq: (request_id, ordinal) for seq, request_id, ordinal in rows}


def shred(session: OrmSession, rows: Sequence[LedgerPrivate], *, actor: Actor, ground: Ground) -> list[int]:
    """Destroy what opens these rows, and the copies. Those that are gone already are left alone.

    Returns:
        Sequence numbers of what was shredded now; empty: nothing was left to do, and nothing was written.

    Raises:
        LegalHold: a row, or another one of the same request, is held.
    """
    rows = [row for row in rows if row.shredded_at is None]
    if not rows:
        return []
    places = requests_of(session, (row.seq for row in rows))
    held = held_among(session, {request_id for request_id, _ in places.values() if request_id})
    if any(row.legal_hold or places[row.seq][0] in held for row in rows):
        raise LegalHold
    at = now(session)
    for row in rows:
        row.salt = row.dek_wrapped = row.ciphertext = None
        row.shredded_at = at
    session.flush()  # the database lets go of a request's copies only once its private row is shredded
    for request_id in sorted(r for r in _copied(session, places) if r is not None):
        _erase_copies(session, request_id)
    asked = sorted({request_id for request_id, _ in places.values() if request_id})
    session.execute(
        update(RequestApproval).where(RequestApproval.request_id.in_(asked)).values(comment=None),
        execution_options={"synchronize_session": False},
    )
    seqs = [row.seq for row in rows]
    ledger.append(session, PrivateShredded(seqs=tuple(seqs), ground=ground), actor=actor)
    return seqs


def _copied(session: OrmSession, places: dict[int, tuple[str | None, int | None]]) -> set[str | None]:
    """Requests whose rows hold a copy of what one of these entries commits to: the first of each, or one that changed it."""
    amended = select(LedgerEntry.request_id).where(
        LedgerEntry.log_id == LOG_ID, LedgerEntry.seq.in_(list(places)), LedgerEntry.action == RequestAmended.action
    )
    return {request_id for request_id, ordinal in places.values() if ordinal == FIRST} | set(session.scalars(amended))


def held_among(session: OrmSession, request_ids: set[str]) -> set[str]:
    """A hold on one private row of a request holds them all: a dispute is about the whole of it."""
    held = (
        select(LedgerEntry.request_id)
        .join(LedgerPrivate, (LedgerPrivate.log_id == LedgerEntry.log_id) & (LedgerPrivate.seq == LedgerEntry.seq))
        .where(LedgerEntry.log_id == LOG_ID, LedgerEntry.request_id.in_(sorted(request_ids)), LedgerPrivate.legal_hold)
    )
    return {request_id for request_id in session.scalars(held) if request_id is not None}


def _erase_copies(session: OrmSession, request_id: str) -> None:
    """The row's fields in one UPDATE: the database allows a request that has ended exactly this one."""
    erased = update(UnlearnRequest).where(UnlearnRequest.id == request_id)
    session.execute(
        erased.values(reason=None, external_id=None, client_metadata={}, version=UnlearnRequest.version + 1),
        execution_options={"synchronize_session": False},
    )
    session.execute(update(RequestEvent).where(RequestEvent.request_id == request_id).values(data={}))
    # the key is the client's own word, and the body's digest is not salted
    erase_commitment(session, request_id)
    keys = select(IdempotencyKey.tenant, IdempotencyKey.key).where(IdempotencyKey.request_id == request_id)
    for tenant, key in session.execute(keys).all():  # one, and one more for each call that `use_existing` answered with it
        forgotten = update(IdempotencyKey).where(IdempotencyKey.tenant == tenant, IdempotencyKey.key == key)
        session.execute(
            forgotten.values(key=new_id("gone"), body_sha256="0" * 64), execution_options={"synchronize_session": False}
        )


def erase_commitment(session: OrmSession, request_id: str) -> None:
    """What opens the certificate's commitment to what this request was about: nobody can test any more who was in it."""
    of_request = select(Checkpoint.id).where(Checkpoint.request_id == request_id).scalar_subquery()
    session.execute(
        update(ForgetCommitment)
        .where(ForgetCommitment.checkpoint_id == of_request, ForgetCommitment.secret.is_not(None))
        .values(secret=None),
        execution_options={"synchronize_session": False},
    )


def hold(session: OrmSession, rows: Sequence[LedgerPrivate], *, actor: Actor, on: bool, ground: HoldGround) -> list[int]:
    """Set or release a legal hold; rows that stand so already, or are shredded, are left alone. Returns those that changed."""
    rows = [row for row in rows if row.legal_hold != on and row.shredded_at is None]
    for row in rows:
        row.legal_hold = on
    seqs = [row.seq for row in rows]
    if seqs:
        kind = HoldSet if on else HoldReleased
        ledger.append(session, kind(seqs=tuple(seqs), ground=ground), actor=actor)
    return seqs


@dataclass(frozen=True)
class Opened:
    """What was found where an entry's private values should be; neither: there are none, or they were shredded."""

    values: dict[str, Any] | None = None
    fault: Fault | None = None


NOTHING = Opened()
WAL_PATIENCE_MS = 500


def opened(session: OrmSession, keys: KeyStore, seqs: Sequence[int], *, actor: Actor) -> dict[int, Opened]:
    """The private values of these entries, or why they cannot be read, as far as there are any; and the entry of who did.

    One key that was lost takes no other entry's values with it.
    """
    query = select(LedgerPrivate).where(LedgerPrivate.log_id == LOG_ID, LedgerPrivate.seq.in_(list(seqs)))
    found: dict[int, Opened] = {}
    for row in session.scalars(query.order_by(LedgerPrivate.seq)):
        if row.kek_id is None or row.dek_wrapped is None or row.ciphertext is None:
            continue
        try:
            sealed = Sealed(row.kek_id, row.dek_wrapped, row.ciphertext)
            found[row.seq] = Opened(values=unseal(keys, sealed, log_id=LOG_ID, seq=row.seq))
        except KekGone:
            log.error("private.key.gone", extra={"seq": row.seq, "kek_id": row.kek_id})
            found[row.seq] = Opened(fault="key_gone")
        except (Unopenable, ValueError) as error:  # ValueError: what should be the key's name is none
            log.error("private.damaged", extra={"seq": row.seq, "kind": type(error).__name__})
            found[row.seq] = Opened(fault="damaged")
    if seqs_read := tuple(seq for seq, one in found.items() if one.fault is None):
        ledger.append(session, PrivateOpened(seqs=seqs_read), actor=actor)
    return found


def forget_pages() -> bool:
    """After a shred was committed: empty SQLite's write-ahead log, which holds the old pages. True: nothing is left there.

    `secure_delete` has zeroed them in the file. PostgreSQL offers no such thing; there the key's destruction is what counts.
    Somebody who reads for long, as an export does, keeps the log from being emptied; every writer would wait with us for the
    end, so this gives up soon, and the sweeper tries again.
    """
    engine = get_engine()
    if engine.dialect.name != "sqlite":
        return False
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT", read_only=True) as connection:
        connection.rollback()
        raw: Any = connection.connection.driver_connection
        (patience,) = raw.execute("PRAGMA busy_timeout").fetchone()
        raw.execute(f"PRAGMA busy_timeout={WAL_PATIENCE_MS}")
        try:
            busy = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        finally:
            raw.execute(f"PRAGMA busy_timeout={patience}")
    if busy:
        log.warning("wal.busy")
    return not busy
