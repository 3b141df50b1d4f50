"""Appending to the ledger, in the same transaction as the change it describes.

The head row is the last lock a transaction takes: appenders queue there for the shortest time, no two of them can deadlock,
and a rolled-back transaction leaves neither an entry nor a gap in the sequence.
"""

from __future__ import annotations

import os
from typing import Any

from sqlalchemy import event, select
from sqlalchemy.orm import ORMExecuteState, UOWTransaction
from sqlalchemy.orm import Session as OrmSession

from service.audit.leaves import SALT_BYTES, Actor, Fact, commitment, leaf, leaf_hash
from service.config import get_settings
from service.db import now
from service.tables import LedgerEntry, LedgerHead, LedgerPrivate

LOG_ID = 1
_LEDGER_ROWS = (LedgerEntry, LedgerHead, LedgerPrivate)
_CLOSED = "ledger.head.locked"


class LockOrderViolation(RuntimeError):
    """A business row was written after the ledger's head was locked."""


def append(
    session: OrmSession,
    fact: Fact,
    *,
    actor: Actor,
    request_id: str | None = None,
    model_id: str | None = None,
    private: dict[str, Any] | None = None,
) -> LedgerEntry:
    """Record a fact. Call it after every other write of the transaction.

    Args:
        private: values that may be personal; only their salted commitment enters the entry, the salt goes to an erasable row.

    Raises:
        LockOrderViolation: at a later flush that writes anything but ledger rows.
    """
    session.flush()
    head = session.execute(
        select(LedgerHead).where(LedgerHead.log_id == LOG_ID).with_for_update().execution_options(populate_existing=True)
    ).scalar_one()
    session.info[_CLOSED] = True
    clock = now(session)
    at = max(clock, head.last_at) if head.last_at else clock
    salt = os.urandom(SALT_BYTES) if private is not None else None
    previous = _previous(session, request_id)
    ordinal = None if request_id is None else (0 if previous is None else (previous.request_ordinal or 0) + 1)
    tenant = get_settings().tenant
    data = leaf(
        fact,
        at=at,
        tenant=tenant,
        actor=actor,
        request=None if request_id is None else (request_id, ordinal or 0, previous.leaf_hash if previous else None),
        model_id=model_id,
        subject_commitment=commitment(salt, private) if salt and private is not None else None,
    )
    entry = LedgerEntry(
        log_id=LOG_ID,
        seq=head.size,
        leaf=data,
        leaf_hash=leaf_hash(data),
        action=fact.action,
        outcome=fact.outcome,
        at=at,
        tenant=tenant,
        actor=str(actor),
        request_id=request_id,
        request_ordinal=ordinal,
        model_id=model_id,
    )
    session.add(entry)
    session.flush()  # before the head moves: the insert guard wants seq = size
    if salt:
        session.add(LedgerPrivate(log_id=LOG_ID, seq=entry.seq, salt=salt))
    head.size += 1
    head.last_at = at
    session.flush()
    return entry


def _previous(session: OrmSession, request_id: str | None) -> LedgerEntry | None:
    if request_id is None:
        return None
    return session.execute(
        select(LedgerEntry)
        .where(LedgerEntry.log_id == LOG_ID, LedgerEntry.request_id == request_id)
        .order_by(LedgerEntry.request_ordinal.desc())
        .limit(1)
    ).scalar_one_or_none()


@event.listens_for(OrmSession, "before_flush")
def _head_is_last_lock(session: OrmSession, _context: UOWTransaction, _instances: Any) -> None:
    if session.info.get(_CLOSED):
        late = [row for row in (*session.new, *session.dirty, *session.deleted) if not isinstance(row, _LEDGER_ROWS)]
        if any(session.is_modified(row) or row in session.new for row in late):
            raise LockOrderViolation(f"{type(late[0]).__name__} was written after the ledger's head was locked")


@event.listens_for(OrmSession, "do_orm_execute")
def _no_late_statement(state: ORMExecuteState) -> None:
    writes = state.is_update or state.is_delete or state.is_insert
    if writes and state.session.info.get(_CLOSED):
        raise LockOrderViolation("a statement wrote rows after the ledger's head was locked")


@event.listens_for(OrmSession, "after_transaction_end")
def _unlocked(session: OrmSession, transaction: Any) -> None:
    if transaction.parent is None:
        session.info.pop(_CLOSED, None)
